//! The partner behind a link that can be cut and slowed.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use holdfast_tests::partner;
use holdfast_tests::place::local_socket;
use holdfast_tests::proxy::Proxy;
use holdfast_tests::seat::Seat;

/// Everything of the partner.
pub(crate) struct Partner {
    broker: partner::Partner,
    /// The link to it.
    pub(crate) link: Proxy,
    /// Where the gateway dials.
    pub(crate) near: SocketAddr,
}

impl Partner {
    pub(crate) async fn new(folder: &Path) -> Self {
        let (far, inside) = (local_socket().unwrap(), local_socket().unwrap());
        let mut link = Proxy::new();
        let near = link.wire(local_socket().unwrap(), far).await.unwrap();
        let broker = partner::Partner::new(folder, Seat::here(), far, inside).unwrap();
        Self { broker, link, near }
    }
}

impl Deref for Partner {
    type Target = partner::Partner;

    fn deref(&self) -> &Self::Target {
        &self.broker
    }
}

impl DerefMut for Partner {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.broker
    }
}
