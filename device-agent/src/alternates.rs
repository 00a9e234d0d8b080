//! The servers that the device may use, as far as it was told of them after its onboarding (flows S14 and S52): the other
//! CPS server of the site, in signed notices.
//!
//! Hears what `connection` takes from the device's `alternate` topic. A notice counts by its signature and number: the
//! number is on the disk, with what it says, before anything follows from it, so a replayed one moves nothing, after a
//! restart either. What is told replaces the server of that id, or joins the others. It dials nobody: an address is a hint,
//! and the name in the certificate decides.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_config::secret_file;
use holdfast_protocol::notice::{Body, Gate, MAX_NOTICE, Marks, Notice, NoticeFault};
use holdfast_protocol::site_module::{ServerAddress, SiteConfig};
use holdfast_protocol::wire::cbor::{self, CborError, Reader};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::signers::Signers;

const FILE: &str = "alternates";
/// Number at the head of the file.
const FORMAT: u64 = 1;
/// Largest file.
const MAX_FILE: u64 = 256 << 10;
/// Most servers told of; a site has a gateway and a cloud.
const MOST_TOLD: usize = 8;
/// Largest list of marks and longest id.
const MAX_MARKS: usize = 64 << 10;
const MAX_ID: usize = 80;

/// The servers, now and as they change: those of the onboarding, with what was told since.
pub type Servers = watch::Receiver<Vec<ServerAddress>>;

/// The room. Clones share it.
#[derive(Debug, Clone)]
pub struct Alternates(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    site: SiteConfig,
    signers: Signers,
    kept: Kept,
    servers: watch::Sender<Vec<ServerAddress>>,
}

/// What is on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Kept {
    marks: Marks,
    told: Vec<Told>,
}

/// A server and the notice that told of it: what is read from the disk is verified again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    server: ServerAddress,
    notice: Vec<u8>,
}

/// What became of a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It changed something, and is on the disk.
    Taken,
    /// It says nothing new.
    Known,
    /// Forged, replayed, or of no use here, and why.
    Refused(String),
}

impl Alternates {
    /// In the folder `state`, for the site of the device. A damaged file is left aside: what it said is told again.
    #[must_use]
    pub fn open(state: &Path, site: &SiteConfig) -> (Self, Servers) {
        let path = state.join(FILE);
        let signers = Signers::open(state, site);
        let kept = load(&path, site, &signers).unwrap_or_else(|why| {
            warn!(
                why,
                "what the device was told of other servers cannot be read; it is told again"
            );
            Kept::default()
        });
        let (servers, watching) = watch::channel(merged(&site.servers, &kept.told));
        let inner = Inner {
            path,
            site: site.clone(),
            signers,
            kept,
            servers,
        };
        (Self(Arc::new(Mutex::new(inner))), watching)
    }

    /// By whose keys notices are believed.
    #[must_use]
    pub fn signers(&self) -> Signers {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.signers.clone()
    }

    /// Takes what claims to be a notice; durable when it returns.
    ///
    /// # Errors
    /// The disk's; nothing has changed then, and the notice comes again.
    pub fn hear(&self, payload: &[u8]) -> io::Result<Heard> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = match inner.judge(payload) {
            Ok(Some(kept)) => {
                secret_file::write(&inner.path, &encode(&inner.site, &kept))?;
                inner.kept = kept;
                inner.tell();
                Heard::Taken
            }
            Ok(None) => Heard::Known,
            Err(why) => Heard::Refused(why),
        };
        Ok(heard)
    }
}

impl Inner {
    /// What is to be kept of a notice; none if it says nothing new.
    fn judge(&self, payload: &[u8]) -> Result<Option<Kept>, String> {
        let site = &self.site;
        let keys = self.signers.trusted();
        let notice = Notice::verify(payload, &keys, &site.site, site.device);
        let notice = notice.map_err(|fault: NoticeFault| fault.to_string())?;
        let Body::Alternate(server) = &notice.body else {
            return Err("it is no notice of another server".to_owned());
        };
        let marks = match self.kept.marks.gate(&notice) {
            Gate::Store(marks) => marks,
            Gate::Repeat => return Ok(None),
            Gate::Stale => {
                return Err("it is older than one acted upon: it was replayed".to_owned());
            }
            Gate::Ignore => return Err("it is not understood here".to_owned()),
        };
        let mut told = self.kept.told.clone();
        told.retain(|known| known.server.server != server.server);
        if told.len() == MOST_TOLD {
            return Err(format!("{MOST_TOLD} other servers are known already"));
        }
        told.push(Told {
            server: server.clone(),
            notice: payload.to_vec(),
        });
        info!(server = %server.server, addresses = ?server.mqtt, "told of a server");
        Ok(Some(Kept { marks, told }))
    }

