//! TLS by pinned trust: who we are, whom we believe, and why a peer was refused.
//!
//! Called by every dialler and every listener of the house. Chains are built by webpki against the
//! anchors given and nothing else; what webpki leaves open (key usage, extended key usage,
//! no authority) is checked here. Which party a certificate names is for `protocol::certificate` and
//! whoever knows the domain. TLS 1.2 and 1.3, ring, no
//! session tickets and no resumption, so that no handshake outlives a revocation. Never reads the
//! system's trust store and never skips a check by configuration.

mod identity;
mod usage;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;

pub use identity::{Identity, IdentityError, IdentitySlot};
pub use verify::{
    AnchorError, Anchors, PeerFault, Purpose, explain, peer_fault, refusal, verify_chain,
};

use crate::time::Clock;

/// Whom a client believes.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Servers of this house, whose chain ends in one of these: no wildcard names, no weak keys.
    Anchors(Anchors),
    /// Servers whose chain shows, and leads to, a root certificate whose DER has one of these SHA-256:
    /// for first contact by an enrolment token or a printed fingerprint, before the root itself is known.
    RootHashes(Vec<[u8; 32]>),
}

/// What a server asks of its clients.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// No certificate is asked for.
    None,
    /// A certificate may be missing, but one that is shown must hold.
    Optional(Anchors),
    /// As `Optional`, and one that expired no longer ago than this passes the handshake: for the door
    /// behind which certificates are renewed. Whoever answers there judges the time once more for
    /// everything else.
    Late(Anchors, Duration),
    /// No handshake without a certificate that holds.
    Required(Anchors),
}

/// The client side: servers are verified against `trust` and the name dialled for; `identity` is
/// shown when asked for, always the one in the slot at that moment.
///
/// # Errors
/// None that a configuration can cause; rustls reports inconsistent versions.
pub fn client_config(
    trust: Trust,
    identity: Option<IdentitySlot>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verify::ServerVerifier::new(trust, clock)));
    let mut config = match identity {
        Some(slot) => builder.with_client_cert_resolver(Arc::new(slot)),
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The server side: shows the identity in the slot at the moment of each handshake.
///
/// # Errors
/// None that a configuration can cause; rustls reports inconsistent versions.
pub fn server_config(
    identity: IdentitySlot,
    clients: ClientAuth,
    clock: Arc<dyn Clock>,
) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)?;
    let builder = match clients {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional(anchors) => builder.with_client_cert_verifier(Arc::new(
            verify::ClientVerifier::new(anchors, clock, false),
        )),
        ClientAuth::Late(anchors, grace) => builder.with_client_cert_verifier(Arc::new(
            verify::ClientVerifier::new(anchors, clock, false).with_grace(grace),
        )),
        ClientAuth::Required(anchors) => builder
            .with_client_cert_verifier(Arc::new(verify::ClientVerifier::new(anchors, clock, true))),
    };
    let mut config = builder.with_cert_resolver(Arc::new(identity));
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
pub(crate) mod tests;
