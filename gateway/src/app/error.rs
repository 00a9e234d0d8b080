//! Why the gateway does not start, or stopped: one sentence each, with what to do.

use std::io;
use std::path::PathBuf;

use holdfast_config::stages::Ended;
use holdfast_cps::authority::AuthorityError;
use holdfast_cps::sync::Replaced;
use holdfast_cps::{KeyError, OpenError};
use holdfast_link::discovery::DiscoveryError;
use holdfast_link::time::FloorError;
use holdfast_server::bind::BindError;
use holdfast_store::StoreError;

/// Why [`super::build`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Never enrolled.
    #[error(
        "this gateway is not enrolled; get a token at the cloud (holdfast-cloud gateways token) and \
         run: holdfast-gateway enrol --cloud HOST:PORT --token-file FILE"
    )]
    NotEnrolled,
    /// The state folder.
    #[error("cannot use {}: {cause}; give --state a folder that this user owns", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Another machine has its place.
    #[error("{}", crate::retired::sentence(.0))]
    Replaced(Box<Replaced>),
    /// Rules that the cloud would refuse. They were read before it was known which site this is.
    #[error("{}; correct the configuration", .0.join("; "))]
    Rules(Vec<String>),
    /// A socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The machine's addresses.
    #[error("cannot tell this machine's addresses: {0}; write advertise.addresses")]
    Interfaces(io::Error),
    /// mDNS.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The time floor.
    #[error(transparent)]
    Clock(#[from] FloorError),
    /// Keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// A store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry.
    #[error(transparent)]
    Cps(#[from] OpenError),
    /// Certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The hashes of clients' passwords.
    #[error(transparent)]
    Passwords(#[from] holdfast_broker::PasswordsError),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] holdfast_broker::OpenError),
    /// The ledger's consumer.
    #[error(transparent)]
    Consumer(#[from] holdfast_broker::ConsumerError),
    /// The bridge's rules.
    #[error(transparent)]
    Bridge(#[from] crate::bridge::OpenError),
}

impl BuildError {
    /// Whether the operator's input is at fault.
    #[must_use]
    pub fn is_misuse(&self) -> bool {
        matches!(self, Self::NotEnrolled | Self::Rules(_))
    }

    /// Whether it may get better by itself: at boot an address or interface may come later than the
    /// gateway, which never waits for a network.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Bind(_) | Self::Discovery(_) | Self::Interfaces(_)
        )
    }
}

/// Why the gateway stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another machine has its place.
    #[error("{}", crate::retired::sentence(.0))]
    Replaced(Box<Replaced>),
    /// A part ended by itself.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}
