//! Which credential holds after a TO2 whose end was not seen: the former one, or what that TO2 brought.
//!
//! Called by `onboard` at each round as long as something is staged. The rule: a staged credential takes
//! the former one's place only when its owner proves to hold the voucher of it. That is either the
//! owner's last message (Done2, in the tunnel of the same run), or, later, an owner that goes through
//! messages 61 to 63 under the staged credential: the header's MAC is made with a secret that only this
//! device and the owner of that run ever had, and the chain ends in the key that signs. An error message
//! proves nothing, code 6 included: whoever sits on the path could swallow Done (70), so that the owner
//! keeps the old voucher, and then deny the device under its old name; an agent that believed it would
//! throw away the one credential that works. So neither is thrown away on a word: both are tried, round
//! after round.

use holdfast_protocol::credential::DeviceCredential;
use tracing::{debug, info};

use super::{Aim, Came, Onboarding};
use crate::vault::{Identity, Staged, VaultError};

impl Onboarding {
    /// The staged identity, if its owner proves now that it holds the voucher of it.
    pub(super) async fn settle_pending(
        &self,
        holds: &DeviceCredential,
        staged: &Staged,
    ) -> Result<Option<Identity>, VaultError> {
        // The credential was kept: who proves to own it proves nothing about the run that broke off.
        if staged.credential.guid == holds.guid {
            return Ok(None);
        }
        for contact in staged.credential.rendezvous.device_contacts() {
            match self.visit(&staged.credential, &contact, Aim::Proof).await {
                Ok(Came::Proof) => {
                    info!(
                        "the owner had completed the last onboarding: going on with what it gave"
                    );
                    let identity = self.vault.commit()?.identity;
                    identity.iter().for_each(|identity| self.learn(identity));
                    return Ok(identity);
                }
                Ok(Came::Identity(_) | Came::Paired) => {}
                Err(fault) => debug!(?contact, %fault, "no owner of the staged credential here"),
            }
        }
        Ok(None)
    }
}
