//! `[[remote]]`: brokers of others that bridge rules lead to or from.
//!
//! Read by [`super::Config`], used by [`crate::bridge::foreign`]. Secrets are named by their files,
//! which are opened here to find every fault at once; what they hold is not kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_config::bounds::between;
use holdfast_config::{HostPort, Section, Settings};
use rustls::pki_types::ServerName;

use crate::bridge::credentials::{self, FileFault};

/// The name by which rules mean the Holdfast cloud.
pub const CLOUD: &str = "cloud";
/// Longest client id that every broker must take is 23; most take far more.
const MAX_CLIENT_ID: usize = 1024;

/// One broker of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// By which rules name it.
    pub name: String,
    /// Where it is reached, best first.
    pub address: Vec<HostPort>,
    /// The DNS name or IP address that its certificate must bear.
    pub server_name: String,
    /// PEM file of the authorities that its certificate may come from.
    pub ca: PathBuf,
    /// Who we are, if it asks for a certificate.
    pub identity: Option<Identity>,
    /// Who we are, if it asks for a user.
    pub login: Option<Login>,
    /// Which MQTT it speaks.
    pub version: Version,
    /// Left out: site and gateway.
    pub client_id: Option<String>,
    /// The longest silence promised to it.
    pub keep_alive: Duration,
}

/// The files of our certificate chain (leaf first) and its key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// User name, and the file of the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// Its first line counts.
    pub password_file: Option<PathBuf>,
}

/// Which MQTT is spoken with a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// 5, and 3.1.1 if the remote does not take that.
    #[default]
    Auto,
    /// 5 only.
    Five,
    /// 3.1.1 only.
    Three,
}

impl Remote {
    /// Every file that the connection depends on.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let identity = self.identity.iter();
        let identity = identity.flat_map(|it| [it.certificate.as_path(), it.key.as_path()]);
        let password = self.login.iter();
        let password = password.filter_map(|it| it.password_file.as_deref());
        std::iter::once(self.ca.as_path())
            .chain(identity)
            .chain(password)
    }

    /// Whether both names mean the same broker.
    pub(super) fn is_same_broker(&self, other: &Self) -> bool {
        self.address.iter().any(|one| other.address.contains(one))
    }
}

impl Settings for Remote {
    fn read(section: &mut Section<'_>) -> Self {
        let name = read_name(section);
        let address: Vec<HostPort> = section.required("address", Vec::new());
        if address.is_empty() {
            let remedy = "write one or more, such as [\"broker.example.com:8883\"]";
            section.fault("address", "names no address", remedy);
        }
        let first = address.first().map(|one| one.host.clone());
        let server_name = section.get("server_name", first.unwrap_or_default());
        if !server_name.is_empty() && ServerName::try_from(server_name.as_str()).is_err() {
            let remedy = "write the DNS name or IP address in the broker's certificate";
            section.fault("server_name", "cannot be verified", remedy);
        }
        let keep_alive = section.get_checked("keep_alive", Duration::from_secs(30), |time| {
            between(*time, Duration::from_secs(2), Duration::from_secs(65_535))
        });
        Self {
            name,
            address,
            server_name,
            ca: read_ca(section),
            identity: read_identity(section),
            login: read_login(section),
            version: read_version(section),
            client_id: read_client_id(section),
            keep_alive,
        }
    }
}

fn read_name(section: &mut Section<'_>) -> String {
    let name: String = section.required("name", String::new());
    if name == CLOUD {
        let remedy = "that name means the Holdfast cloud; choose another";
        section.fault("name", "is taken", remedy);
    } else if !name.is_empty() && name.parse::<holdfast_protocol::id::ClientName>().is_err() {
        let remedy = "use lower-case letters, digits and hyphens, at most 63";
        section.fault("name", "cannot name a remote", remedy);
    }
    name
}

fn read_ca(section: &mut Section<'_>) -> PathBuf {
    let Some(ca) = section.path("ca") else {
        section.required("ca", PathBuf::from("missing"));
        return PathBuf::new();
    };
    note(section, "ca", credentials::roots(&ca).err());
    ca
}

fn read_identity(section: &mut Section<'_>) -> Option<Identity> {
    match (section.path("certificate"), section.path("key")) {
        (Some(certificate), Some(key)) => {
            let fault = credentials::identity(&certificate, &key).err();
            let at_fault = fault.as_ref().map(|fault| fault.concerns(&certificate));
            let key_name = match at_fault {
                Some(true) => "certificate",
                _ => "key",
            };
            note(section, key_name, fault);
            Some(Identity { certificate, key })
        }
        (None, None) => None,
        (Some(_), None) => {
            let remedy = "add key = ..., the PEM file of the certificate's private key";
            section.fault("certificate", "has no key beside it", remedy);
            None
        }
        (None, Some(_)) => {
            let remedy = "add certificate = ..., the PEM file of the chain";
            section.fault("key", "has no certificate beside it", remedy);
            None
        }
    }
}

fn read_login(section: &mut Section<'_>) -> Option<Login> {
    let user: Option<String> = section.optional("user");
    let password_file = section.path("password_file");
    if user.as_deref().is_some_and(|user| user.contains('\0')) {
        section.fault("user", "holds a zero byte", "write it as plain text");
    }
    if let Some(path) = &password_file {
        note(section, "password_file", credentials::password(path).err());
        if user.is_none() {
            let remedy = "add user = ..., or leave the password out";
            section.fault("password_file", "has no user beside it", remedy);
        }
    }
    user.map(|user| Login {
        user,
        password_file,
    })
}

fn read_version(section: &mut Section<'_>) -> Version {
    match section.get("version", "auto".to_owned()).as_str() {
        "auto" => Version::Auto,
        "5" => Version::Five,
        "3.1.1" => Version::Three,
        _ => {
            let remedy = "write \"auto\", \"5\" or \"3.1.1\"";
            section.fault("version", "is no MQTT that is spoken here", remedy);
            Version::Auto
        }
    }
}

fn read_client_id(section: &mut Section<'_>) -> Option<String> {
    let id: Option<String> = section.optional("client_id");
    if let Some(id) = &id
        && (id.is_empty() || id.len() > MAX_CLIENT_ID || id.contains('\0'))
    {
        let remedy = "write 1 to 1024 characters, or leave it out";
        section.fault("client_id", "cannot be a client id", remedy);
    }
    id
}

fn note(section: &mut Section<'_>, key: &'static str, fault: Option<FileFault>) {
    if let Some(FileFault { what, remedy, .. }) = fault {
        section.fault(key, &what, &remedy);
    }
}
