//! The client against a stock broker and against servers that do as the test tells them.

mod broker;
mod hostile;
mod old;
mod stub;

use super::*;
use crate::dial::{Endpoint, Security};
use bytes::Bytes;
use tokio::time::Instant;

fn plain(address: impl Into<String>) -> Endpoint {
    Endpoint {
        addresses: vec![address.into()],
        security: Security::Plain,
    }
}

/// Settlements of exactly these many messages, sorted by tag.
async fn settled(client: &Client, count: usize) -> Vec<Settled> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = tokio::time::timeout(Duration::from_secs(10), client.settled()).await;
        all.extend(some.expect("in time").expect("not ended"));
    }
    assert_eq!(all.len(), count);
    all.sort_by_key(|settled| settled.tag);
    all
}

fn numbered(topic: &str, tag: u64) -> Publish {
    Publish {
        tag,
        ..Publish::new(topic, Bytes::from(tag.to_string()))
    }
}
