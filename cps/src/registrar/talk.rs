//! The ServiceInfo part of TO2, owner's side: `holdfast.site` and `fdo.csr`. Driven by the
//! registrar, one turn at a time. A device that speaks neither is onboarded without a certificate;
//! one that speaks `fdo.csr` alone gets one without having stated its key.

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::fdo::service_info::{Item, Outbox};
use holdfast_protocol::fdo::to2::{OwnerSession, OwnerTurn};
use holdfast_protocol::fdo::{Error, Message, MessageType};
use holdfast_protocol::id::ServerId;
use holdfast_protocol::name::Party;
use holdfast_protocol::site_module::{CSR_MODULE, MODULE, SiteFault, Statement, csr_der, csr_text};
use holdfast_protocol::wire::cbor::{self, Kind, Reader};
use rand_core::CryptoRng;

use super::{About, Registrar};
use crate::authority::{AuthorityError, Request};

/// Longest value read of these modules.
const MAX_VALUE: usize = 16 * 1024;
/// Turns in which a device may say nothing of use before we end the talk.
const PATIENCE: u32 = 16;

const HERE: MessageType = MessageType::To2DeviceServiceInfo;

/// What was said so far.
#[derive(Debug)]
pub(crate) struct Talk {
    nonce: [u8; 16],
    outbox: Outbox,
    /// Which modules the device speaks, once it has told.
    begun: Option<Modules>,
    statement: Option<(Statement, Vec<u8>)>,
    request: Option<Vec<u8>>,
    certified: Option<VerifyingKey>,
    told: Vec<ServerId>,
    stored: bool,
    idle: u32,
}

#[derive(Clone, Copy, Debug)]
struct Modules {
    site: bool,
    csr: bool,
}

impl Talk {
    pub(crate) fn new(rng: &mut dyn CryptoRng) -> Self {
        let mut nonce = [0; 16];
        rng.fill_bytes(&mut nonce);
        Self {
            nonce,
            outbox: Outbox::default(),
            begun: None,
            statement: None,
            request: None,
            certified: None,
            told: Vec::new(),
            stored: false,
            idle: 0,
        }
    }

    /// The key certified in this run.
    pub(crate) fn cps_key(&self) -> Option<VerifyingKey> {
        self.certified.clone()
    }

    /// Servers beside us that the device was told of.
    pub(crate) fn told(&self) -> &[ServerId] {
        &self.told
    }

    /// The device's statement as it signed it.
    pub(crate) fn into_statement(self) -> Option<Vec<u8>> {
        self.statement.map(|(_, signed)| signed)
    }

    /// Hears the device and answers.
    pub(crate) async fn answer(
        &mut self,
        owner: &Registrar,
        about: &About,
        mut turn: OwnerTurn,
    ) -> Result<(OwnerSession, Message), Error> {
        let items = turn.take_items();
        // A device that listens to a long answer is not idle.
        let waiting = items.is_empty() && self.outbox.is_empty();
        self.idle = if waiting { self.idle + 1 } else { 0 };
        for item in &items {
            self.hear(owner, about, item)?;
        }
        if !turn.device_has_more() {
            if self.begun.is_none() {
                let devmod = turn.devmod();
                let modules = Modules {
                    site: devmod.speaks(MODULE),
                    csr: devmod.speaks(CSR_MODULE),
                };
                self.begin(modules, owner.core.config.server.as_str())?;
            }
            self.certify(owner, about).await?;
        }
        let finished = self.is_finished();
        Ok(turn.answer(&mut self.outbox, finished, &mut SystemRandom))
    }

    /// The statement will name this server, so the device is told its id before the nonce.
    fn begin(&mut self, modules: Modules, server: &str) -> Result<(), Error> {
        self.begun = Some(modules);
        if modules.site {
            self.push(MODULE, "active", cbor::encode(|w| _ = w.bool(true)))?;
            self.push(MODULE, "server", cbor::encode(|w| _ = w.text(server)))?;
            let nonce = self.nonce;
            self.push(MODULE, "nonce", cbor::encode(|w| _ = w.bytes(&nonce)))?;
        }
        if modules.csr {
            self.push(CSR_MODULE, "active", cbor::encode(|w| _ = w.bool(true)))?;
        }
        Ok(())
    }

    fn hear(&mut self, owner: &Registrar, about: &About, item: &Item) -> Result<(), Error> {
        match (item.module.as_str(), item.message.as_str()) {
            (MODULE, "active") | (CSR_MODULE, "active") => self.hear_active(item),
            (MODULE, "statement") => self.hear_statement(owner, about, item),
            (MODULE, "done") => {
                self.stored = true;
                Ok(())
            }
            (CSR_MODULE, "simpleenroll-req") => {
                let der = csr_der(&text_or_bytes(&item.value)?).map_err(|_| check("fdo.csr"))?;
                self.request = Some(der);
                Ok(())
            }
            // Modules are the device's own business; what we did not ask for is let pass.
            _ => Ok(()),
        }
    }

