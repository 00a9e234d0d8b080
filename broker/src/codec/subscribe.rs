//! SUBSCRIBE and UNSUBSCRIBE, with every rule of theirs that needs no session.
//!
//! Called by `decode`.

use mqtt_protocol_core::mqtt::packet::{Property, RetainHandling, SubEntry, v3_1_1, v5_0};

use super::Fault;
use super::decode::{clear, fault, packet_id, placed, whole};
use super::property::place;
use crate::Qos;

#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(crate) packet_id: u16,
    pub(crate) id: Option<u32>,
    pub(crate) entries: Vec<Entry>,
}

/// One filter of a SUBSCRIBE, as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) filter: String,
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    /// 0 = send, 1 = only if new, 2 = never.
    pub(crate) retain_handling: u8,
}

#[derive(Debug)]
pub(crate) struct Unsubscribe {
    pub(crate) packet_id: u16,
    pub(crate) filters: Vec<String>,
}

pub(super) fn subscribe(body: &[u8], v5: bool) -> Result<Subscribe, Fault> {
    let (packet_id, _) = packet_id(body)?;
    let mut id = None;
    let entries = if v5 {
        placed(place::SUBSCRIBE, body, 2)?;
        let (found, used) = v5_0::Subscribe::parse(body).map_err(|error| fault(&error))?;
        whole(used, body)?;
        for property in found.props() {
            if let Property::SubscriptionIdentifier(value) = property {
                // Zero and a second one are protocol errors [MQTT-3.8.2.1.2].
                if value.val() == 0 || id.is_some() {
                    return Err(Fault::Protocol);
                }
                id = Some(value.val());
            }
        }
        found
            .entries()
            .iter()
            .map(entry)
            .collect::<Result<_, _>>()?
    } else {
        let (found, used) = v3_1_1::Subscribe::parse(body).map_err(|error| fault(&error))?;
        whole(used, body)?;
        let entries: Vec<Entry> = found
            .entries()
            .iter()
            .map(entry)
            .collect::<Result<_, _>>()?;
        if entries
            .iter()
            .any(|entry| entry.no_local || entry.retain_as_published || entry.retain_handling != 0)
        {
            // Reserved bits of 3.1.1 [MQTT-3-8.3-4].
            return Err(Fault::Malformed);
        }
        entries
    };
    Ok(Subscribe {
        packet_id,
        id,
        entries,
    })
}

fn entry(found: &SubEntry) -> Result<Entry, Fault> {
    let options = found.sub_opts();
    let no_local = options.nl();
    let filter = some(clear(found.topic_filter())?)?;
    if no_local && filter.starts_with("$share/") {
        // [MQTT-3.8.3-4]
        return Err(Fault::Protocol);
    }
    Ok(Entry {
        filter,
        qos: Qos::from_bits(options.qos() as u8).ok_or(Fault::Malformed)?,
        no_local,
        retain_as_published: options.rap(),
        retain_handling: match options.rh() {
            RetainHandling::SendRetained => 0,
            RetainHandling::SendRetainedIfNotExists => 1,
            RetainHandling::DoNotSendRetained => 2,
        },
    })
}

/// A filter has a character at least [MQTT-4.7.3-1].
fn some(filter: String) -> Result<String, Fault> {
    if filter.is_empty() {
        return Err(Fault::Malformed);
    }
    Ok(filter)
}

pub(super) fn unsubscribe(body: &[u8], v5: bool) -> Result<Unsubscribe, Fault> {
    let (packet_id, _) = packet_id(body)?;
    let filters: Result<Vec<String>, Fault> = if v5 {
        placed(place::UNSUBSCRIBE, body, 2)?;
        let (found, used) = v5_0::Unsubscribe::parse(body).map_err(|error| fault(&error))?;
        whole(used, body)?;
        found
            .entries()
            .iter()
            .map(|text| some(clear(text.as_str())?))
            .collect()
    } else {
        let (found, used) = v3_1_1::Unsubscribe::parse(body).map_err(|error| fault(&error))?;
        whole(used, body)?;
        found
            .entries()
            .iter()
            .map(|text| some(clear(text.as_str())?))
            .collect()
    };
    Ok(Unsubscribe {
        packet_id,
        filters: filters?,
    })
}
