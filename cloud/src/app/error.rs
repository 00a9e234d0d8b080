//! Why the cloud does not start: one sentence each, with what to do.

use std::io;
use std::path::PathBuf;

use holdfast_broker::ConsumerError;
use holdfast_cps::authority::AuthorityError;
use holdfast_cps::lists::ListingError;
use holdfast_cps::{KeyError, OpenError};
use holdfast_link::time::FloorError;
use holdfast_server::bind::BindError;
use holdfast_store::StoreError;

use crate::seller::SellerError;

/// Why [`super::build`] gave up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The state folder.
    #[error("cannot use {}: {cause}; give --state a folder that this user owns", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The state folder is another server's. Blame: the configuration.
    #[error(
        "{} belongs to server and domain \"{found}\", the configuration says \"{wanted}\"; correct \
         `server` and `domain`, or give --state another folder", state.display()
    )]
    OtherInstallation {
        /// The folder.
        state: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// The registry is there and the keys are not. Blame: whoever restored or mounted the folder.
    #[error(
        "{} holds no keys, and the registry beside it was made with some: fresh ones would lock out every gateway and \
         device. Restore that folder from the backup, or give --state an empty folder for a new cloud", .0.display()
    )]
    KeysGone(PathBuf),
    /// The list of manufacturers.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// A socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The machine's addresses.
    #[error("cannot tell this machine's addresses: {0}; write them under [advertise]")]
    Interfaces(io::Error),
    /// Blame: the configuration.
    #[error("more rendezvous servers than a device can hold; shorten manufacturing.rendezvous")]
    Directives,
    /// The time floor.
    #[error(transparent)]
    Clock(#[from] FloorError),
    /// The seller's keys.
    #[error(transparent)]
    Seller(#[from] SellerError),
    /// The owner's keys.
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
    /// The hashes of clients' passwords.
    #[error(transparent)]
    Passwords(#[from] holdfast_broker::PasswordsError),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] holdfast_broker::OpenError),
    /// The broker's consumer.
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
}

impl BuildError {
    /// Whether the operator's input is at fault.
    #[must_use]
    pub fn is_misuse(&self) -> bool {
        matches!(
            self,
            Self::OtherInstallation { .. } | Self::KeysGone(_) | Self::Directives
        )
    }

    /// Whether it may get better by itself: at boot an address may come later than the cloud.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Bind(_) | Self::Interfaces(_))
    }
}
