//! What a certificate looks like: templates, and nothing but templates. Called by the signer,
//! filled by `authority`. A template takes a public key and names that this server decided; it
//! never takes a name, usage or life from a request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use holdfast_protocol::id::{Domain, SiteId};
use holdfast_protocol::name::Party;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, SanType,
    SerialNumber,
};

/// Which authority signs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Issuer {
    /// The cloud's root; signs intermediates only.
    Root,
    /// The cloud's intermediate for its own servers and the clients of no site.
    Servers,
    /// An intermediate of one site.
    Site(SiteId),
}

impl Issuer {
    /// A file-name safe label.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Root => "root".into(),
            Self::Servers => "servers".into(),
            Self::Site(site) => format!("site-{site}"),
        }
    }

    /// DNS subtrees below which it may name parties; the leading dot asks for at least one label.
    #[must_use]
    pub fn subtrees(&self, domain: &Domain) -> Vec<String> {
        match self {
            Self::Root => Vec::new(),
            Self::Servers => vec![format!(".servers.{domain}"), format!(".clients.{domain}")],
            Self::Site(site) => vec![format!(".{site}.{domain}")],
        }
    }
}

/// What is certified.
#[derive(Clone, Debug)]
pub enum Subject {
    /// The root of trust of an installation.
    Root {
        /// Shown in its name.
        domain: Domain,
    },
    /// An intermediate: path length 0, names below `subtrees`, and a site's with private addresses
    /// only.
    Issuer {
        /// Which one.
        issuer: Issuer,
        /// Shown in its name: who holds the key.
        holder: String,
        /// Permitted DNS subtrees; empty leaves the constraints out.
        subtrees: Vec<String>,
    },
    /// An end entity.
    Leaf {
        /// Whom it names.
        party: Party,
        /// Its one DNS name.
        dns: String,
        /// IP addresses, for servers only.
        addresses: Vec<IpAddr>,
    },
}

/// One certificate to be signed.
#[derive(Clone, Debug)]
pub struct Template {
    /// What is certified.
    pub subject: Subject,
    /// Random, 16 bytes, positive.
    pub serial: [u8; 16],
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// The certified key, SubjectPublicKeyInfo DER, P-256.
    pub spki: Vec<u8>,
}

impl Template {
    /// The parameters for the certificate writer.
    pub(crate) fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&self.serial));
        // rcgen's calendar function spares this crate a calendar library of its own.
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(self.not_before.min(LAST_MOMENT));
        params.not_after = epoch + Duration::from_secs(self.not_after.min(LAST_MOMENT));
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, self.common_name());
        match &self.subject {
            Subject::Root { .. } => authority_usage(&mut params, 1),
            Subject::Issuer {
                issuer, subtrees, ..
            } => {
                authority_usage(&mut params, 0);
                let in_site = matches!(issuer, Issuer::Site(_));
                params.name_constraints = constraints(subtrees, in_site);
            }
            Subject::Leaf {
                party,
                dns,
                addresses,
            } => {
                params.is_ca = IsCa::ExplicitNoCa;
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                params.extended_key_usages = usages(party);
                params.subject_alt_names = vec![SanType::DnsName(dns.as_str().try_into()?)];
                let addresses = addresses.iter().copied().map(SanType::IpAddress);
                params.subject_alt_names.extend(addresses);
            }
        }
        Ok(params)
    }

    /// Common names hold 64 characters at most (X.520), DNS names up to 253: the first label is
    /// enough, since nobody here takes an identity from it.
    fn common_name(&self) -> String {
        match &self.subject {
            Subject::Root { domain } => cut(&format!("Holdfast root {domain}")),
            Subject::Issuer { issuer, holder, .. } => {
                cut(&format!("Holdfast {} {holder}", issuer.label()))
            }
            Subject::Leaf { dns, .. } => cut(dns.split('.').next().unwrap_or_default()),
        }
    }
}

const COMMON_NAME_CHARS: usize = 64;

fn cut(name: &str) -> String {
    name.chars().take(COMMON_NAME_CHARS).collect()
}

fn authority_usage(params: &mut CertificateParams, below: u8) {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
}

/// Servers answer and call; all others only call.
fn usages(party: &Party) -> Vec<ExtendedKeyUsagePurpose> {
    match party {
        Party::Gateway { .. } | Party::Cloud { .. } => {
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ]
        }
        _ => vec![ExtendedKeyUsagePurpose::ClientAuth],
    }
}

/// Sites are on private networks; the cloud's own servers may stand at any address.
fn constraints(subtrees: &[String], in_site: bool) -> Option<NameConstraints> {
    if subtrees.is_empty() {
        return None;
    }
    let names = subtrees.iter().cloned().map(GeneralSubtree::DnsName);
    let networks = PRIVATE.iter().filter(|_| in_site).map(|(address, prefix)| {
        GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, *prefix))
    });
    Some(NameConstraints {
        permitted_subtrees: names.chain(networks).collect(),
        excluded_subtrees: Vec::new(),
    })
}

/// Addresses that no one else on the Internet answers at: RFC 1918, link local, loopback, and the
/// same of IPv6.
const PRIVATE: [(IpAddr, u8); 8] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
];

/// Whether a site's intermediate may certify `address`.
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    PRIVATE
        .iter()
        .any(|(network, prefix)| match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX << (32 - u32::from(*prefix));
                u32::from(*network) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX << (128 - u32::from(*prefix));
                u128::from(*network) & mask == u128::from(address) & mask
            }
            _ => false,
        })
}

/// 9999-12-30: the last day that X.509 can write.
const LAST_MOMENT: u64 = 253_402_128_000;
