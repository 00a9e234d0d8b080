//! Where rendezvous servers and owners are found: `RendezvousInfo` and `RVTO2Addr` (wire reference
//! sections 7 and 8).
//!
//! The factory writes [`RendezvousInfo`] into the device's credential; owner and device read their
//! own halves of it as [`Contact`]s. An owner's addresses travel in to1d as [`To2Address`].

use std::net::IpAddr;

use crate::crypto::Hash;
use crate::wire::cbor::{self, CborError, Reader, Writer};

/// Most directives in one info.
pub const MAX_DIRECTIVES: usize = 16;
/// Most instructions in one directive.
const MAX_INSTRUCTIONS: usize = 16;
/// Largest wrapped value of an instruction.
const MAX_VALUE: usize = 1024;
/// Longest DNS name.
const MAX_DNS: usize = 253;
/// Most addresses in one to1d.
pub const MAX_ADDRESSES: usize = 16;

/// Instruction numbers (`RVVariable`).
mod variable {
    pub(super) const DEV_ONLY: u64 = 0;
    pub(super) const OWNER_ONLY: u64 = 1;
    pub(super) const IP_ADDRESS: u64 = 2;
    pub(super) const DEV_PORT: u64 = 3;
    pub(super) const OWNER_PORT: u64 = 4;
    pub(super) const DNS: u64 = 5;
    pub(super) const SERVER_CERT_HASH: u64 = 6;
    pub(super) const CA_CERT_HASH: u64 = 7;
    pub(super) const PROTOCOL: u64 = 12;
    pub(super) const DELAY_SECS: u64 = 13;
    pub(super) const BYPASS: u64 = 14;
}

/// How a rendezvous server is spoken to (`RVProtocolValue` of section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RvProtocol {
    /// 1: HTTP, default port 80.
    Http,
    /// 2: HTTPS, default port 443.
    Https,
    /// Any other: not spoken by us, kept.
    Other(u8),
}

impl RvProtocol {
    fn number(self) -> u8 {
        match self {
            Self::Http => 1,
            Self::Https => 2,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Http,
            2 => Self::Https,
            other => Self::Other(other),
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Http | Self::Other(_) => 80,
        }
    }
}

/// One instruction of a directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// The owner skips this directive.
    DevOnly,
    /// The device skips this directive.
    OwnerOnly,
    /// Address of the server.
    Ip(IpAddr),
    /// DNS name of the server; tried before the address.
    Dns(String),
    /// Port for the device (TO1).
    DevPort(u16),
    /// Port for the owner (TO0).
    OwnerPort(u16),
    /// Hash of the server's TLS certificate.
    ServerCertHash(Hash),
    /// Hash of the TLS certificate authority.
    CaCertHash(Hash),
    /// How to speak.
    Protocol(RvProtocol),
    /// Seconds to wait after this directive failed.
    DelaySecs(u32),
    /// No TO1: the address is the owner's, for TO2.
    Bypass,
    /// Anything else, kept: number and the content of the wrapped value (none if absent).
    Other(u8, Option<Vec<u8>>),
}

/// Alternatives in the order in which they are tried; keeps its exact encoding.
#[derive(Debug, Clone)]
pub struct RendezvousInfo {
    raw: Vec<u8>,
    directives: Vec<Vec<Instruction>>,
}

/// A server to try, as one party reads one directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// DNS name, to be tried first.
    pub dns: Option<String>,
    /// Address, tried when there is no name or it does not resolve.
    pub ip: Option<IpAddr>,
    /// Port, the protocol's default filled in.
    pub port: u16,
    /// How to speak; HTTP if the directive does not say.
    pub protocol: RvProtocol,
    /// Seconds to wait when this contact failed, before the next.
    pub delay_secs: Option<u32>,
    /// The contact is the owner itself: go to TO2 at once.
    pub bypass: bool,
}

impl RendezvousInfo {
    /// Encodes directives; there must be at least one, and at most [`MAX_DIRECTIVES`].
    pub fn new(directives: Vec<Vec<Instruction>>) -> Result<Self, CborError> {
        let raw = cbor::encode(|w| {
            w.array(directives.len());
            for directive in &directives {
                w.array(directive.len());
                directive
                    .iter()
                    .for_each(|instruction| instruction.encode(w));
            }
        });
        // Reading it back applies the same bounds as to a peer's.
        Self::parse(&raw)
    }

