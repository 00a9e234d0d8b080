//! TO2 as the device: checks the whole voucher against its credential before it proves itself.

mod talk;

pub use talk::DeviceTurn;

use rand_core::CryptoRng;

use talk::Talk;

use super::{
    HEADER_OWNER_KEY, HEADER_PROVE_DEVICE, KEX, MAX_EXCHANGE, MAX_HEADER, MAX_MESSAGE, Tunnel,
    blame, read_nonce,
};
use crate::credential::DeviceCredential;
use crate::crypto::{AeadSuite, EcdhParameter, EcdhSecret, Hash, HmacSecret, Mac, hmac};
use crate::fdo::message::{Message, MessageType, Nonce, read_body};
use crate::fdo::service_info::{Inbox, MAX_MTU};
use crate::fdo::to1::{self, To1d};
use crate::fdo::{Error, eat};
use crate::id::Guid;
use crate::key::PublicKey;
use crate::rv::RendezvousInfo;
use crate::voucher::{ChainWalk, DEFAULT_MAX_ENTRIES, Entry, Header};
use crate::wire::cbor;
use crate::wire::cose::{Headers, Sign1};

/// What the device decides about a session.
#[derive(Debug, Clone)]
pub struct Options {
    /// What TO1 gave; its signature must be of the owner that TO2 proves. None only where the
    /// rendezvous info tells to go to the owner directly.
    pub to1d: Option<To1d>,
    /// Cipher of the tunnel.
    pub suite: AeadSuite,
    /// Whether the owner may leave the credential as it is.
    pub allow_reuse: bool,
    /// Largest ServiceInfo message that the device accepts.
    pub max_service_info: u16,
    /// Most voucher entries that the device walks.
    pub max_entries: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to1d: None,
            suite: AeadSuite::A256Gcm,
            allow_reuse: false,
            max_service_info: MAX_MTU,
            max_entries: DEFAULT_MAX_ENTRIES,
        }
    }
}

/// Starts TO2.
pub fn start(
    credential: &DeviceCredential,
    options: Options,
    rng: &mut dyn CryptoRng,
) -> (DeviceSession, Message) {
    let nonce = Nonce::generate(rng);
    let body = cbor::encode(|w| {
        w.array(6)
            .uint(MAX_MESSAGE)
            .bytes(&credential.guid.0)
            .bytes(&nonce.0);
        w.text(KEX).int(options.suite.number());
        to1::encode_sig_info(w, credential.key.public().curve());
    });
    let run = Box::new(Run {
        credential: credential.clone(),
        options,
    });
    let state = State::ProveOvHdr(ExpectProveOvHdr {
        nonce,
        hello: body.clone(),
    });
    (
        DeviceSession { run, state },
        Message::new(MessageType::To2HelloDevice, body),
    )
}

/// Parts of a session that stay the same in all its states.
#[derive(Debug)]
struct Run {
    credential: DeviceCredential,
    options: Options,
}

/// The device's side of one session after message 60. [`DeviceSession::step`] is the only way on.
#[derive(Debug)]
pub struct DeviceSession {
    run: Box<Run>,
    state: State,
}

#[derive(Debug)]
enum State {
    ProveOvHdr(ExpectProveOvHdr),
    NextEntry(Box<ExpectNextEntry>),
    SetupDevice(Box<ExpectSetupDevice>),
    Ready(Box<Talk>),
    ServiceInfo(Box<Talk>),
    Done2(Box<Talk>),
}

/// What a step gave.
#[derive(Debug)]
pub enum DeviceStep {
    /// Send the message and wait for the next.
    Continue(DeviceSession, Message),
    /// The owner spoke, or the device may speak first: go on by [`DeviceTurn::next`].
    ServiceInfo(DeviceTurn),
    /// The session ended well; a replacement given by the last turn is valid now.
    Finished,
}

