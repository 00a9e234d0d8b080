//! The owner as an installer: what it says in a pairing.

use holdfast_protocol::fdo::service_info::Outbox;
use holdfast_protocol::lan_module::{MODULE, Network};
use holdfast_protocol::wire::cbor;

/// Hands over the LAN's credentials, once.
pub(super) fn speak(begun: &mut bool, outbox: &mut Outbox) {
    if !std::mem::replace(begun, true) {
        let secret = "anchors aweigh".to_owned().into();
        let network = Network::new("harbour".into(), Some(secret)).unwrap();
        let active = cbor::encode(|w| _ = w.bool(true));
        outbox.push(MODULE, "active", active).unwrap();
        outbox.push(MODULE, "network", network.to_value()).unwrap();
    }
}
