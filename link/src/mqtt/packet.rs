//! Between our messages and the packets of mqtt-protocol-core.
//!
//! Called by [`super::client`] (which builds in the publisher's own task, so that a bad message is
//! refused where it was made) and by [`super::session`]. No state. What differs in MQTT 3.1.1 is in
//! [`old`].

mod old;

use std::time::Duration;

use bytes::Bytes;
use mqtt_protocol_core::mqtt::packet::{self as mpc, Packet, Property, SubEntry, SubOpts, v5_0};
use mqtt_protocol_core::mqtt::result_code::{DisconnectReasonCode, MqttError};

use super::message::{Incoming, Publish, Qos, UserProperty};
use super::options::{Options, Version};
use super::outcome::ReasonCode;

impl From<Qos> for mpc::Qos {
    fn from(qos: Qos) -> Self {
        match qos {
            Qos::AtMostOnce => Self::AtMostOnce,
            Qos::AtLeastOnce => Self::AtLeastOnce,
        }
    }
}

pub(super) use old::{connack_code, old_incoming};

/// CONNECT, with or without our receive maximum.
pub(super) fn connect(options: &Options, receive: bool) -> Result<Packet, MqttError> {
    match options.version {
        Version::Five => connect_five(options, receive).map(Packet::from),
        Version::Three => old::connect(options).map(Packet::from),
    }
}

fn connect_five(options: &Options, receive: bool) -> Result<v5_0::Connect, MqttError> {
    let mut properties = vec![mpc::MaximumPacketSize::new(options.max_packet.max(1))?.into()];
    if receive {
        properties.push(mpc::ReceiveMaximum::new(options.receive_maximum.max(1))?.into());
    }
    let expiry = whole_secs(options.session_expiry);
    if expiry > 0 {
        properties.push(mpc::SessionExpiryInterval::new(expiry)?.into());
    }
    let mut builder = v5_0::Connect::builder()
        .client_id(options.client_id.as_str())?
        .clean_start(options.clean_start)
        .keep_alive(options.keep_alive_secs())
        .props(properties);
    if let Some(login) = &options.login {
        builder = builder
            .user_name(login.user.as_str())?
            .password(login.password.to_vec())?;
    }
    if let Some(will) = &options.will {
        builder = builder
            .will_message(
                will.topic.as_str(),
                will.payload.to_vec(),
                will.qos.into(),
                will.retain,
            )?
            .will_props(properties_of(will)?);
    }
    builder.build()
}

/// PUBLISH; `id` for QoS 1 only.
pub(super) fn publish(
    version: Version,
    message: &Publish,
    id: Option<u16>,
) -> Result<Packet, MqttError> {
    if message.topic.contains('\0') {
        return Err(MqttError::TopicNameInvalid);
    }
    match version {
        Version::Five => publish_five(message, id).map(Packet::from),
        Version::Three => old::publish(message, id).map(Packet::from),
    }
}

fn publish_five(message: &Publish, id: Option<u16>) -> Result<v5_0::Publish, MqttError> {
    let mut builder = v5_0::Publish::builder()
        .topic_name(message.topic.as_str())?
        .qos(message.qos.into())
        .retain(message.retain)
        .payload(message.payload.as_ref());
    if let Some(id) = id {
        builder = builder.packet_id(id);
    }
    let properties = properties_of(message)?;
    if !properties.is_empty() {
        builder = builder.props(properties);
    }
    builder.build()
}

fn properties_of(message: &Publish) -> Result<Vec<Property>, MqttError> {
    let mut properties = Vec::new();
    if message.text {
        properties.push(mpc::PayloadFormatIndicator::new(mpc::PayloadFormat::String)?.into());
    }
    if let Some(expiry) = message.expiry {
        properties.push(mpc::MessageExpiryInterval::new(whole_secs(expiry))?.into());
    }
    if let Some(kind) = &message.content_type {
        properties.push(mpc::ContentType::new(kind.as_str())?.into());
    }
    if let Some(topic) = &message.response_topic {
        properties.push(mpc::ResponseTopic::new(topic.as_str())?.into());
    }
    if let Some(data) = &message.correlation {
        properties.push(mpc::CorrelationData::new(data.to_vec())?.into());
    }
    for UserProperty { name, value } in &message.user {
        properties.push(mpc::UserProperty::new(name.as_str(), value.as_str())?.into());
    }
    Ok(properties)
}