impl DeviceSession {
    /// The only message due now.
    pub fn expects(&self) -> MessageType {
        match self.state {
            State::ProveOvHdr(_) => MessageType::To2ProveOvHdr,
            State::NextEntry(_) => MessageType::To2OvNextEntry,
            State::SetupDevice(_) => MessageType::To2SetupDevice,
            State::Ready(_) => MessageType::To2OwnerServiceInfoReady,
            State::ServiceInfo(_) => MessageType::To2OwnerServiceInfo,
            State::Done2(_) => MessageType::To2Done2,
        }
    }

    /// Seals another text than the session would (for tests of the owner).
    #[cfg(test)]
    pub(super) fn seal(&self, kind: MessageType, body: &[u8], rng: &mut dyn CryptoRng) -> Message {
        let tunnel = match &self.state {
            State::SetupDevice(state) => &state.tunnel,
            State::Ready(talk) | State::ServiceInfo(talk) | State::Done2(talk) => &talk.tunnel,
            other => panic!("no tunnel in {other:?}"),
        };
        tunnel.seal(kind, body, rng)
    }

    /// Takes the next message. After an error there is no session any more.
    pub fn step(self, message: &Message, rng: &mut dyn CryptoRng) -> Result<DeviceStep, Error> {
        match self.state {
            State::ProveOvHdr(state) => state.step(self.run, message),
            State::NextEntry(state) => state.step(self.run, message, rng),
            State::SetupDevice(state) => state.step(self.run, message, rng),
            State::Ready(talk) => talk.begin(self.run, message),
            State::ServiceInfo(talk) => talk.hear(self.run, message),
            State::Done2(talk) => talk.finish(message),
        }
    }
}

/// Waits for the owner's proof.
#[derive(Debug)]
struct ExpectProveOvHdr {
    nonce: Nonce,
    /// Message 60 as sent; the owner hashes it.
    hello: Vec<u8>,
}

/// Content of message 61.
struct ProveOvHdr<'a> {
    header: &'a [u8],
    entries: u8,
    mac: Mac,
    nonce: Nonce,
    exchange: &'a [u8],
    hello_hash: Hash,
}

impl ExpectProveOvHdr {
    fn step(self, run: Box<Run>, message: &Message) -> Result<DeviceStep, Error> {
        let kind = MessageType::To2ProveOvHdr;
        let failed = |what| Error::Check {
            message: kind,
            what,
        };
        let proof = Sign1::parse(message.expect(kind)?).map_err(blame(kind))?;
        let headers = proof.unprotected();
        let nonce_prove_device = read_nonce(headers.get(HEADER_PROVE_DEVICE), kind)?;
        let key = headers
            .get(HEADER_OWNER_KEY)
            .ok_or(failed("owner key is missing"))?;
        let owner = PublicKey::parse(key).map_err(|fault| Error::Key {
            message: kind,
            fault,
        })?;
        proof.verify(owner.key()).map_err(blame(kind))?;
        let content = read_prove_ov_hdr(proof.payload())?;
        if content.nonce != self.nonce {
            return Err(failed("nonce"));
        }
        if !content.hello_hash.matches(&[&self.hello]) {
            return Err(failed("hash of HelloDevice"));
        }
        let header = check_header(&run.credential, &content)?;
        let entries = usize::from(content.entries);
        if entries == 0 || entries > run.options.max_entries {
            return Err(failed("number of entries"));
        }
        let exchange =
            EcdhParameter::parse(content.exchange).map_err(|fault| blame(kind)(fault.into()))?;
        let walk = ChainWalk::new(&header, &content.mac);
        let state = State::NextEntry(Box::new(ExpectNextEntry {
            next: 0,
            entries,
            walk,
            proven: Proven {
                owner,
                header,
                mac: content.mac,
                exchange,
                nonce_prove_device,
            },
        }));
        Ok(DeviceStep::Continue(
            DeviceSession { run, state },
            get_next_entry(0),
        ))
    }
}