    /// Reads exactly one encoded info.
    pub fn parse(bytes: &[u8]) -> Result<Self, CborError> {
        let mut r = Reader::new(bytes)?;
        let info = Self::decode(&mut r)?;
        r.end()?;
        Ok(info)
    }

    /// Reads the info that comes next.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, CborError> {
        let raw = r.raw()?;
        let mut r = Reader::new(raw)?;
        let len = r.array_len(MAX_DIRECTIVES)?;
        if len == 0 {
            return Err(CborError::Value("rendezvous info without a directive"));
        }
        let directives = (0..len)
            .map(|_| {
                let len = r.array_len(MAX_INSTRUCTIONS)?;
                (0..len).map(|_| Instruction::decode(&mut r)).collect()
            })
            .collect::<Result<_, CborError>>()?;
        r.end()?;
        Ok(Self {
            raw: raw.to_vec(),
            directives,
        })
    }

    /// The exact encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The directives, each a list of instructions.
    pub fn directives(&self) -> &[Vec<Instruction>] {
        &self.directives
    }

    /// What the device tries, in order.
    pub fn device_contacts(&self) -> Vec<Contact> {
        self.contacts(&Instruction::OwnerOnly, |instruction| match instruction {
            Instruction::DevPort(port) => Some(*port),
            _ => None,
        })
    }

    /// Where the owner registers (TO0), in order; bypass directives need no registration.
    pub fn owner_contacts(&self) -> Vec<Contact> {
        let mut contacts = self.contacts(&Instruction::DevOnly, |instruction| match instruction {
            Instruction::OwnerPort(port) => Some(*port),
            _ => None,
        });
        contacts.retain(|contact| !contact.bypass);
        contacts
    }

    fn contacts(
        &self,
        skip: &Instruction,
        port: impl Fn(&Instruction) -> Option<u16>,
    ) -> Vec<Contact> {
        let mine = self
            .directives
            .iter()
            .filter(|directive| !directive.contains(skip));
        mine.filter_map(|directive| contact(directive, &port))
            .collect()
    }
}

/// Same alternatives in the same order, in whatever encoding.
impl PartialEq for RendezvousInfo {
    fn eq(&self, other: &Self) -> bool {
        self.directives == other.directives
    }
}

impl Eq for RendezvousInfo {}

/// Reads one directive as a contact; none if it names no server.
fn contact(
    directive: &[Instruction],
    port: impl Fn(&Instruction) -> Option<u16>,
) -> Option<Contact> {
    let mut contact = Contact {
        dns: None,
        ip: None,
        port: 0,
        protocol: RvProtocol::Http,
        delay_secs: None,
        bypass: false,
    };
    for instruction in directive {
        match instruction {
            Instruction::Dns(name) => contact.dns = Some(name.clone()),
            Instruction::Ip(ip) => contact.ip = Some(*ip),
            Instruction::Protocol(protocol) => contact.protocol = *protocol,
            Instruction::DelaySecs(secs) => contact.delay_secs = Some(*secs),
            Instruction::Bypass => contact.bypass = true,
            _ => {}
        }
    }
    let default_port = contact.protocol.default_port();
    contact.port = directive.iter().find_map(port).unwrap_or(default_port);
    (contact.dns.is_some() || contact.ip.is_some()).then_some(contact)
}

impl Instruction {
    /// `[variable, bstr .cbor value]`. Where no value is needed it is a wrapped null: the text of
    /// the standard lets it be left out, but device libraries are about that insist on two elements
    /// and others on a value that is CBOR.
    fn encode(&self, w: &mut Writer) {
        let wrapped = |f: &dyn Fn(&mut Writer)| Some(cbor::encode(f));
        let (number, value) = match self {
            Self::DevOnly => (variable::DEV_ONLY, wrapped(&|w| _ = w.null())),
            Self::OwnerOnly => (variable::OWNER_ONLY, wrapped(&|w| _ = w.null())),
            Self::Bypass => (variable::BYPASS, wrapped(&|w| _ = w.null())),
            Self::Ip(ip) => (variable::IP_ADDRESS, wrapped(&|w| encode_ip(*ip, w))),
            Self::Dns(name) => (variable::DNS, wrapped(&|w| _ = w.text(name))),
            Self::DevPort(port) => (variable::DEV_PORT, wrapped(&|w| _ = w.uint((*port).into()))),
            Self::OwnerPort(port) => (
                variable::OWNER_PORT,
                wrapped(&|w| _ = w.uint((*port).into())),
            ),
            Self::ServerCertHash(hash) => {
                (variable::SERVER_CERT_HASH, wrapped(&|w| hash.encode(w)))
            }
            Self::CaCertHash(hash) => (variable::CA_CERT_HASH, wrapped(&|w| hash.encode(w))),
            Self::Protocol(protocol) => (
                variable::PROTOCOL,
                wrapped(&|w| _ = w.uint(protocol.number().into())),
            ),
            Self::DelaySecs(secs) => (
                variable::DELAY_SECS,
                wrapped(&|w| _ = w.uint((*secs).into())),
            ),
            Self::Other(number, value) => (u64::from(*number), value.clone()),
        };
        w.array(1 + usize::from(value.is_some())).uint(number);
        if let Some(value) = value {
            w.bytes(&value);
        }
    }

