//! A partner outside our house: an authority of its own and a stock mosquitto as broker, to which gateways bridge.
//! Called by the story and by tests. It keeps nothing on disk and knows nothing of Holdfast.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::Process;
use crate::seat::Seat;

/// The name in the broker's certificate, which is in no DNS.
pub const SERVER: &str = "broker.partner.example";
/// The name in our gateway's certificate, which the broker takes for the user.
pub const USER: &str = "harbour";
/// The partner's own reader.
pub const WATCHER: &str = "watcher";
/// For the broker to listen.
const READY: Duration = Duration::from_secs(10);

/// An authority of the world outside.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// No key can be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// Writes `<stem>.pem` and `<stem>.key` for a bearer of these names, DNS names or addresses, the first of which is
    /// the common name; no extended key usage, as many authorities of plants do it.
    ///
    /// # Errors
    /// A name is none, or a file cannot be written.
    pub fn certify(&self, folder: &Path, stem: &str, names: &[&str]) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let all = names.iter().map(|name| (*name).to_owned());
        let mut params = CertificateParams::new(all.collect::<Vec<_>>())?;
        let first = names.first().context("a bearer has a name")?;
        params.distinguished_name.push(DnType::CommonName, *first);
        let leaf = params.signed_by(&key, &self.issuer)?;
        replace(&folder.join(format!("{stem}.pem")), &leaf.pem())?;
        replace(&folder.join(format!("{stem}.key")), &key.serialize_pem())
    }

    /// Writes the authority's own certificate.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        replace(path, &self.pem)
    }
}

/// The partner's broker and its files.
#[derive(Debug)]
pub struct Partner {
    /// Where its files are.
    pub folder: PathBuf,
    /// Who certifies there.
    pub authority: Authority,
    /// Where it listens, with TLS and client certificates.
    pub tls: SocketAddr,
    /// Where the partner's own programs connect, on the broker's own loopback: no TLS.
    pub inside: SocketAddr,
    seat: Seat,
    process: Option<Process>,
}

impl Partner {
    /// A partner with its files in `folder`, a broker at `seat`, not yet started.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn new(
        folder: &Path,
        seat: Seat,
        tls: SocketAddr,
        inside: SocketAddr,
    ) -> anyhow::Result<Self> {
        let folder = folder.join("partner");
        std::fs::create_dir(&folder)?;
        let authority = Authority::new("partner")?;
        authority.write(&folder.join("ca.pem"))?;
        let address = tls.ip().to_string();
        authority.certify(&folder, "server", &[SERVER, &address])?;
        authority.certify(&folder, "client", &[USER])?;
        let at = |file: &str| folder.join(file).display().to_string();
        // As root it would give up its rights and could not read its own files here.
        let conf = format!(
            "user root\npersistence false\nmax_queued_messages 0\nset_tcp_nodelay true\n\
             log_type all\nlog_dest stderr\nper_listener_settings true\n\
             listener {} {}\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
             use_identity_as_username true\nacl_file {}\n\
             listener {} {}\nallow_anonymous true\n",
            tls.port(),
            tls.ip(),
            at("ca.pem"),
            at("server.pem"),
            at("server.key"),
            at("acl"),
            inside.port(),
            inside.ip(),
        );
        std::fs::write(folder.join("mosquitto.conf"), conf)?;
        let partner = Self {
            folder,
            authority,
            tls,
            inside,
            seat,
            process: None,
        };
        partner.allow(&["site-7/#", "orders/site-7/#"])?;
        Ok(partner)
    }

    /// Sets what our gateway may do there; a running broker must be told by [`Self::reload`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn allow(&self, topics: &[&str]) -> anyhow::Result<()> {
        let rules = topics.iter();
        let rules: String = rules
            .map(|topic| format!("topic readwrite {topic}\n"))
            .collect();
        let acl = format!("user {USER}\n{rules}user {WATCHER}\ntopic read #\n");
        std::fs::write(self.folder.join("acl"), acl)?;
        Ok(())
    }

    /// A folder with `ca.pem`, `cert.pem` and `key.pem` for the partner's own reader.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn watcher(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(WATCHER);
        std::fs::create_dir_all(&folder)?;
        self.authority.certify(&folder, "cert", &[WATCHER])?;
        std::fs::rename(folder.join("cert.key"), folder.join("key.pem"))?;
        self.authority.write(&folder.join("ca.pem"))?;
        Ok(folder)
    }

    /// What our gateway's configuration says of it, when it is dialled at `near`; `more` goes into the same table.
    #[must_use]
    pub fn as_toml(&self, near: SocketAddr, more: &str) -> String {
        format!(
            "[[remote]]\nname = \"partner\"\naddress = [\"{near}\"]\nserver_name = \"{SERVER}\"\n\
             ca = \"partner/ca.pem\"\ncertificate = \"partner/client.pem\"\n\
             key = \"partner/client.key\"\n{more}\n",
        )
    }

    /// Starts the broker and waits until it listens.
    ///
    /// # Errors
    /// It cannot be started, or does not listen in time.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let mosquitto = Path::new("/usr/sbin/mosquitto");
        let conf = self.folder.join("mosquitto.conf").display().to_string();
        let log = self.folder.join("mosquitto.log");
        let words = ["-c", conf.as_str()];
        let from = std::fs::metadata(&log).map_or(0, |meta| meta.len());
        let mut process = Process::start_at(&self.seat, "mosquitto", mosquitto, &words, &log)?;
        // It opens its listeners before it says that it runs.
        process.wait_for_log(" running", from, READY).await?;
        self.process = Some(process);
        Ok(())
    }

    /// `kill -9`: it forgets everything.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_nine(&mut self) -> anyhow::Result<()> {
        let process = self.process.take();
        process.context("it does not run")?.kill_nine().await
    }

    /// It reads its access list again.
    ///
    /// # Errors
    /// It does not run.
    pub fn reload(&self) -> anyhow::Result<()> {
        let id = self.process.as_ref().and_then(Process::id);
        let id = i32::try_from(id.context("it does not run")?)?;
        kill_process(Pid::from_raw(id).context("a process id")?, Signal::HUP)?;
        Ok(())
    }

    /// All it has logged.
    #[must_use]
    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.folder.join("mosquitto.log")).unwrap_or_default()
    }
}

/// As whoever renews certificates does it: whole or not at all, and for few eyes.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(fresh, path)?;
    Ok(())
}