fn read_prove_ov_hdr(payload: &[u8]) -> Result<ProveOvHdr<'_>, Error> {
    read_body(MessageType::To2ProveOvHdr, payload, |r| {
        r.array(8)?;
        let (header, entries, mac) = (r.bytes(MAX_HEADER)?, r.small()?, Mac::decode(r)?);
        let nonce = Nonce(r.bytes_exact()?);
        to1::read_sig_info(r)?;
        let (exchange, hello_hash) = (r.bytes(MAX_EXCHANGE)?, Hash::decode(r)?);
        r.uint()?;
        Ok(ProveOvHdr {
            header,
            entries,
            mac,
            nonce,
            exchange,
            hello_hash,
        })
    })
}

/// The header must be the one of this device's voucher: HMAC, GUID and first owner agree with the
/// credential.
fn check_header(credential: &DeviceCredential, content: &ProveOvHdr<'_>) -> Result<Header, Error> {
    let failed = |what| Error::Check {
        message: MessageType::To2ProveOvHdr,
        what,
    };
    content
        .mac
        .verify(&credential.hmac_secret, content.header)
        .map_err(|_| failed("HMAC of the voucher header"))?;
    let header = Header::parse(content.header)?;
    if header.guid() != credential.guid {
        return Err(failed("GUID"));
    }
    if !credential
        .owner_key_hash
        .matches(&[header.manufacturer().as_bytes()])
    {
        return Err(failed("hash of the first owner's key"));
    }
    Ok(header)
}

fn get_next_entry(number: usize) -> Message {
    let body = cbor::encode(|w| _ = w.array(1).uint(number as u64));
    Message::new(MessageType::To2GetOvNextEntry, body)
}

/// What the owner proved so far.
#[derive(Debug)]
struct Proven {
    owner: PublicKey,
    header: Header,
    mac: Mac,
    exchange: EcdhParameter,
    nonce_prove_device: Nonce,
}

/// Walks the voucher's entries up to the key that signed message 61.
#[derive(Debug)]
struct ExpectNextEntry {
    next: usize,
    entries: usize,
    walk: ChainWalk,
    proven: Proven,
}

