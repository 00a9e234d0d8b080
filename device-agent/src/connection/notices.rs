//! What the device is told on the topics of its own, and who hears it: the notices of a service, of
//! another server, and of keys and certificates. Nothing is decided here.

use holdfast_link::mqtt::{Inbox, Incoming};
use holdfast_protocol::succession::Orders;
use holdfast_protocol::topic::Topic;
use tracing::{info, warn};

use super::Connection;
use crate::alternates::Heard;

/// The last notice of each topic in this connection: heard once more when other keys are believed,
/// since retained messages come in any order.
#[derive(Debug, Default)]
struct Last {
    service: Option<Vec<u8>>,
    server: Option<Vec<u8>>,
}

impl Connection {
    /// Takes what comes in, one after the other, until the connection ends.
    pub(super) async fn take_in(&self, mut inbox: Inbox) {
        let mut last = Last::default();
        while let Some(message) = inbox.next().await {
            info!(topic = %message.topic, bytes = message.payload.len(), "message for the device");
            self.board.tell(|status| status.received += 1);
            match message.topic.parse() {
                Ok(Topic::Down { .. } | Topic::Command { .. }) => self.keep(&message).await,
                Ok(topic) => self.hear(&topic, &message, &mut last).await,
                Err(_) => {}
            }
            inbox.acknowledge(&message).await;
        }
    }

    /// Takes a message on one of those topics; others are none of its business.
    async fn hear(&self, topic: &Topic, message: &Incoming, last: &mut Last) {
        match topic {
            Topic::ServiceDesired { .. } => {
                let payload = message.payload.to_vec();
                last.service = Some(payload.clone());
                self.hear_of_service(payload).await;
            }
            Topic::Alternate { .. } => {
                last.server = Some(message.payload.to_vec());
                self.hear_of_server(&message.payload);
            }
            Topic::Identity { .. } if self.hear_of_keys(&message.payload) => {
                self.hear_again(last).await;
            }
            _ => {}
        }
    }

    async fn hear_again(&self, last: &Last) {
        if let Some(payload) = last.service.clone() {
            self.hear_of_service(payload).await;
        }
        if let Some(payload) = &last.server {
            self.hear_of_server(payload);
        }
    }

    async fn hear_of_service(&self, payload: Vec<u8>) {
        if let Some(desk) = self.line.desk() {
            // Retained at the server: what is lost here with a crash comes again.
            _ = desk.notices.send(payload).await;
        }
    }

    /// Retained at the server: what the disk refuses now comes again.
    fn hear_of_server(&self, payload: &[u8]) {
        let Some(told) = &self.told else { return };
        match told.room.hear(payload) {
            Ok(Heard::Taken | Heard::Known) => {}
            Ok(Heard::Refused(why)) => {
                warn!(why, "a notice of another server is refused");
                self.board.tell(|status| status.notices_refused += 1);
            }
            Err(error) => warn!(%error, "a notice of another server cannot be kept"),
        }
    }

    /// Whether other keys are believed now.
    fn hear_of_keys(&self, payload: &[u8]) -> bool {
        let Some(told) = &self.told else { return false };
        let orders = match Orders::from_cbor(payload) {
            Ok(orders) => orders,
            Err(fault) => {
                warn!(%fault, "what the device is told of keys is refused");
                self.board.tell(|status| status.notices_refused += 1);
                return false;
            }
        };
        let changed = match told.room.signers().hear(&orders.successions) {
            Ok(changed) => changed,
            Err(error) => {
                warn!(%error, "the successor of a key cannot be kept");
                false
            }
        };
        if let (Some(notice), Some(ordered)) = (&orders.renew, &self.ordered)
            && let Err(why) = ordered.hear(notice, &self.identity, &told.room.signers())
        {
            warn!(why, "an order to renew is refused");
            self.board.tell(|status| status.notices_refused += 1);
        }
        changed
    }
}
