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
    /// Of this server and, at first, of gateways.
    pub own: Duration,
    /// How long after its end one may still be renewed by its holder.
    pub grace: Duration,
    /// Of a site's authority: for so long may the site be offline.
    pub site: Duration,
}

impl Default for Certificates {
    fn default() -> Self {
        let lives = Lives::default();
        Self {
            device: lives.leaf,
            own: lives.server,
            grace: lives.grace,
            site: lives.issuer,
        }
    }
}

impl Certificates {
    /// Puts them in the place of the defaults.
    pub fn fill(&self, lives: &mut Lives) {
        lives.leaf = self.device;
        lives.server = self.own;
        lives.grace = self.grace;
        lives.issuer = self.site;
    }
}

impl Settings for Certificates {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            device: life(section, "device", default.device),
            own: life(section, "own", default.own),
            grace: life(section, "grace", default.grace),
            site: life(section, "site", default.site),
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
