//! The registry's truth: an append-only log of signed change entries, and the folds over it.
//!
//! Every change of a site (a voucher accepted, a device onboarded, a certificate issued...) is one
//! [`Entry`], numbered without gaps by the server that made it and signed with that server's record
//! key. Tables, histories and the audit timeline are folds over entries; `cps` stores and syncs
//! them, and the cloud believes none that it cannot verify for itself ([`verify_evidence`]).
//! Nothing here stores, sends or reads a clock.
//!
//! # Numbers and order
//!
//! `seq` runs 1, 2, 3... per (site, origin, epoch); the epoch is the server's enrolment, so that a
//! restored disk shows. "What have you after my cursor" ([`Cursor`]) is the whole of sync. Order
//! needs no clock: each entry bears a `rank`, one above the highest rank that its author had seen
//! for that site, so what follows from something is ranked above it. Ties are broken by origin,
//! epoch, seq ([`Order`]); that is arbitrary but the same everywhere.
//!
//! # The rule for two-sided claims
//!
//! While the link is cut, 40 and 50 may both say something about one device. All facts are kept and
//! merging is the union of the two sets of facts ([`DeviceRecord::merge`]), so it is commutative,
//! associative and idempotent, and any order or repetition of delivery gives the same record. What
//! *holds* is computed from the whole set:
//!
//! 1. **Who owns the device now** ([`DeviceRecord::owner`]). TO2 gives the device a new GUID, so
//!    claims form chains. A claim that starts from the GUID which another one made replaces it.
//!    A claim is also replaced by a later one (epoch, seq) of the *same server from the same GUID*
//!    that is proved no less: in TO2 the device showed that it still bore that GUID, so what the
//!    server recorded before never reached it (the run was cut, or one of the two was killed).
//!    Between claims that nothing replaced: one that the device's own statement proves beats one
//!    that is only attested by the gateway, and that one beats one of a device whose manufacturer
//!    nobody knows; then the longer chain; then the higher [`Order`]. More
//!    than one such claim makes the record `contested`, which is shown: only one of them can be the
//!    state of the device, and its next TO2 settles it by rule 1.
//! 2. **Certificates.** A revocation beats every issue, whatever their order, and is never undone.
//! 3. **Clients.** The admission with the highest [`Order`] holds, as a whole.
//! 4. **Gateways.** The highest epoch of a gateway holds; lower ones are locked out.
//! 5. **Services** ([`DeviceRecord::services`]). Of orders the highest [`Order`] holds; every
//!    credential that the device was given is as good as the other. The history is all starts and ends in [`Order`]; each closes what the one before opened,
//!    so one entry ends the old service and begins the new, on whichever side it was written.
//! 6. **Listed keys** ([`Listings`]: installers, manufacturers). A key is listed if the highest round
//!    of its listings is above the highest round that a strike ended. Striking beats every listing
//!    that it, or that did not, know of; only who knows of the strike can list the key again.
//! 7. **Times.** An entry bears what its author's clock showed, and how good that was. What a later entry of
//!    the same log says of it counts ([`Change::TimeLearnt`]); the order is never changed by it.
//! 8. **Kinds of change from the future** are kept and forwarded byte for byte, and change nothing.

mod author;
mod change;
mod cursor;
mod entry;
mod evidence;
mod fold;
mod learnt;
mod listing;
mod services;

pub use author::Author;
pub use change::{Change, Evidence, MAX_SERIAL, Onboarded, Serial};
pub use cursor::{Admission, Cursor, MAX_ORIGINS, Span};
pub use entry::{Entry, EntryId, MAX_ENTRY, Order, RecordFault, SignedEntry};
pub use evidence::{EvidenceFault, Expected, Standing, verify_evidence};
pub use fold::{Certificate, Claim, ClientGrant, DeviceRecord, Enrolment, Ownership, SiteRecord};
pub use learnt::{LearntSpan, MAX_SPANS, real_time, spans_of};
pub use listing::{KeyState, ListedAs, Listing, Listings};
pub use services::{Activation, Assignment, Period, Renewed, ServiceOrder, Services};

#[cfg(test)]
mod tests;
