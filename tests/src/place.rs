//! Where the parties of a world live and how the link between site and cloud is cut. There are two kinds of place: a
//! loopback network with a proxy as the uplink, and network namespaces with a router between them ([`Networks`]).
//! Called by `world`; it opens sockets only to find ports that are free.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use crate::networks::Networks;
use crate::proxy::{Mode, Proxy};
use crate::seat::Seat;

/// The parties that have an address of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The cloud itself, behind the uplink.
    Cloud,
    /// The cloud as the site sees it: on loopback the near end of the proxy.
    Uplink,
    /// The gateway on its LAN.
    Gateway,
    /// A gateway that was lost and is started again on another machine of the LAN.
    LostGateway,
}

/// Where the parties live.
#[derive(Debug, Clone)]
pub enum Place {
    /// A network `127.a.b.0/24`.
    Loopback([u8; 2]),
    /// Namespaces of their own, on links that are really cut.
    Networks(Arc<Networks>),
}

impl Place {
    /// The loopback network of this process. Two worlds of one process would share it: ports keep them apart.
    #[must_use]
    pub fn of_this_process() -> Self {
        let id = std::process::id();
        // 127.0.x.y is left to others; 1..=250 in both octets.
        let octet = |n: u32| u8::try_from(n % 250 + 1).expect("at most 250");
        Self::Loopback([octet(id / 250), octet(id)])
    }

    /// The loopback network of the demo: the same every time, so that commands can be copied.
    #[must_use]
    pub fn of_the_demo() -> Self {
        Self::Loopback([0, 77])
    }

    /// What a place on loopback is, for the head of a sheet.
    pub const ON_LOOPBACK: &str =
        "On loopback: the uplink is a proxy that can fall silent or reset.";

    /// Real networks if this machine lets us, else `otherwise`; and which it is, for the head of a sheet.
    #[must_use]
    pub fn real_or(otherwise: Self) -> (Self, String) {
        match Networks::make() {
            Ok(networks) => {
                let head = "On real links: cloud, router, gateway and each machine of the LAN in a network namespace; \
                            the uplink is cut by dropping packets in the router or by taking the interface down.";
                (Self::Networks(Arc::new(networks)), head.to_owned())
            }
            Err(reason) => {
                let head = format!("{} No real links: {reason:#}.", Self::ON_LOOPBACK);
                (otherwise, head)
            }
        }
    }

    /// Where the party's programs run.
    #[must_use]
    pub fn seat(&self, party: Party) -> Seat {
        match (self, party) {
            (Self::Loopback(_), _) => Seat::here(),
            (Self::Networks(networks), Party::Gateway) => networks.gateway(),
            (Self::Networks(networks), Party::Cloud | Party::Uplink) => networks.cloud(),
            (Self::Networks(networks), Party::LostGateway) => networks.spare(),
        }
    }

    /// Where a further machine on the LAN runs its programs; it is plugged in at the first call.
    ///
    /// # Errors
    /// It cannot be plugged in.
    pub fn station(&self, name: &str) -> anyhow::Result<Seat> {
        match self {
            Self::Loopback(_) => Ok(Seat::here()),
            Self::Networks(networks) => networks.station(name),
        }
    }

    /// The interface on which the gateway and, on loopback, everybody meets the LAN.
    #[must_use]
    pub fn lan_interface(&self) -> &'static str {
        match self {
            Self::Loopback(_) => "lo",
            Self::Networks(_) => Networks::LAN_INTERFACE,
        }
    }

    /// The party's address.
    #[must_use]
    pub fn address(&self, party: Party) -> Ipv4Addr {
        match (self, party) {
            (Self::Loopback([a, b]), Party::Cloud) => Ipv4Addr::new(127, *a, *b, 2),
            (Self::Loopback([a, b]), Party::Uplink) => Ipv4Addr::new(127, *a, *b, 3),
            (Self::Loopback([a, b]), Party::Gateway) => Ipv4Addr::new(127, *a, *b, 4),
            (Self::Loopback([a, b]), Party::LostGateway) => Ipv4Addr::new(127, *a, *b, 5),
            (Self::Networks(_), Party::Gateway) => Networks::GATEWAY,
            (Self::Networks(_), Party::Cloud | Party::Uplink) => Networks::CLOUD,
            (Self::Networks(_), Party::LostGateway) => Networks::SPARE,
        }
    }

    /// The party's address with the wished port; on loopback with another free one if that is taken.
    ///
    /// # Errors
    /// No port is free, or the address cannot be used on this machine.
    pub fn socket(&self, party: Party, wished: u16) -> io::Result<SocketAddr> {
        let address = self.address(party);
        if let Self::Networks(_) = self {
            return Ok((address, wished).into());
        }
        let free =
            TcpListener::bind((address, wished)).or_else(|_| TcpListener::bind((address, 0)))?;
        free.local_addr()
    }

    /// Where a party's metrics listen: on its own loopback, where they must stay.
    ///
    /// # Errors
    /// No port is free.
    pub fn metrics_socket(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Loopback(_) => local_socket(),
            Self::Networks(_) => Ok((Ipv4Addr::LOCALHOST, 9464).into()),
        }
    }

    /// The uplink, whole. On loopback the sockets at its near end are carried to those at its far end; on real
    /// networks they are the same.
    ///
    /// # Errors
    /// A socket at the near end cannot be listened on.
    pub async fn string(&self, wires: &[(SocketAddr, SocketAddr)]) -> io::Result<Uplink> {
        match self {
            Self::Networks(networks) => Ok(Uplink::Link(Arc::clone(networks))),
            Self::Loopback(_) => {
                let mut proxy = Proxy::new();
                for (near, far) in wires {
                    proxy.wire(*near, *far).await?;
                }
                Ok(Uplink::Proxy(proxy))
            }
        }
    }
}

/// The link between site and cloud.
#[derive(Debug)]
pub enum Uplink {
    /// A proxy on loopback.
    Proxy(Proxy),
    /// A real link.
    Link(Arc<Networks>),
}

impl Uplink {
    /// Where the site dials to reach what listens at `far` beyond the link; on loopback a further wire from `near`.
    ///
    /// # Errors
    /// `near` cannot be listened on.
    pub async fn reach(&mut self, near: SocketAddr, far: SocketAddr) -> io::Result<SocketAddr> {
        match self {
            Self::Proxy(proxy) => proxy.wire(near, far).await,
            Self::Link(_) => Ok(far),
        }
    }

    /// Cuts or mends it, for what is open and what comes. On a real link [`Mode::Silent`] drops every packet in the
    /// router, and [`Mode::Reset`] takes the gateway's interface down.
    ///
    /// # Errors
    /// The real link does not obey.
    pub fn set(&self, mode: Mode) -> anyhow::Result<()> {
        match self {
            Self::Proxy(proxy) => proxy.set(mode),
            Self::Link(networks) => networks.set(mode)?,
        }
        Ok(())
    }
}

/// A free TCP port on the plain loopback address.
///
/// # Errors
/// No port is free.
pub fn local_socket() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// True if multicast can be joined on the loopback interface, which discovery in a world on loopback needs.
#[must_use]
pub fn has_multicast() -> bool {
    let joined = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.join_multicast_v4(&Ipv4Addr::new(224, 0, 0, 251), &Ipv4Addr::LOCALHOST)
    });
    joined.is_ok()
}
