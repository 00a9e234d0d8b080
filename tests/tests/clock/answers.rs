//! Renewal between the real agent and two real servers in one process, when answers are lost, requests come late and
//! in another order, and the servers hear of each other in between: whatever happens, the device holds a certificate
//! that is accepted. Lives are of days, and the time goes on.

mod servers;

use std::time::Duration;

use holdfast_agent::renewal::{Ordered, Renewal};
use holdfast_agent::vault::{Identity, Staged, Vault};
use holdfast_cps::authority::Request;
use holdfast_link::random::SystemRandom;
use holdfast_link::time::{SystemClock, SystemTrust};
use holdfast_link::tls::Anchors;
use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::crypto::{HashAlg, HmacSecret, SigningKey, hash};
use holdfast_protocol::csr;
use holdfast_protocol::id::{DeviceId, Guid};
use holdfast_protocol::name::Party;
use holdfast_protocol::rv::{Instruction, RendezvousInfo};
use holdfast_protocol::site_module::{ServerAddress, ServerRole, SiteConfig};
use tempfile::TempDir;

use servers::{Defect, Fate, Pair};

/// Renewals that a server gives to one device at once, less what setting things right may take.
const MOST_RENEWALS: usize = 4;
/// Attempts of one device, at the most.
const MOST_ROUNDS: usize = 12;

/// A device in its folder.
struct Device {
    folder: TempDir,
}

impl Device {
    /// One that the gateway of the pair onboarded.
    async fn new(pair: &Pair, number: u8) -> Self {
        let (folder, key) = (
            tempfile::tempdir().unwrap(),
            SigningKey::generate(&mut SystemRandom),
        );
        let device = DeviceId::from_guid(Guid([number; 16]));
        let site: holdfast_protocol::id::SiteId = servers::SITE.parse().unwrap();
        let party = Party::Device {
            device,
            site: site.clone(),
        };
        let authority = pair.gateway.cps.authority();
        let csr = csr::request("x", &key);
        let request = Request {
            party,
            csr: &csr,
            addresses: Vec::new(),
        };
        let issued = authority.issue(request).await.unwrap();
        let credential = DeviceCredential {
            guid: Guid([number; 16]),
            rendezvous: RendezvousInfo::new(vec![vec![Instruction::Dns("rv.example".into())]])
                .unwrap(),
            hmac_secret: HmacSecret::generate(&mut SystemRandom),
            owner_key_hash: hash(HashAlg::Sha256, b"owner"),
            device_info: "thermometer".into(),
            key: SigningKey::generate(&mut SystemRandom),
        };
        let roles = [
            (&pair.gateway, ServerRole::Gateway),
            (&pair.cloud, ServerRole::Cloud),
        ];
        let servers = roles.map(|(server, role)| ServerAddress {
            server: server.cps.config().server.clone(),
            role,
            name: server.name(),
            mqtt: Vec::new(),
            https: vec![server.address.clone()],
        });
        let config = SiteConfig {
            device,
            site,
            domain: pair.cloud.cps.config().domain.clone(),
            server: pair.gateway.cps.config().server.clone(),
            anchors: authority.anchors().unwrap(),
            chain: issued.chain.clone(),
            notice_keys: vec![key.public()],
            servers: servers.to_vec(),
            time: pair.gateway.cps.clock().certain(),
        };
        let identity = Identity {
            key,
            certificate: issued.leaf,
            site: config,
        };
        let vault = Vault::new(folder.path());
        vault.create(credential.clone()).unwrap();
        let staged = Staged {
            credential,
            identity,
        };
        vault.stage(staged).unwrap();
        vault.commit().unwrap();
        Self { folder }
    }

    fn certificate(&self) -> Vec<u8> {
        let contents = Vault::new(self.folder.path()).load().unwrap();
        contents.identity.unwrap().certificate
    }

    /// What the agent does in one go, as after a start: tries what is left over, or renews and tries.
    async fn renew(&self) -> Result<(), String> {
        let state = self.folder.path();
        let vault = Vault::new(state);
        let identity = vault.load().unwrap().identity.unwrap();
        let clock = SystemClock::open(&state.join("clock"), SystemTrust::Hint).unwrap();
        let renewal = Renewal {
            vault,
            state: state.to_path_buf(),
            identity,
            wish: holdfast_protocol::renewal::Wish::default(),
            ordered: Ordered::of(state),
            sessions: std::sync::Arc::default(),
            own_sessions: 0,
            met: Anchors::none(),
            clock: std::sync::Arc::new(clock),
            connect_timeout: Duration::from_secs(10),
        };
        renewal.once().await
    }

