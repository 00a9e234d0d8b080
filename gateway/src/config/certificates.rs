//! `[certificates]` of a gateway: what both servers have, and when the site's authority is renewed.

use std::time::Duration;

use holdfast_config::{Section, Settings};
use holdfast_server::config::{Lives, life};

/// `[certificates]`: lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificates {
    /// Those that the cloud has as well.
    pub lives: Lives,
    /// How old the site's own authority grows before it is renewed, the cloud being in reach.
    pub authority_renewal: Duration,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            lives: Lives::default(),
            authority_renewal: holdfast_cps::Lives::default().issuer_renewal,
        }
    }
}

impl Certificates {
    /// Puts them in the place of the defaults.
    pub fn fill(&self, lives: &mut holdfast_cps::Lives) {
        self.lives.fill(lives);
        lives.issuer_renewal = self.authority_renewal;
    }
}

impl Settings for Certificates {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            lives: Lives::read(section),
            authority_renewal: life(section, "authority_renewal", default.authority_renewal),
        }
    }
}
