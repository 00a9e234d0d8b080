//! `[certificates]`: how long what this server certifies lives. Read by the configuration, handed to the
//! authority when it is opened.

use std::time::Duration;

use holdfast_config::{Section, Settings};
use holdfast_cps::Lives;

/// No life is shorter: clocks and renewals need their time.
const SHORTEST: Duration = Duration::from_secs(3600);

/// `[certificates]`: lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificates {
    /// Of devices, their services and ordinary clients.
    pub device: Duration,
    /// Of the gateway itself.
    pub own: Duration,
    /// How long after its end one may still be renewed by its holder.
    pub grace: Duration,
    /// How old the site's own authority grows before it is renewed, the cloud being in reach.
    pub authority_renewal: Duration,
}

impl Default for Certificates {
    fn default() -> Self {
        let lives = Lives::default();
        Self {
            device: lives.leaf,
            own: lives.server,
            grace: lives.grace,
            authority_renewal: lives.issuer_renewal,
        }
    }
}

impl Certificates {
    /// Puts them in the place of the defaults.
    pub fn fill(&self, lives: &mut Lives) {
        lives.leaf = self.device;
        lives.server = self.own;
        lives.grace = self.grace;
        lives.issuer_renewal = self.authority_renewal;
    }
}

impl Settings for Certificates {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            device: life(section, "device", default.device),
            own: life(section, "own", default.own),
            grace: life(section, "grace", default.grace),
            authority_renewal: life(section, "authority_renewal", default.authority_renewal),
        }
    }
}

fn life(section: &mut Section<'_>, key: &'static str, default: Duration) -> Duration {
    section.get_checked(key, default, |value| match *value < SHORTEST {
        true => Err((
            "is shorter than an hour".to_owned(),
            "write \"1h\" or more".to_owned(),
        )),
        false => Ok(()),
    })
}
