//! What device and owner say to each other inside TO2's tunnel, the device's side: `devmod`,
//! `holdfast.site`, `fdo.csr`, `holdfast.lan`.
//!
//! Driven by `onboard`, value by value. Pure: it neither sends nor stores. What the owner gives is
//! checked before it is believed to be an identity: the certificate must be for the key made here,
//! name this device, and lead to the anchors that came along.

use holdfast_link::tls::{self, Anchors};
use holdfast_protocol::certificate::Purpose;
use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::csr;
use holdfast_protocol::fdo::service_info::{DevMod, Item, Outbox, OutboxFull};
use holdfast_protocol::id::{DeviceId, ServerId};
use holdfast_protocol::lan_module::{self, Network, NetworkFault};
use holdfast_protocol::name::Party;
use holdfast_protocol::site_module::{
    CSR_MODULE, MODULE, SiteConfig, SiteFault, Statement, csr_der, csr_text,
};
use holdfast_protocol::time::Time;
use holdfast_protocol::wire::cbor::{self, CborError, Kind, Reader};
use rand_core::CryptoRng;

use crate::vault::Identity;

/// Longest value read.
const MAX_VALUE: usize = 64 << 10;
/// Longest id as text.
const MAX_ID: usize = 80;

/// Why the talk led to no identity.
#[derive(Debug, thiserror::Error)]
pub enum TalkFault {
    /// A value that is not what it should be.
    #[error("the owner sent something unreadable as {what}: {fault}")]
    Malformed {
        /// The key it came under.
        what: String,
        /// What is wrong.
        fault: CborError,
    },
    /// The site's configuration or the certificate's text is none.
    #[error("the owner sent no usable site: {0}")]
    Site(#[from] SiteFault),
    /// The LAN's credentials are none.
    #[error("the installer sent no usable network: {0}")]
    Network(#[from] NetworkFault),
    /// It issues no certificate.
    #[error("the owner refused a certificate (fdo.csr error {0}): see its log")]
    CertificateRefused(u64),
    /// The certificate is not ours, or not by whom the owner says.
    #[error("the owner's certificate for us is not acceptable: {0}")]
    BadCertificate(String),
    /// It ended without making us a device of a site.
    #[error(
        "the owner ended the onboarding without giving a site and a certificate: it is not a Holdfast server, or the device is assigned to no site"
    )]
    NoSite,
    /// More to say than fits.
    #[error(transparent)]
    Full(#[from] OutboxFull),
}

/// What was said so far.
#[derive(Debug)]
pub(super) struct Talk {
    credential: DeviceCredential,
    /// The CPS key, new for this run.
    key: SigningKey,
    outbox: Outbox,
    server: Option<ServerId>,
    nonce: Option<[u8; 16]>,
    stated: bool,
    certificate: Option<Vec<u8>>,
    config: Option<SiteConfig>,
    stored: bool,
    network: Option<Network>,
    paired: bool,
}

impl Talk {
    /// Begins with what every device tells first.
    pub(super) fn new(
        credential: &DeviceCredential,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, TalkFault> {
        let mut outbox = Outbox::default();
        devmod(credential).push_to(&mut outbox)?;
        Ok(Self {
            credential: credential.clone(),
            key: SigningKey::generate(rng),
            outbox,
            server: None,
            nonce: None,
            stated: false,
            certificate: None,
            config: None,
            stored: false,
            network: None,
            paired: false,
        })
    }

    /// What waits to be sent.
    pub(super) fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Takes one value of the owner.
    pub(super) fn hear(&mut self, item: &Item) -> Result<(), TalkFault> {
        let what = || format!("{}:{}", item.module, item.message);
        let malformed = |fault| TalkFault::Malformed {
            what: what(),
            fault,
        };
        match (item.module.as_str(), item.message.as_str()) {
            (MODULE | CSR_MODULE | lan_module::MODULE, "active") => {
                self.answer_active(&item.module, true)?
            }
            // A module that was not announced.
            (module, "active") => self.answer_active(module, false)?,
            (MODULE, "server") => {
                let text = read_text(&item.value).map_err(malformed)?;
                self.server = Some(text.parse().map_err(SiteFault::Id)?);
            }
            (MODULE, "nonce") => {
                let mut r = Reader::new(&item.value).map_err(malformed)?;
                self.nonce = Some(r.bytes_exact().map_err(malformed)?);
            }
            (MODULE, "config") => {
                let bytes = read_bytes(&item.value).map_err(malformed)?;
                self.config = Some(SiteConfig::from_cbor(&bytes)?);
            }
            (lan_module::MODULE, "network") => {
                self.network = Some(Network::from_value(&item.value)?);
            }
            (CSR_MODULE, "simpleenroll-res") => {
                let text = read_bytes(&item.value).map_err(malformed)?;
                self.certificate = Some(csr_der(&text)?);
            }
            (CSR_MODULE, "error") => {
                let code = Reader::new(&item.value).and_then(|mut r| r.uint());
                return Err(TalkFault::CertificateRefused(code.map_err(malformed)?));
            }
            _ => tracing::debug!(key = what(), "the owner said something we do not use"),
        }
        self.state()
    }

    /// The identity, once certificate and site are there and fit together; given once.
    pub(super) fn take_identity(&mut self, now: Time) -> Result<Option<Identity>, TalkFault> {
        let (Some(certificate), Some(site)) = (&self.certificate, &self.config) else {
            return Ok(None);
        };
        if self.stored {
            return Ok(None);
        }
        check_certificate(certificate, site, &self.key, now)?;
        Ok(Some(Identity {
            key: self.key.clone(),
            certificate: certificate.clone(),
            site: site.clone(),
        }))
    }

    /// The identity is stored: tells the owner so.
    pub(super) fn stored(&mut self) -> Result<(), TalkFault> {
        self.stored = true;
        self.push(MODULE, "done", &cbor::encode(|w| _ = w.bool(true)))
    }

    /// The LAN's credentials that came; given once.
    pub(super) fn take_network(&mut self) -> Option<Network> {
        self.network.take()
    }

    /// They are kept: tells the owner so.
    pub(super) fn paired(&mut self) -> Result<(), TalkFault> {
        self.paired = true;
        let value = cbor::encode(|w| _ = w.bool(true));
        self.push(lan_module::MODULE, "applied", &value)
    }

    /// Whether LAN credentials came out of the talk.
    pub(super) fn is_paired(&self) -> bool {
        self.paired
    }

    /// Whether an identity came out of the talk.
    pub(super) fn is_stored(&self) -> bool {
        self.stored
    }

    /// States who the device is and asks for the certificate, once both sides are named.
    fn state(&mut self) -> Result<(), TalkFault> {
        let (Some(server), Some(nonce), false) = (&self.server, self.nonce, self.stated) else {
            return Ok(());
        };
        let guid = self.credential.guid;
        let cps_key = self.key.public();
        let statement = Statement {
            guid,
            cps_key,
            server: server.clone(),
            nonce,
        };
        let signed = statement.sign(&self.credential.key);
        self.stated = true;
        self.push(MODULE, "statement", &signed)?;
        let name = DeviceId::from_guid(guid);
        let request = csr_text(&csr::request(name.as_str(), &self.key));
        self.push(
            CSR_MODULE,
            "simpleenroll-req",
            &cbor::encode(|w| _ = w.text(&request)),
        )
    }

    fn answer_active(&mut self, module: &str, active: bool) -> Result<(), TalkFault> {
        self.push(module, "active", &cbor::encode(|w| _ = w.bool(active)))
    }

    fn push(&mut self, module: &str, message: &str, value: &[u8]) -> Result<(), TalkFault> {
        Ok(self.outbox.push(module, message, value.to_vec())?)
    }
}

fn devmod(credential: &DeviceCredential) -> DevMod {
    DevMod {
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: credential.device_info.clone(),
        serial: None,
        sep: "/".to_owned(),
        bin: std::env::consts::ARCH.to_owned(),
        modules: [MODULE, CSR_MODULE, lan_module::MODULE]
            .map(str::to_owned)
            .to_vec(),
    }
}

fn read_text(value: &[u8]) -> Result<String, CborError> {
    Ok(Reader::new(value)?.text(MAX_ID)?.to_owned())
}

/// The content of a byte or text string.
fn read_bytes(value: &[u8]) -> Result<Vec<u8>, CborError> {
    let mut r = Reader::new(value)?;
    match r.kind() {
        Kind::Text => Ok(r.text(MAX_VALUE)?.as_bytes().to_vec()),
        _ => Ok(r.bytes(MAX_VALUE)?.to_vec()),
    }
}

/// A device that took any certificate would find out at its first connection, and could not go
/// back then.
/// Whether a certificate is the device's own, over this key, and leads to the anchors that came along.
pub(crate) fn check_certificate(
    certificate: &[u8],
    site: &SiteConfig,
    key: &SigningKey,
    now: Time,
) -> Result<(), TalkFault> {
    let bad = |why: String| TalkFault::BadCertificate(why);
    let leaf =
        holdfast_protocol::certificate::Leaf::inspect(certificate, &site.domain, Purpose::Client)
            .map_err(|fault| bad(fault.to_string()))?;
    if leaf.key != key.public() {
        return Err(bad("it is for another key".into()));
    }
    let expected = Party::Device {
        device: site.device,
        site: site.site.clone(),
    };
    if leaf.party != expected {
        return Err(bad(format!("it names {}", leaf.dns)));
    }
    let anchors = Anchors::new(site.anchors.iter().cloned()).map_err(|e| bad(e.to_string()))?;
    // The owner's own time is the best there is before the first connection.
    let time = if site.time.secs > now.secs {
        site.time
    } else {
        now
    };
    let above: Vec<_> = site.chain.iter().map(|der| der.as_slice().into()).collect();
    let leaf_der = certificate.into();
    tls::verify_chain(
        &leaf_der,
        &above,
        &anchors,
        tls::Purpose::Client,
        None,
        time,
    )
    .map_err(|fault| bad(fault.to_string()))
}