    /// A value may be absent or a wrapped null where none is needed.
    fn decode(r: &mut Reader<'_>) -> Result<Self, CborError> {
        let len = r.array_len(2)?;
        let number: u8 = r.small()?;
        let value = if len == 2 {
            Some(r.bytes(MAX_VALUE)?)
        } else {
            None
        };
        let needed = || value.ok_or(CborError::Value("rendezvous instruction without its value"));
        Ok(match u64::from(number) {
            variable::DEV_ONLY => Self::DevOnly,
            variable::OWNER_ONLY => Self::OwnerOnly,
            variable::BYPASS => Self::Bypass,
            variable::IP_ADDRESS => Self::Ip(unwrap(needed()?, decode_ip)?),
            variable::DNS => Self::Dns(unwrap(needed()?, |r| Ok(r.text(MAX_DNS)?.to_owned()))?),
            variable::DEV_PORT => Self::DevPort(unwrap(needed()?, Reader::small)?),
            variable::OWNER_PORT => Self::OwnerPort(unwrap(needed()?, Reader::small)?),
            variable::SERVER_CERT_HASH => Self::ServerCertHash(unwrap(needed()?, Hash::decode)?),
            variable::CA_CERT_HASH => Self::CaCertHash(unwrap(needed()?, Hash::decode)?),
            variable::PROTOCOL => {
                Self::Protocol(RvProtocol::from_number(unwrap(needed()?, Reader::small)?))
            }
            variable::DELAY_SECS => Self::DelaySecs(unwrap(needed()?, Reader::small)?),
            _ => Self::Other(number, value.map(<[u8]>::to_vec)),
        })
    }
}

/// Reads the one item inside a byte string.
fn unwrap<'a, T>(
    wrapped: &'a [u8],
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, CborError>,
) -> Result<T, CborError> {
    let mut r = Reader::new(wrapped)?;
    let value = read(&mut r)?;
    r.end()?;
    Ok(value)
}

fn encode_ip(ip: IpAddr, w: &mut Writer) {
    match ip {
        IpAddr::V4(ip) => w.bytes(&ip.octets()),
        IpAddr::V6(ip) => w.bytes(&ip.octets()),
    };
}

fn decode_ip(r: &mut Reader<'_>) -> Result<IpAddr, CborError> {
    let bytes = r.bytes(16)?;
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(octets.into());
    }
    let octets = <[u8; 16]>::try_from(bytes).map_err(|_| CborError::Value("IP address"))?;
    Ok(octets.into())
}

/// How an owner is spoken to (`TransportProtocol` of section 8: another list than [`RvProtocol`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum To2Protocol {
    /// 3.
    Http,
    /// 5.
    Https,
    /// Any other: not spoken by us, kept.
    Other(u8),
}

impl To2Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Http => 3,
            Self::Https => 5,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            3 => Self::Http,
            5 => Self::Https,
            other => Self::Other(other),
        }
    }
}

/// `RVTO2AddrEntry = [RVIP / null, RVDNS / null, RVPort, RVProtocol]`: where an owner answers TO2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct To2Address {
    /// Address, if told.
    pub ip: Option<IpAddr>,
    /// DNS name, if told.
    pub dns: Option<String>,
    /// Port.
    pub port: u16,
    /// How to speak.
    pub protocol: To2Protocol,
}

