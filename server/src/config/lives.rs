//! `[certificates]`: how long what a server certifies lives. Read as a part of each binary's own section,
//! handed to the authority when it is opened.

use std::time::Duration;

use holdfast_config::Section;

/// No life is shorter: clocks and renewals need their time.
const SHORTEST: Duration = Duration::from_secs(3600);

/// The keys of `[certificates]` that both servers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// Of devices, their services and ordinary clients.
    pub device: Duration,
    /// Of the server itself.
    pub own: Duration,
    /// How long after its end one may still be renewed by its holder.
    pub grace: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        let lives = holdfast_cps::Lives::default();
        Self {
            device: lives.leaf,
            own: lives.server,
            grace: lives.grace,
        }
    }
}

impl Lives {
    /// Reads them out of a section that may have keys beside them.
    #[must_use]
    pub fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            device: life(section, "device", default.device),
            own: life(section, "own", default.own),
            grace: life(section, "grace", default.grace),
        }
    }

    /// Puts them in the place of the defaults.
    pub fn fill(&self, lives: &mut holdfast_cps::Lives) {
        lives.leaf = self.device;
        lives.server = self.own;
        lives.grace = self.grace;
    }
}

/// A life of a certificate: an hour or more.
pub fn life(section: &mut Section<'_>, key: &'static str, default: Duration) -> Duration {
    section.get_checked(key, default, |value| match *value < SHORTEST {
        true => Err((
            "is shorter than an hour".to_owned(),
            "write \"1h\" or more".to_owned(),
        )),
        false => Ok(()),
    })
}
