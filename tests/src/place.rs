//! Where the parts of a world listen: a loopback network of its own for each world, so that worlds do not meet.
//! Called by `world`; it opens sockets only to find ports that are free.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// The parties that have an address of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The cloud itself, behind the uplink.
    Cloud,
    /// The cloud as the site sees it: the near end of the uplink proxy.
    Uplink,
    /// The gateway on its LAN.
    Gateway,
}

/// A network `127.a.b.0/24` taken from the process id.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    net: [u8; 2],
}

impl Place {
    /// The network of this process. Two worlds of one process would share it: ports keep them apart.
    #[must_use]
    pub fn of_this_process() -> Self {
        let id = std::process::id();
        // 127.0.x.y is left to others; 1..=250 in both octets.
        let octet = |n: u32| u8::try_from(n % 250 + 1).expect("at most 250");
        Self {
            net: [octet(id / 250), octet(id)],
        }
    }

    /// The network of the demo: the same every time, so that commands can be copied.
    #[must_use]
    pub fn of_the_demo() -> Self {
        Self { net: [0, 77] }
    }

    /// The party's address.
    #[must_use]
    pub fn address(&self, party: Party) -> Ipv4Addr {
        let host = match party {
            Party::Cloud => 2,
            Party::Uplink => 3,
            Party::Gateway => 4,
        };
        Ipv4Addr::new(127, self.net[0], self.net[1], host)
    }

    /// The party's address with the wished port, or another free one if that is taken.
    ///
    /// # Errors
    /// No port is free, or the address cannot be used on this machine.
    pub fn socket(&self, party: Party, wished: u16) -> io::Result<SocketAddr> {
        let address = self.address(party);
        let free =
            TcpListener::bind((address, wished)).or_else(|_| TcpListener::bind((address, 0)))?;
        free.local_addr()
    }
}

/// A free TCP port on the plain loopback address (metrics listeners must stay there).
///
/// # Errors
/// No port is free.
pub fn local_socket() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// True if multicast can be joined on the loopback interface, which discovery in a world needs.
#[must_use]
pub fn has_multicast() -> bool {
    let joined = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.join_multicast_v4(&Ipv4Addr::new(224, 0, 0, 251), &Ipv4Addr::LOCALHOST)
    });
    joined.is_ok()
}
