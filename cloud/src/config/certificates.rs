//! `[certificates]` of the cloud: what both servers have, and the life of a site's authority.

use std::time::Duration;

use holdfast_config::{Section, Settings};
use holdfast_server::config::{Lives, life};

/// `[certificates]`: lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificates {
    /// Those that gateways have as well; `own` is, at first, that of gateways too.
    pub lives: Lives,
    /// Of a site's authority: for so long may the site be offline.
    pub site: Duration,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            lives: Lives::default(),
            site: holdfast_cps::Lives::default().issuer,
        }
    }
}

impl Certificates {
    /// Puts them in the place of the defaults.
    pub fn fill(&self, lives: &mut holdfast_cps::Lives) {
        self.lives.fill(lives);
        lives.issuer = self.site;
    }
}

impl Settings for Certificates {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            lives: Lives::read(section),
            site: life(section, "site", Self::default().site),
        }
    }
}
