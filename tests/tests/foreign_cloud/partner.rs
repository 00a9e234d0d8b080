//! The partner's broker: a stock mosquitto that keeps nothing on disk, behind a link that can be cut.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_tests::place::local_socket;
use holdfast_tests::process::{Process, wait_until};
use holdfast_tests::proxy::Proxy;

use crate::authority::{Authority, SERVER, USER};

/// Everything of the partner.
pub(crate) struct Partner {
    pub(crate) folder: PathBuf,
    pub(crate) authority: Authority,
    /// The link to it.
    pub(crate) link: Proxy,
    /// Where the gateway dials.
    pub(crate) near: SocketAddr,
    /// Where the partner's own programs connect: no TLS, no link between.
    pub(crate) inside: SocketAddr,
    process: Option<Process>,
}

impl Partner {
    pub(crate) async fn new(folder: &Path) -> Self {
        let folder = folder.join("partner");
        std::fs::create_dir(&folder).unwrap();
        let authority = Authority::new("partner");
        authority.write(&folder.join("ca.pem"));
        authority.certify(&folder, "server", SERVER);
        authority.certify(&folder, "client", USER);
        let (far, inside) = (local_socket().unwrap(), local_socket().unwrap());
        let mut link = Proxy::new();
        let near = link.wire(local_socket().unwrap(), far).await.unwrap();
        let at = |file: &str| folder.join(file).display().to_string();
        // As root it would give up its rights and could not read its own files here.
        let conf = format!(
            "user root\npersistence false\nmax_queued_messages 0\nset_tcp_nodelay true\n\
             log_type all\nlog_dest stderr\nper_listener_settings true\n\
             listener {} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
             use_identity_as_username true\nacl_file {}\n\
             listener {} 127.0.0.1\nallow_anonymous true\n",
            far.port(),
            at("ca.pem"),
            at("server.pem"),
            at("server.key"),
            at("acl"),
            inside.port(),
        );
        std::fs::write(folder.join("mosquitto.conf"), conf).unwrap();
        let partner = Self {
            folder,
            authority,
            link,
            near,
            inside,
            process: None,
        };
        partner.allow(&["site-7/#", "orders/site-7/#"]);
        partner
    }

    /// Sets what our gateway may do there; a running broker must be told by [`Self::reload`].
    pub(crate) fn allow(&self, topics: &[&str]) {
        let rules = topics
            .iter()
            .map(|topic| format!("topic readwrite {topic}\n"));
        let acl = format!("user {USER}\n{}", rules.collect::<String>());
        std::fs::write(self.folder.join("acl"), acl).unwrap();
    }

    /// What our gateway's configuration says of it.
    pub(crate) fn as_toml(&self, more: &str) -> String {
        format!(
            "[[remote]]\nname = \"partner\"\naddress = [\"{}\"]\nserver_name = \"{SERVER}\"\n\
             ca = \"partner/ca.pem\"\ncertificate = \"partner/client.pem\"\n\
             key = \"partner/client.key\"\n{more}\n",
            self.near
        )
    }

    pub(crate) async fn start(&mut self) {
        let mosquitto = Path::new("/usr/sbin/mosquitto");
        let conf = self.folder.join("mosquitto.conf").display().to_string();
        let log = self.folder.join("mosquitto.log");
        let words = ["-c", conf.as_str()];
        self.process = Some(Process::start("mosquitto", mosquitto, &words, &log).unwrap());
        let inside = self.inside;
        let is_up = || std::net::TcpStream::connect(inside).is_ok();
        wait_until("mosquitto", Duration::from_secs(10), is_up)
            .await
            .unwrap();
    }

    /// It forgets everything.
    pub(crate) async fn kill_nine(&mut self) {
        self.process.take().unwrap().kill_nine().await.unwrap();
    }

    /// It reads its access list again.
    pub(crate) fn reload(&self) {
        let id = self.process.as_ref().and_then(Process::id).unwrap();
        let id = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::HUP).unwrap();
    }

    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(self.folder.join("mosquitto.log")).unwrap_or_default()
    }
}