    /// Everything that is still on its way comes, the servers have heard of each other, and the device asks again: it
    /// ends with a certificate that both accept.
    async fn comes_out_well(&self, pair: &Pair) -> Result<(), String> {
        pair.all_comes(Fate::Passes);
        for server in [&pair.gateway, &pair.cloud] {
            server.late_ones_come().await;
        }
        pair.sync().await;
        // What was tried may be over: then another takes its place, and is tried after a pause.
        if self.renew().await.is_err() {
            self.renew().await?;
        }
        pair.sync().await;
        let own = self.certificate();
        for server in [&pair.gateway, &pair.cloud] {
            server.accepts(&own)?;
        }
        Ok(())
    }
}

/// Runs devices one after the other through whatever the dice say; how many were locked out.
async fn adventures(defect: Defect, devices: u8, seed: u64) -> usize {
    let pair = Pair::new(defect, seed).await;
    let mut lost = 0;
    for number in 1..=devices {
        let device = Device::new(&pair, number).await;
        pair.sync().await;
        pair.begin();
        for _ in 0..MOST_ROUNDS {
            pair.dice_are_cast();
            let _ = device.renew().await;
            if pair.die(3) == 0 {
                pair.sync().await;
            }
            if pair.die(2) == 0 {
                pair.gateway.late_ones_come().await;
            }
            if pair.die(4) == 0 {
                pair.cloud.late_ones_come().await;
            }
            pair.time_goes_on();
            if pair.renewals() >= MOST_RENEWALS {
                break;
            }
        }
        if let Err(why) = device.comes_out_well(&pair).await {
            if defect == Defect::None {
                panic!("device {number} of seed {seed}: {why}");
            }
            lost += 1;
        }
    }
    lost
}

#[tokio::test]
async fn no_order_of_lost_and_late_answers_locks_a_device_out() {
    assert_eq!(adventures(Defect::None, 20, 1).await, 0);
}

#[tokio::test]
async fn control_a_server_that_voids_the_old_with_the_answer_is_found() {
    let lost = adventures(Defect::VoidsAtOnce, 6, 2).await;
    assert!(lost > 0);
}

/// A confirmation that the gateway gets when the device has long been at the cloud and renewed there.
async fn a_confirmation_comes_very_late(defect: Defect) -> Result<(), String> {
    let pair = Pair::new(defect, 3).await;
    let device = Device::new(&pair, 1).await;
    pair.sync().await;
    pair.gateway.script([Fate::Passes, Fate::ComesLate]);
    pair.cloud.script([Fate::Passes]);
    device.renew().await.unwrap();
    let second = device.certificate();
    pair.gateway.script([Fate::NeverComes]);
    pair.cloud.script([Fate::Passes, Fate::NeverComes]);
    // The gateway has nothing to say of the trial, and nor has the cloud yet.
    pair.gateway.all_comes(Fate::NeverComes);
    device.renew().await.unwrap_err();
    pair.sync().await;
    pair.cloud.script([Fate::Passes]);
    device.renew().await.unwrap();
    assert_ne!(device.certificate(), second);
    device.comes_out_well(&pair).await
}

#[tokio::test]
async fn a_confirmation_that_comes_when_all_is_over_voids_nothing_that_is_in_use() {
    a_confirmation_comes_very_late(Defect::None).await.unwrap();
}

#[tokio::test]
async fn control_a_late_confirmation_that_voids_all_others_is_found() {
    let late = a_confirmation_comes_very_late(Defect::VoidsAllOthers).await;
    late.unwrap_err();
}

/// The old one is void since the confirmation came, though its answer was lost; then the server is in trouble and refuses
/// everybody. What the device tried is all that it has, and it keeps it.
#[tokio::test]
async fn what_a_server_in_trouble_refuses_is_kept() {
    let pair = Pair::new(Defect::None, 4).await;
    let device = Device::new(&pair, 1).await;
    pair.sync().await;
    pair.cloud.all_comes(Fate::NeverComes);
    pair.gateway.script([Fate::Passes, Fate::AnswerLost]);
    device.renew().await.unwrap_err();
    pair.gateway.all_comes(Fate::IsRefused);
    for _ in 0..3 {
        device.renew().await.unwrap_err();
    }
    let old = device.certificate();
    pair.gateway.accepts(&old).unwrap_err();
    device.comes_out_well(&pair).await.unwrap();
}
