//! Everybody may do everything, from this machine. These rights are the example's own; the library has none.

use holdfast_broker::{Connect, Identity, Peer, Refusal, Rights};

pub(crate) struct AllowAll;

impl Rights for AllowAll {
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        // Defence in depth: even a wrong address argument serves nobody from elsewhere.
        if !peer.address.ip().is_loopback() {
            return Err(Refusal::NotAuthorized);
        }
        Ok(Identity {
            client_id: connect.client_id.into(),
            subject: connect.user_name.unwrap_or("anonymous").into(),
        })
    }

    fn may_publish(&self, _: &Identity, _: &str) -> bool {
        true
    }

    /// One filter is refused, to show what a refusal looks like.
    fn may_subscribe(&self, _: &Identity, filter: &str) -> bool {
        filter != "test/nosubscribe"
    }

    fn may_receive(&self, _: &Identity, _: &str) -> bool {
        true
    }

    fn may_see_figures(&self, _: &Identity) -> bool {
        true
    }
}