    fn tell(&self) {
        let now = merged(&self.site.servers, &self.kept.told);
        self.servers.send_if_modified(|known| {
            let changed = *known != now;
            known.clone_from(&now);
            changed
        });
    }
}

/// What was told later replaces what was told at the onboarding.
fn merged(onboarding: &[ServerAddress], told: &[Told]) -> Vec<ServerAddress> {
    let told: Vec<_> = told.iter().map(|one| &one.server).collect();
    let newer = |known: &ServerAddress| told.iter().find(|one| one.server == known.server);
    let mut all: Vec<_> = onboarding
        .iter()
        .map(|known| (*newer(known).unwrap_or(&known)).clone())
        .collect();
    let is_new = |one: &&&ServerAddress| all.iter().all(|known| known.server != one.server);
    let added: Vec<_> = told
        .iter()
        .filter(is_new)
        .map(|one| (*one).clone())
        .collect();
    all.extend(added);
    all
}

/// `[format, site, marks bstr, [notice bstr...]]`
fn encode(site: &SiteConfig, kept: &Kept) -> Vec<u8> {
    cbor::encode(|w| {
        w.array(4).uint(FORMAT).text(site.site.as_str());
        w.bytes(&kept.marks.to_cbor()).array(kept.told.len());
        kept.told.iter().for_each(|told| _ = w.bytes(&told.notice));
    })
}

