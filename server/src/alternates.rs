//! Tells devices of the other CPS server, and of rotated keys and ordered renewals: publishes what is
//! signed, retained.
//!
//! Run by each server's `app`. What is said, and when it is due, is `cps::alternates`'s and
//! `cps::tidings`'s; nothing is decided here. A burst of changes in the registry is looked at once.

use std::time::Duration;

use holdfast_broker::{Broker, Message, Qos};
use holdfast_cps::Cps;
use holdfast_cps::alternates::Told;
use holdfast_cps::tidings;
use holdfast_protocol::topic::Topic;
use tokio_util::sync::CancellationToken;

/// Rest after a look, and after a fault: what it says is not urgent.
const REST: Duration = Duration::from_secs(2);

/// Publishes what is due now and whatever comes later, until `stop`.
pub async fn run(cps: Cps, broker: Broker, stop: CancellationToken) {
    tokio::join!(
        servers(cps.clone(), broker.clone(), stop.clone()),
        keys(cps, broker, stop)
    );
}

/// Of rotated keys and ordered renewals.
async fn keys(cps: Cps, broker: Broker, stop: CancellationToken) {
    let mut changes = cps.tidings().changes();
    let mut told = tidings::Told::default();
    loop {
        changes.mark_unchanged();
        let is_done = tell_keys(&cps, &broker, &mut told).await;
        let again = async {
            tokio::time::sleep(REST).await;
            if is_done {
                _ = changes.changed().await;
            }
        };
        if stop.run_until_cancelled(again).await.is_none() {
            return;
        }
    }
}

async fn tell_keys(cps: &Cps, broker: &Broker, told: &mut tidings::Told) -> bool {
    loop {
        let due = match cps.tidings().due(told).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "cannot read which keys devices shall know; trying again");
                return false;
            }
        };
        if due.is_empty() {
            return true;
        }
        for one in due {
            let (site, device) = (one.site.clone(), one.device);
            let topic = Topic::Identity { site, device }.to_string();
            let message = Message::new(&topic, one.payload.clone());
            let message = message.qos(Qos::AtLeastOnce).retain(true);
            if let Err(error) = broker.publish(message).await {
                tracing::warn!(%device, %error, "a device could not be told of keys; trying again");
                return false;
            }
            told.note(&one);
        }
    }
}

/// Of the other server.
async fn servers(cps: Cps, broker: Broker, stop: CancellationToken) {
    let mut changes = cps.alternates().changes();
    let mut told = Told::default();
    loop {
        changes.mark_unchanged();
        let is_done = tell(&cps, &broker, &mut told).await;
        let again = async {
            tokio::time::sleep(REST).await;
            if is_done {
                _ = changes.changed().await;
            }
        };
        if stop.run_until_cancelled(again).await.is_none() {
            return;
        }
    }
}

/// Publishes what is due; false if it has to be done again.
async fn tell(cps: &Cps, broker: &Broker, told: &mut Told) -> bool {
    loop {
        let due = match cps.alternates().due(told).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "cannot read which servers devices shall know; trying again");
                return false;
            }
        };
        if due.is_empty() {
            return true;
        }
        for one in due {
            let (site, device) = (one.notice.site.clone(), one.notice.device);
            let topic = Topic::Alternate { site, device }.to_string();
            let message = Message::new(&topic, one.notice.notice.clone());
            let message = message.qos(Qos::AtLeastOnce).retain(true);
            if let Err(error) = broker.publish(message).await {
                tracing::warn!(%device, %error, "a notice could not be published; trying again");
                return false;
            }
            told.note(&one);
        }
    }
}
