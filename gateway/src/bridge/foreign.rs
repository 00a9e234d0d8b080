//! A broker of somebody else at the other end: how a connection to it is made.
//!
//! Used by [`super::far`]. The files are read anew before each connection, so that a renewed
//! certificate or password needs no restart. The remote is believed by its own authority and name,
//! never by ours; nothing of ours is shown to it but the certificate written for it.

mod tls;

use std::sync::Arc;
use std::time::Duration;

use holdfast_link::dial::{DialError, Endpoint, Security};
use holdfast_link::mqtt::{self, Client, ConnectError, Granted, Inbox, Options, ReasonCode};
use holdfast_link::time::Clock;

use super::credentials::{self, FileFault, Fingerprint};
use crate::config::{Remote, Version};

/// How long a remote that keeps sessions keeps messages for a gateway that is away.
const SESSION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often a ping measures the link. Foreign brokers count traffic; ours are for the cloud.
const PING: Duration = Duration::from_secs(10);
/// A remote that answers nothing for so long is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// "Unsupported protocol version".
const OLD_SERVER: ReasonCode = ReasonCode(0x84);

/// A remote and what its last connection taught.
#[derive(Debug)]
pub(super) struct Foreign {
    remote: Remote,
    client_id: String,
    clock: Arc<dyn Clock>,
    /// It said itself that MQTT 5 is not for it.
    is_old: bool,
    /// The files of the last connection.
    files: Fingerprint,
}

/// Why there is no connection, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// A file. Blame: the operator.
    #[error(transparent)]
    File(#[from] FileFault),
    /// TLS could not be set up from these files.
    #[error("TLS cannot be set up for this remote: {0}")]
    Tls(#[from] rustls::Error),
    /// The remote or the way to it.
    #[error("{error}{hint}")]
    Connect {
        /// What happened.
        error: ConnectError,
        /// What to do about it.
        hint: &'static str,
    },
}

/// A connection that stands.
pub(super) type Connected = (Client, Inbox, Granted, mqtt::Version);

impl Foreign {
    /// `default_id` serves if the configuration has none.
    pub(super) fn new(remote: Remote, default_id: String, clock: Arc<dyn Clock>) -> Self {
        let client_id = remote.client_id.clone().unwrap_or(default_id);
        Self {
            remote,
            client_id,
            clock,
            is_old: false,
            files: Fingerprint::default(),
        }
    }

    pub(super) async fn connect(&mut self, window: u16) -> Result<Connected, Fault> {
        self.files = Fingerprint::of(self.remote.files());
        let options = self.options(window)?;
        let first = match self.remote.version {
            Version::Three => mqtt::Version::Three,
            Version::Auto if self.is_old => mqtt::Version::Three,
            Version::Auto | Version::Five => mqtt::Version::Five,
        };
        let error = match attempt(&options, first).await {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        let says_old = matches!(error, ConnectError::Refused(OLD_SERVER));
        let may_be_old = says_old || matches!(error, ConnectError::Broken(_));
        let may_retry = self.remote.version == Version::Auto && first == mqtt::Version::Five;
        // An old server may also just hang up, or answer what MQTT 5 cannot read.
        if may_retry
            && may_be_old
            && let Ok(connected) = attempt(&options, mqtt::Version::Three).await
        {
            self.is_old = says_old;
            return Ok(connected);
        }
        let hint = hint(&error);
        Err(Fault::Connect { error, hint })
    }

    fn options(&self, window: u16) -> Result<Options, Fault> {
        let remote = &self.remote;
        let roots = credentials::roots(&remote.ca)?;
        let identity = match &remote.identity {
            Some(own) => Some(credentials::identity(&own.certificate, &own.key)?),
            None => None,
        };
        let endpoint = Endpoint {
            addresses: remote.address.iter().map(ToString::to_string).collect(),
            security: Security::Tls {
                name: remote.server_name.clone(),
                config: tls::client_config(roots, identity, Arc::clone(&self.clock))?,
            },
        };
        let login = match &remote.login {
            Some(login) => Some(mqtt::Login {
                user: login.user.clone(),
                password: match &login.password_file {
                    Some(path) => credentials::password(path)?,
                    None => zeroize::Zeroizing::default(),
                },
            }),
            None => None,
        };
        Ok(Options {
            login,
            session_expiry: SESSION,
            keep_alive: remote.keep_alive,
            ping_interval: PING.min(remote.keep_alive / 2),
            ping_timeout: PING_TIMEOUT,
            window,
            ..Options::new(endpoint, self.client_id.as_str())
        })
    }

    /// Whether a file of the connection is another than when it was made, and all are good.
    pub(super) fn has_new_files(&mut self) -> bool {
        let now = Fingerprint::of(self.remote.files());
        if now == self.files {
            return false;
        }
        // Whatever is wrong is told once, and the connection that stands is kept.
        self.files = now;
        match self.options(1) {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(remote = self.remote.name, %error, "a changed file is no good; the connection stays as it is");
                false
            }
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.remote.name
    }
}

async fn attempt(options: &Options, version: mqtt::Version) -> Result<Connected, ConnectError> {
    let options = Options {
        version,
        ..options.clone()
    };
    let (client, inbox, granted) = mqtt::connect(options).await?;
    Ok((client, inbox, granted, version))
}

/// What an operator can do about it.
fn hint(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Dial(DialError::Untrusted { .. }) => {
            "; check ca, server_name and address of this remote"
        }
        ConnectError::Dial(DialError::Handshake { .. }) => {
            "; it may refuse our certificate: check certificate and key of this remote"
        }
        ConnectError::Refused(ReasonCode(0x86 | 0x87)) => {
            "; ask its operator, and check user, password_file, client_id and certificate"
        }
        // With TLS 1.3 this is how it refuses our certificate.
        ConnectError::Broken(said) if said.contains("alert") => {
            "; it refuses our certificate: check certificate and key of this remote"
        }
        ConnectError::Broken(_) => {
            "; if it asks for a certificate or speaks another version of MQTT, write that"
        }
        _ => "",
    }
}
