//! The packets of MQTT 3.1.1, as far as they differ: no properties, no reasons.
//!
//! Called by [`super`] alone. A property that a message bears is left out, since the protocol has no
//! place for it.

use bytes::Bytes;
use mqtt_protocol_core::mqtt::packet::{self as mpc, SubEntry, v3_1_1};
use mqtt_protocol_core::mqtt::result_code::{ConnectReturnCode, MqttError};

use crate::mqtt::message::{Incoming, Publish, Qos};
use crate::mqtt::options::Options;
use crate::mqtt::outcome::ReasonCode;

pub(super) fn connect(options: &Options) -> Result<v3_1_1::Connect, MqttError> {
    // The protocol knows two lives of a session: none, and for ever.
    let clean = options.clean_start || options.session_expiry.is_zero();
    let mut builder = v3_1_1::Connect::builder()
        .client_id(options.client_id.as_str())?
        .clean_session(clean)
        .keep_alive(options.keep_alive_secs());
    if let Some(login) = &options.login {
        builder = builder
            .user_name(login.user.as_str())?
            .password(login.password.to_vec())?;
    }
    if let Some(will) = &options.will {
        builder = builder.will_message(
            will.topic.as_str(),
            will.payload.to_vec(),
            will.qos.into(),
            will.retain,
        )?;
    }
    builder.build()
}

pub(super) fn publish(message: &Publish, id: Option<u16>) -> Result<v3_1_1::Publish, MqttError> {
    let mut builder = v3_1_1::Publish::builder()
        .topic_name(message.topic.as_str())?
        .qos(message.qos.into())
        .retain(message.retain)
        .payload(message.payload.as_ref());
    if let Some(id) = id {
        builder = builder.packet_id(id);
    }
    builder.build()
}

pub(super) fn subscribe(entries: &[SubEntry], id: u16) -> Result<v3_1_1::Subscribe, MqttError> {
    // The bits of the options that MQTT 5 added are reserved here.
    let entries = entries.iter().map(|entry| {
        let options = mpc::SubOpts::new().set_qos(entry.sub_opts().qos());
        SubEntry::new(entry.topic_filter(), options)
    });
    v3_1_1::Subscribe::builder()
        .packet_id(id)
        .entries(entries.collect::<Result<Vec<_>, _>>()?)
        .build()
}

pub(super) fn unsubscribe(filters: &[String], id: u16) -> Result<v3_1_1::Unsubscribe, MqttError> {
    v3_1_1::Unsubscribe::builder()
        .packet_id(id)
        .entries(filters.iter().map(String::as_str))?
        .build()
}

pub(super) fn puback(id: u16) -> Result<v3_1_1::Puback, MqttError> {
    v3_1_1::Puback::builder().packet_id(id).build()
}

pub(super) fn ping() -> v3_1_1::Pingreq {
    v3_1_1::Pingreq::new()
}

pub(super) fn disconnect() -> v3_1_1::Disconnect {
    v3_1_1::Disconnect::new()
}

/// A message received. `None` for QoS 2, which we never subscribe with.
pub(in crate::mqtt) fn old_incoming(packet: &v3_1_1::Publish) -> Option<Incoming> {
    let qos = match packet.qos() {
        mpc::Qos::AtMostOnce => Qos::AtMostOnce,
        mpc::Qos::AtLeastOnce => Qos::AtLeastOnce,
        mpc::Qos::ExactlyOnce => return None,
    };
    Some(Incoming {
        topic: packet.topic_name().to_owned(),
        payload: Bytes::copy_from_slice(packet.payload().as_slice()),
        qos,
        retain: packet.retain(),
        duplicate: packet.dup(),
        user: Vec::new(),
        expiry: None,
        content_type: None,
        response_topic: None,
        correlation: None,
        packet_id: packet.packet_id(),
    })
}

/// The same in the words of MQTT 5.
pub(in crate::mqtt) fn connack_code(code: ConnectReturnCode) -> ReasonCode {
    ReasonCode(match code {
        ConnectReturnCode::Accepted => 0x00,
        ConnectReturnCode::UnacceptableProtocolVersion => 0x84,
        ConnectReturnCode::IdentifierRejected => 0x85,
        ConnectReturnCode::ServerUnavailable => 0x88,
        ConnectReturnCode::BadUserNameOrPassword => 0x86,
        ConnectReturnCode::NotAuthorized => 0x87,
    })
}
