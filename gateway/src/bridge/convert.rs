//! Messages as the broker keeps them and as the MQTT client sends them, both ways; stamps and
//! refusals. Pure. Used by [`super`].

use holdfast_broker::{Message, Qos};
use holdfast_link::mqtt::{Incoming, Publish, ReasonCode, UserProperty};
use holdfast_protocol::topic::Topic;

/// Names of the sender's stamp.
const EPOCH: &str = "hf-epoch";
const SEQ: &str = "hf-seq";

/// How messages without a sender's stamp are known: by the journal's epoch and their row in it.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// Grows whenever the journal's row ids begin anew.
    pub epoch: u64,
}

/// A journal row for the cloud. The stamp stays the same however often the row is sent.
///
/// A sender's own stamp goes along only on a device's topic, which has one sender. At the cloud all
/// of a topic's senders are this gateway: of two that count by themselves, the one with the lower
/// numbers would be taken for a repeat and lost. The journal has dropped the sender's repeats
/// already, so its row is as good a number.
/// `left` is what is left of its life.
pub(super) fn outgoing(
    message: &Message,
    row: u64,
    topic: String,
    left: Option<u32>,
    stamp: Stamp,
) -> Publish {
    let mut user: Vec<UserProperty> = message
        .user_properties()
        .map(|(name, value)| UserProperty {
            name: name.to_owned(),
            value: value.to_owned(),
        })
        .collect();
    let number = |name| {
        message
            .user_value(name)
            .is_some_and(|text| text.parse::<u64>().is_ok())
    };
    let parsed = message.topic().parse::<Topic>();
    let one_sender = parsed.is_ok_and(|topic| topic.device().is_some());
    if !(one_sender && number(EPOCH) && number(SEQ)) {
        user.retain(|property| property.name != EPOCH && property.name != SEQ);
        user.push(UserProperty {
            name: EPOCH.to_owned(),
            value: stamp.epoch.to_string(),
        });
        user.push(UserProperty {
            name: SEQ.to_owned(),
            value: row.to_string(),
        });
    }
    Publish {
        retain: message.is_retained(),
        user,
        expiry: left.map(|secs| std::time::Duration::from_secs(secs.into())),
        content_type: message.content_type_text().map(str::to_owned),
        response_topic: message.response_topic().map(str::to_owned),
        correlation: message.correlation_data().map(|data| data.to_vec().into()),
        ..Publish::new(topic, message.payload().clone())
    }
}

/// A message of the cloud for the LAN.
pub(super) fn incoming(message: &Incoming, topic: &str) -> Message {
    let mut local = Message::new(topic, message.payload.clone())
        .qos(Qos::AtLeastOnce)
        .retain(message.retain);
    if let Some(expiry) = message.expiry {
        local = local.expires_in(u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX));
    }
    if let Some(kind) = &message.content_type {
        local = local.content_type(kind);
    }
    let user = message.user.iter();
    user.fold(local, |local, property| {
        local.user_property(&property.name, &property.value)
    })
}

/// What a remote's refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may take it later.
    Later,
    /// We have no right; that may change, but not for ever.
    Denied,
    /// What is wrong with the message itself stays wrong.
    Never,
}

pub(super) fn verdict(code: ReasonCode) -> Verdict {
    match code.0 {
        // Not authorised.
        0x87 => Verdict::Denied,
        // Topic name invalid, packet too large, payload format invalid.
        0x90 | 0x95 | 0x99 => Verdict::Never,
        _ => Verdict::Later,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(publish: &Publish) -> Vec<(&str, &str)> {
        publish
            .user
            .iter()
            .map(|p| (p.name.as_str(), p.value.as_str()))
            .collect()
    }

    #[test]
    fn a_message_without_a_whole_stamp_gets_ours() {
        let stamp = Stamp { epoch: 3 };
        let bare = Message::new("a/b", "x").user_property("k", "v");
        let sent = outgoing(&bare, 17, "p/a/b".to_owned(), Some(7), stamp);
        assert_eq!(sent.topic, "p/a/b");
        assert_eq!(sent.expiry, Some(std::time::Duration::from_secs(7)));
        assert_eq!(stamps(&sent), [("k", "v"), (EPOCH, "3"), (SEQ, "17")]);
        let half = Message::new("a", "x")
            .user_property(EPOCH, "9")
            .user_property(SEQ, "x");
        assert_eq!(
            stamps(&outgoing(&half, 1, "a".to_owned(), None, stamp)),
            [(EPOCH, "3"), (SEQ, "1")]
        );
    }

    #[test]
    fn a_devices_stamp_stays_and_of_a_shared_topic_nobodys() {
        let device = "0".repeat(32);
        for (topic, kept) in [
            (format!("hf/v1/bern/{device}/up/t"), true),
            (format!("svc/v1/bern/s/{device}/telemetry"), true),
            ("plant/line".to_owned(), false),
            ("hf/v1/bern/gateway/health".to_owned(), false),
        ] {
            let own = Message::new(&topic, "x")
                .user_property(EPOCH, "9")
                .user_property(SEQ, "5");
            let sent = outgoing(&own, 1, topic.clone(), None, Stamp { epoch: 3 });
            let wanted = if kept { ["9", "5"] } else { ["3", "1"] };
            let wanted = [(EPOCH, wanted[0]), (SEQ, wanted[1])];
            assert_eq!(stamps(&sent), wanted, "{topic}");
        }
    }

    #[test]
    fn only_what_cannot_get_better_is_refused_for_ever() {
        assert_eq!(verdict(ReasonCode(0x97)), Verdict::Later);
        assert_eq!(verdict(ReasonCode(0x80)), Verdict::Later);
        assert_eq!(verdict(ReasonCode(0x87)), Verdict::Denied);
        assert_eq!(verdict(ReasonCode(0x95)), Verdict::Never);
    }
}
