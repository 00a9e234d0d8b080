//! The register and the servers of services as these tests plan them.

use std::collections::BTreeSet;

use holdfast_disk::fault::Recorder;
use holdfast_protocol::lifecycle::{Credential, Outcome};
use holdfast_protocol::record::Serial;

/// The other side: what it was asked, and how it shall answer.
#[derive(Default)]
pub(super) struct Plant {
    pub(super) asked: Vec<&'static str>,
    pub(super) tried: Vec<String>,
    /// Services whose server refuses.
    pub(super) broken: BTreeSet<String>,
    /// Requests that get no answer, so many.
    pub(super) silent: usize,
    /// The answer to a device that polls.
    pub(super) polled: Option<Vec<u8>>,
    pub(super) credentials: Vec<Credential>,
    /// Certificates of services that are good.
    pub(super) accepted: Vec<Serial>,
    /// What was good, and how far the device's disk was when it changed.
    pub(super) past: Vec<(usize, Vec<Serial>)>,
    pub(super) disk: Option<Recorder>,
    /// The planted fault: the old one is void as soon as another is given out.
    pub(super) is_hasty: bool,
}

impl Plant {
    pub(super) fn accept(&mut self, serials: Vec<Serial>) {
        let at = self.disk.as_ref().map_or(0, Recorder::position);
        self.past.push((at, serials.clone()));
        self.accepted = serials;
    }

    pub(super) fn give_out(&mut self, serial: Serial) {
        let kept = if self.is_hasty {
            Vec::new()
        } else {
            self.accepted.clone()
        };
        self.accept(kept.into_iter().chain([serial]).collect());
    }

    pub(super) fn note(&mut self, serial: &Serial, outcome: Outcome) {
        let mut good = self.accepted.clone();
        match outcome {
            Outcome::Runs => good.retain(|one| one == serial),
            Outcome::RolledBack => good.retain(|one| one != serial),
            Outcome::Ended => good.clear(),
        }
        self.accept(good);
    }
}