impl ExpectNextEntry {
    fn step(
        mut self: Box<Self>,
        run: Box<Run>,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<DeviceStep, Error> {
        let kind = MessageType::To2OvNextEntry;
        let (number, entry) = message.read(kind, |r| {
            r.array(2)?;
            Ok((r.small::<u8>()?, r.raw()?))
        })?;
        if usize::from(number) != self.next {
            return Err(Error::Check {
                message: kind,
                what: "number of the entry",
            });
        }
        self.walk.step(&Entry::parse(entry, self.next)?)?;
        self.next += 1;
        if self.next < self.entries {
            let reply = get_next_entry(self.next);
            let state = State::NextEntry(self);
            return Ok(DeviceStep::Continue(DeviceSession { run, state }, reply));
        }
        if !self.walk.owner().same_key(&self.proven.owner) {
            return Err(Error::Check {
                message: kind,
                what: "the last owner is another key",
            });
        }
        if let Some(to1d) = &run.options.to1d {
            to1d.verify(self.proven.owner.key(), MessageType::To1RvRedirect)?;
        }
        Ok(prove_device(self.proven, run, rng))
    }
}

/// The owner is proven: answers 64 with the device's own proof, and opens the tunnel.
fn prove_device(proven: Proven, run: Box<Run>, rng: &mut dyn CryptoRng) -> DeviceStep {
    let secret = EcdhSecret::generate(rng);
    let nonce_setup_device = Nonce::generate(rng);
    let claim = cbor::encode(|w| _ = w.array(1).bytes(&secret.parameter().to_bytes()));
    let headers = Headers::default().with(
        eat::HEADER_NONCE,
        cbor::encode(|w| _ = w.bytes(&nonce_setup_device.0)),
    );
    let DeviceCredential { guid, key, .. } = &run.credential;
    let proof = eat::sign(*guid, proven.nonce_prove_device, Some(&claim), headers, key);
    let suite = run.options.suite;
    let tunnel = Tunnel::new(suite, &secret.agree_as_device(&proven.exchange, suite));
    let reply = Message::new(MessageType::To2ProveDevice, proof.as_bytes().to_vec());
    let state = ExpectSetupDevice {
        tunnel,
        nonce_setup_device,
        proven,
    };
    let state = State::SetupDevice(Box::new(state));
    DeviceStep::Continue(DeviceSession { run, state }, reply)
}

/// Waits for what becomes of the credential.
#[derive(Debug)]
struct ExpectSetupDevice {
    tunnel: Tunnel,
    nonce_setup_device: Nonce,
    proven: Proven,
}

impl ExpectSetupDevice {
    fn step(
        self: Box<Self>,
        run: Box<Run>,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<DeviceStep, Error> {
        let kind = MessageType::To2SetupDevice;
        let body = self.tunnel.open(message, kind)?;
        let setup = Sign1::parse(&body).map_err(blame(kind))?;
        setup.verify(self.proven.owner.key()).map_err(blame(kind))?;
        let (rendezvous, guid, nonce, owner) = read_body(kind, setup.payload(), |r| {
            r.array(4)?;
            let rendezvous = RendezvousInfo::decode(r)?;
            Ok((
                rendezvous,
                Guid(r.bytes_exact()?),
                Nonce(r.bytes_exact()?),
                r.raw()?,
            ))
        })?;
        let owner = PublicKey::parse(owner).map_err(|fault| Error::Key {
            message: kind,
            fault,
        })?;
        if nonce != self.nonce_setup_device {
            return Err(Error::Check {
                message: kind,
                what: "nonce",
            });
        }
        let keeps = guid == run.credential.guid
            && rendezvous == run.credential.rendezvous
            && owner.same_key(&self.proven.owner);
        if keeps && !run.options.allow_reuse {
            return Err(Error::ReuseRefused);
        }
        let replacement =
            (!keeps).then(|| replace(&run.credential, &self.proven, guid, rendezvous, &owner, rng));
        let body = cbor::encode(|w| {
            w.array(2);
            match &replacement {
                Some((_, mac)) => mac.encode(w),
                None => _ = w.null(),
            }
            w.uint(run.options.max_service_info.min(MAX_MTU).into());
        });
        let reply = self
            .tunnel
            .seal(MessageType::To2DeviceServiceInfoReady, &body, rng);
        let talk = Talk {
            tunnel: self.tunnel,
            nonce_setup_device: self.nonce_setup_device,
            nonce_prove_device: self.proven.nonce_prove_device,
            replacement: replacement.map(|(credential, _)| credential),
            mtu: 0,
            inbox: Inbox::default(),
        };
        let state = State::Ready(Box::new(talk));
        Ok(DeviceStep::Continue(DeviceSession { run, state }, reply))
    }
}

/// The new credential, under a fresh secret, and the HMAC of the new voucher's header. Algorithms
/// stay those of the old voucher.
fn replace(
    old: &DeviceCredential,
    proven: &Proven,
    guid: Guid,
    rendezvous: RendezvousInfo,
    owner: &PublicKey,
    rng: &mut dyn CryptoRng,
) -> (DeviceCredential, Mac) {
    let hmac_secret = HmacSecret::generate(rng);
    let chain_hash = proven.header.chain_hash();
    let header = Header::new(
        guid,
        &rendezvous,
        proven.header.device_info(),
        owner,
        chain_hash,
    );
    let mac = hmac(proven.mac.alg(), &hmac_secret, header.as_bytes());
    let credential = DeviceCredential {
        guid,
        rendezvous,
        hmac_secret,
        owner_key_hash: owner.hash(old.owner_key_hash.alg()),
        device_info: proven.header.device_info().to_owned(),
        key: old.key.clone(),
    };
    (credential, mac)
}