pub(super) fn subscribe(
    version: Version,
    filters: &[(String, Qos)],
    id: u16,
) -> Result<Packet, MqttError> {
    let entries = filters
        .iter()
        .map(|(filter, qos)| {
            // Retained messages keep their flag, so that a bridge can tell them from live ones.
            let options = SubOpts::new().set_qos((*qos).into()).set_rap(true);
            SubEntry::new(filter.as_str(), options)
        })
        .collect::<Result<Vec<_>, _>>()?;
    if version == Version::Three {
        return old::subscribe(&entries, id).map(Packet::from);
    }
    let builder = v5_0::Subscribe::builder().packet_id(id).entries(entries);
    builder.build().map(Packet::from)
}

pub(super) fn unsubscribe(
    version: Version,
    filters: &[String],
    id: u16,
) -> Result<Packet, MqttError> {
    if version == Version::Three {
        return old::unsubscribe(filters, id).map(Packet::from);
    }
    v5_0::Unsubscribe::builder()
        .packet_id(id)
        .entries(filters.iter().map(String::as_str))?
        .build()
        .map(Packet::from)
}

pub(super) fn puback(version: Version, id: u16) -> Result<Packet, MqttError> {
    match version {
        Version::Five => v5_0::Puback::builder()
            .packet_id(id)
            .build()
            .map(Packet::from),
        Version::Three => old::puback(id).map(Packet::from),
    }
}

pub(super) fn ping(version: Version) -> Packet {
    match version {
        Version::Five => v5_0::Pingreq::new().into(),
        Version::Three => old::ping().into(),
    }
}

pub(super) fn disconnect(version: Version) -> Result<Packet, MqttError> {
    match version {
        Version::Five => v5_0::Disconnect::builder()
            .reason_code(DisconnectReasonCode::NormalDisconnection)
            .build()
            .map(Packet::from),
        Version::Three => Ok(old::disconnect().into()),
    }
}

/// The id of a message that we send with QoS 1.
pub(super) fn publish_id(packet: &Packet) -> Option<u16> {
    match packet {
        Packet::V5_0Publish(packet) => packet.packet_id(),
        Packet::V3_1_1Publish(packet) => packet.packet_id(),
        _ => None,
    }
}

/// A message received. `None` for QoS 2, which we never subscribe with.
pub(super) fn incoming(packet: &v5_0::Publish) -> Option<Incoming> {
    let qos = match packet.qos() {
        mpc::Qos::AtMostOnce => Qos::AtMostOnce,
        mpc::Qos::AtLeastOnce => Qos::AtLeastOnce,
        mpc::Qos::ExactlyOnce => return None,
    };
    let mut message = Incoming {
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
    };
    for property in packet.props() {
        match property {
            Property::MessageExpiryInterval(secs) => {
                message.expiry = Some(Duration::from_secs(u64::from(secs.val())));
            }
            Property::ContentType(kind) => message.content_type = Some(kind.val().to_owned()),
            Property::ResponseTopic(topic) => message.response_topic = Some(topic.val().to_owned()),
            Property::CorrelationData(data) => {
                message.correlation = Some(Bytes::copy_from_slice(data.val()));
            }
            Property::UserProperty(pair) => message.user.push(UserProperty {
                name: pair.key().to_owned(),
                value: pair.val().to_owned(),
            }),
            _ => {}
        }
    }
    Some(message)
}

pub(super) fn puback_code(packet: &v5_0::Puback) -> ReasonCode {
    packet
        .reason_code()
        .map_or(ReasonCode::SUCCESS, |code| ReasonCode(code as u8))
}

fn whole_secs(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