impl To2Address {
    /// Writes the entry.
    pub fn encode(&self, w: &mut Writer) {
        w.array(4);
        match self.ip {
            Some(ip) => encode_ip(ip, w),
            None => _ = w.null(),
        }
        match &self.dns {
            Some(dns) => w.text(dns),
            None => w.null(),
        };
        w.uint(self.port.into()).uint(self.protocol.number().into());
    }

    /// Reads the entry that comes next; it must name an address or a DNS name.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, CborError> {
        r.array(4)?;
        let ip = if r.null() { None } else { Some(decode_ip(r)?) };
        // Some write an empty name where there is none.
        let dns = if r.null() { "" } else { r.text(MAX_DNS)? };
        let dns = (!dns.is_empty()).then(|| dns.to_owned());
        let (port, protocol) = (r.small()?, To2Protocol::from_number(r.small()?));
        if ip.is_none() && dns.is_none() {
            return Err(CborError::Value("owner address without host"));
        }
        Ok(Self {
            ip,
            dns,
            port,
            protocol,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(bytes: &[u8]) -> Result<RendezvousInfo, CborError> {
        RendezvousInfo::parse(bytes)
    }

    #[test]
    fn each_party_reads_its_own_half() {
        let rendezvous = RendezvousInfo::new(vec![
            vec![
                Instruction::DevOnly,
                Instruction::Dns("holdfast-rv.local".into()),
            ],
            vec![
                Instruction::Ip([10, 0, 0, 1].into()),
                Instruction::DevPort(1),
                Instruction::OwnerPort(2),
                Instruction::Protocol(RvProtocol::Https),
                Instruction::DelaySecs(7),
            ],
            vec![
                Instruction::OwnerOnly,
                Instruction::Dns("owners.example".into()),
            ],
            vec![
                Instruction::Bypass,
                Instruction::Dns("direct.example".into()),
            ],
            vec![Instruction::Other(11, Some(vec![0x14]))],
        ])
        .unwrap();
        let device = rendezvous.device_contacts();
        let names: Vec<_> = device
            .iter()
            .map(|contact| contact.dns.as_deref())
            .collect();
        assert_eq!(
            names,
            [Some("holdfast-rv.local"), None, Some("direct.example")]
        );
        assert_eq!((device[0].port, device[0].protocol), (80, RvProtocol::Http));
        assert_eq!((device[1].port, device[1].delay_secs), (1, Some(7)));
        assert!(device[2].bypass && !device[1].bypass);
        let owner = rendezvous.owner_contacts();
        let ports: Vec<_> = owner.iter().map(|contact| contact.port).collect();
        assert_eq!(ports, [2, 80]);
        assert_eq!(owner[1].dns.as_deref(), Some("owners.example"));
    }

    #[test]
    fn valueless_instructions_come_in_two_forms() {
        let short = info(&[0x81, 0x81, 0x81, 14]).unwrap();
        let long = info(&[0x81, 0x81, 0x82, 14, 0x41, 0xf6]).unwrap();
        assert_eq!(short, long);
        assert_eq!(short.directives(), [vec![Instruction::Bypass]]);
        assert_ne!(short.as_bytes(), long.as_bytes(), "each keeps its encoding");
        // No directive, no value where one is needed, a value of another type.
        for broken in [
            &[0x80][..],
            &[0x81, 0x81, 0x81, 5],
            &[0x81, 0x81, 0x82, 5, 0x41, 0x01],
            &[0x81, 0x81, 0x82, 2, 0x44, 0x43, 1, 2, 3],
            &[0x81, 0x81, 0x82, 3, 0x45, 0x1a, 0, 1, 0, 0],
        ] {
            info(broken).unwrap_err();
        }
    }

    #[test]
    fn owner_addresses_need_a_host() {
        let decode = |bytes: &[u8]| To2Address::decode(&mut Reader::new(bytes).unwrap());
        let address = decode(&[0x84, 0x44, 127, 0, 0, 1, 0x60, 0x18, 0x50, 3]).unwrap();
        assert_eq!((address.dns.as_ref(), address.port), (None, 80));
        let encoded = cbor::encode(|w| address.encode(w));
        assert_eq!(encoded, [0x84, 0x44, 127, 0, 0, 1, 0xf6, 0x18, 0x50, 3]);
        decode(&[0x84, 0xf6, 0x60, 0x18, 0x50, 3]).unwrap_err();
        decode(&[0x84, 0xf6, 0xf6, 0x18, 0x50, 3]).unwrap_err();
    }
}