    /// A device may take back what it announced.
    fn hear_active(&mut self, item: &Item) -> Result<(), Error> {
        let active = Reader::new(&item.value)
            .and_then(|mut r| r.bool())
            .map_err(malformed)?;
        if let (Some(modules), false) = (&mut self.begun, active) {
            match item.module.as_str() {
                MODULE => modules.site = false,
                _ => modules.csr = false,
            }
        }
        Ok(())
    }

    fn hear_statement(
        &mut self,
        owner: &Registrar,
        about: &About,
        item: &Item,
    ) -> Result<(), Error> {
        if self.statement.is_some() {
            // The certificate may be out already, for the key that was stated first.
            return Err(check("a second statement"));
        }
        let signed = unwrapped(&item.value)?;
        let key = about
            .voucher
            .device_key()
            .ok_or(Error::Own("no device key"))?;
        let statement = Statement::verify(&signed, key).map_err(|fault: SiteFault| {
            tracing::warn!(device = %about.device, %fault, "statement refused");
            check("statement")
        })?;
        if statement.guid != about.row.guid {
            return Err(check("guid in the statement"));
        }
        if statement.server != owner.core.config.server {
            return Err(check("server in the statement"));
        }
        if statement.nonce != self.nonce {
            return Err(check("nonce in the statement"));
        }
        self.statement = Some((statement, signed));
        Ok(())
    }

    /// Issues the certificate once all that is needed was said.
    async fn certify(&mut self, owner: &Registrar, about: &About) -> Result<(), Error> {
        let site = self.begun.is_some_and(|modules| modules.site);
        let Some(csr) = &self.request else {
            return Ok(());
        };
        if self.certified.is_some() || (site && self.statement.is_none()) {
            return Ok(());
        }
        let party = Party::Device {
            device: about.device,
            site: about.row.site.clone(),
        };
        let wanted = holdfast_protocol::csr::Csr::parse(csr)?.key().clone();
        if let Some((statement, _)) = &self.statement
            && statement.cps_key != wanted
        {
            return Err(check("key of the request is not the stated one"));
        }
        let issued = owner
            .authority
            .issue(Request {
                party,
                csr,
                addresses: Vec::new(),
            })
            .await
            .map_err(|error| not_issued(about, error))?;
        let text = csr_text(&issued.leaf);
        self.push(
            CSR_MODULE,
            "simpleenroll-res",
            cbor::encode(|w| _ = w.text(&text)),
        )?;
        if site {
            let config = owner
                .devices
                .site_config(about.device, &about.row.site, issued.chain)
                .map_err(|error| not_issued(about, error))?;
            let own = &owner.core.config.server;
            let others = config.servers.iter().map(|server| &server.server);
            self.told = others.filter(|server| *server != own).cloned().collect();
            let config = config.to_cbor();
            self.push(MODULE, "config", cbor::encode(|w| _ = w.bytes(&config)))?;
        }
        self.certified = Some(issued.key);
        Ok(())
    }

    fn is_finished(&self) -> bool {
        let Some(modules) = self.begun else {
            return false;
        };
        let done = match modules {
            Modules { site: true, .. } => self.stored,
            Modules { csr: true, .. } => self.certified.is_some(),
            Modules { .. } => true,
        };
        done || self.idle > PATIENCE
    }

    fn push(&mut self, module: &str, message: &str, value: Vec<u8>) -> Result<(), Error> {
        self.outbox
            .push(module, message, value)
            .map_err(|_| Error::Own("outbox"))
    }
}

fn not_issued(about: &About, error: AuthorityError) -> Error {
    tracing::warn!(device = %about.device, %error, "no certificate issued");
    match error {
        AuthorityError::Csr(fault) => Error::Csr(fault),
        _ => Error::Own("authority"),
    }
}

/// A text or byte string's content.
fn text_or_bytes(value: &[u8]) -> Result<Vec<u8>, Error> {
    let mut r = Reader::new(value).map_err(malformed)?;
    match r.kind() {
        Kind::Text => Ok(r.text(MAX_VALUE).map_err(malformed)?.as_bytes().to_vec()),
        _ => Ok(r.bytes(MAX_VALUE).map_err(malformed)?.to_vec()),
    }
}

/// A signed item, bare or wrapped into a byte string.
fn unwrapped(value: &[u8]) -> Result<Vec<u8>, Error> {
    let mut r = Reader::new(value).map_err(malformed)?;
    match r.kind() {
        Kind::Bytes => Ok(r.bytes(MAX_VALUE).map_err(malformed)?.to_vec()),
        _ => Ok(value.to_vec()),
    }
}

fn malformed(fault: cbor::CborError) -> Error {
    Error::Malformed {
        message: HERE,
        fault,
    }
}

fn check(what: &'static str) -> Error {
    Error::Check {
        message: HERE,
        what,
    }
}