/// What is kept of this site; nothing if there is no file, or one of another site.
fn load(path: &Path, site: &SiteConfig, signers: &Signers) -> Result<Kept, String> {
    let bytes = match std::fs::metadata(path) {
        Ok(found) if found.len() > MAX_FILE => return Err("it is too long".to_owned()),
        Ok(_) => std::fs::read(path),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => decode(&bytes, site, signers).map_err(|fault| fault.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error(transparent)]
    Cbor(#[from] CborError),
    #[error(transparent)]
    Notice(#[from] NoticeFault),
}

fn decode(bytes: &[u8], site: &SiteConfig, signers: &Signers) -> Result<Kept, Damage> {
    let mut r = Reader::new(bytes)?;
    r.array(4)?;
    if r.uint()? != FORMAT {
        return Err(CborError::Value("format").into());
    }
    let ours = r.text(MAX_ID)? == site.site.as_str();
    let marks = Marks::from_cbor(r.bytes(MAX_MARKS)?)?;
    let mut told = Vec::new();
    for _ in 0..r.array_len(MOST_TOLD)? {
        told.push(r.bytes(MAX_NOTICE)?.to_vec());
    }
    r.end()?;
    if !ours {
        return Ok(Kept::default());
    }
    // It was believed when it was stored; the key may have given way since.
    let keys = signers.ever();
    let read = |notice: Vec<u8>| {
        let read = Notice::verify(&notice, &keys, &site.site, site.device)?;
        Ok(match read.body {
            Body::Alternate(server) => Some(Told { server, notice }),
            _ => None,
        })
    };
    let told: Result<Vec<_>, Damage> = told.into_iter().map(read).collect();
    let told = told?.into_iter().flatten().collect();
    Ok(Kept { marks, told })
}

#[cfg(test)]
mod tests {
    use holdfast_link::random::SystemRandom;
    use holdfast_protocol::crypto::SigningKey;
    use holdfast_protocol::id::{DeviceId, Guid};
    use holdfast_protocol::notice::Stamp;
    use holdfast_protocol::site_module::ServerRole;
    use holdfast_protocol::time::{Time, TimeQuality};

    use super::*;

    fn server(id: &str, port: u16) -> ServerAddress {
        ServerAddress {
            server: id.parse().unwrap(),
            role: if id == "cloud" {
                ServerRole::Cloud
            } else {
                ServerRole::Gateway
            },
            name: format!("{id}.example"),
            mqtt: vec![format!("10.0.0.1:{port}")],
            https: Vec::new(),
        }
    }

    fn site(key: &SigningKey) -> SiteConfig {
        SiteConfig {
            device: DeviceId::from_guid(Guid([0xab; 16])),
            site: "plant".parse().unwrap(),
            domain: "holdfast.internal".parse().unwrap(),
            server: "gw1".parse().unwrap(),
            anchors: Vec::new(),
            chain: Vec::new(),
            notice_keys: vec![key.public()],
            servers: vec![server("gw1", 1)],
            time: Time::new(1_800_000_000, TimeQuality::Authenticated),
        }
    }

    fn notice(seq: u64, server: ServerAddress) -> Notice {
        Notice {
            issuer: "gw1".parse().unwrap(),
            site: "plant".parse().unwrap(),
            device: DeviceId::from_guid(Guid([0xab; 16])),
            stamp: Stamp { epoch: 1, seq },
            body: Body::Alternate(server),
        }
    }

    #[test]
    fn what_is_told_joins_or_replaces_and_outlives_a_restart() {
        let (folder, key) = (
            tempfile::tempdir().unwrap(),
            SigningKey::generate(&mut SystemRandom),
        );
        let (alternates, servers) = Alternates::open(folder.path(), &site(&key));
        assert_eq!(*servers.borrow(), [server("gw1", 1)]);
        let hear = |seq, server| alternates.hear(&notice(seq, server).sign(&key)).unwrap();
        assert_eq!(hear(1, server("cloud", 2)), Heard::Taken);
        assert_eq!(hear(1, server("cloud", 2)), Heard::Known);
        assert_eq!(hear(2, server("gw1", 3)), Heard::Taken);
        let both = [server("gw1", 3), server("cloud", 2)];
        assert_eq!(*servers.borrow(), both);
        let (again, servers) = Alternates::open(folder.path(), &site(&key));
        assert_eq!(*servers.borrow(), both);
        let old = again
            .hear(&notice(1, server("cloud", 9)).sign(&key))
            .unwrap();
        assert!(matches!(old, Heard::Refused(why) if why.contains("replayed")));
        // Of another site nothing is kept.
        let elsewhere = SiteConfig {
            site: "dock".parse().unwrap(),
            ..site(&key)
        };
        let (_, servers) = Alternates::open(folder.path(), &elsewhere);
        assert_eq!(*servers.borrow(), [server("gw1", 1)]);
    }

    #[test]
    fn forged_replayed_and_misdirected_notices_move_nothing() {
        let (folder, key) = (
            tempfile::tempdir().unwrap(),
            SigningKey::generate(&mut SystemRandom),
        );
        let (alternates, servers) = Alternates::open(folder.path(), &site(&key));
        let forger = SigningKey::generate(&mut SystemRandom);
        let good = notice(5, server("cloud", 2));
        let mut flipped = good.sign(&key);
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let other = Notice {
            device: DeviceId::from_guid(Guid([1; 16])),
            ..good.clone()
        };
        let end = Notice {
            body: Body::ServiceEnd { rank: 1 },
            ..good.clone()
        };
        assert_eq!(alternates.hear(&good.sign(&key)).unwrap(), Heard::Taken);
        let kept = std::fs::read(folder.path().join(FILE)).unwrap();
        let stale = notice(4, server("cloud", 9)).sign(&key);
        for bad in [
            good.sign(&forger),
            flipped,
            other.sign(&key),
            end.sign(&key),
            Vec::new(),
            stale,
        ] {
            assert!(matches!(alternates.hear(&bad).unwrap(), Heard::Refused(_)));
        }
        for n in 0..20 {
            let crowd = notice(6 + n, server(&format!("s{n}"), 1)).sign(&key);
            let heard = alternates.hear(&crowd).unwrap();
            assert_eq!(heard == Heard::Taken, n < MOST_TOLD as u64 - 1, "{n}");
        }
        assert_eq!(servers.borrow().len(), 1 + MOST_TOLD);
        // Damaged, it begins anew: it is told again.
        std::fs::write(folder.path().join(FILE), &kept[..kept.len() - 1]).unwrap();
        let (_, servers) = Alternates::open(folder.path(), &site(&key));
        assert_eq!(servers.borrow().len(), 1);
    }

    #[test]
    fn a_disk_that_refuses_changes_nothing() {
        let (folder, key) = (
            tempfile::tempdir().unwrap(),
            SigningKey::generate(&mut SystemRandom),
        );
        let nowhere = folder.path().join("gone");
        let (alternates, servers) = Alternates::open(&nowhere, &site(&key));
        let told = notice(1, server("cloud", 2)).sign(&key);
        alternates.hear(&told).unwrap_err();
        assert_eq!(servers.borrow().len(), 1);
        std::fs::create_dir(&nowhere).unwrap();
        assert_eq!(alternates.hear(&told).unwrap(), Heard::Taken);
        assert_eq!(servers.borrow().len(), 2);
    }
}
