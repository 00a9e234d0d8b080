//! The power is cut at each sync of a key file, and between them with any part of what was not synced
//! on the disk: whatever is left, everybody opens again and everybody meets everybody.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_disk::fault::{Image, Recorder};
use holdfast_link::time::ManualClock;
use rand_core::Rng as _;

use super::*;
use crate::authority::{FileSigner, Issuer, Signer, SignerError, Template};
use crate::{CpsConfig, Keys, Role};

/// Torn images for each sync, beside the one right after it.
const TORN: usize = 4;

/// The world before the step that is cut.
struct World {
    cloud: Served,
    gateway: Served,
    others: Vec<Member>,
}

impl World {
    /// A device of each server and a stranger, who know one root.
    async fn new() -> Self {
        let cloud = cloud().await;
        let gateway = gateway(&cloud, "north", "gw1").await;
        let root = cloud.cps.authority().anchors().unwrap().remove(0);
        let others = vec![
            device(&gateway.cps, "device of the gateway").await,
            device(&cloud.cps, "device of the cloud").await,
            stranger(&root),
        ];
        Self {
            cloud,
            gateway,
            others,
        }
    }

    async fn rotate(&self) {
        self.cloud.cps.authority().rotate_root().unwrap();
        member(&self.cloud.cps).await;
    }

    async fn follow(&self) {
        follow(&self.gateway, &self.cloud).await;
    }

    /// All whom this world knows have followed.
    async fn level(&mut self) {
        self.rotate().await;
        self.follow().await;
        self.others[0] = renewed(&self.gateway.cps, &self.others[0], "device of the gateway").await;
        self.others[1] = renewed(&self.cloud.cps, &self.others[1], "device of the cloud").await;
        let root = self.cloud.cps.authority().anchors().unwrap().remove(0);
        self.others[2] = stranger(&root);
    }

    async fn retire(&self) {
        let authority = self.cloud.cps.authority();
        let old = authority.anchors().unwrap().remove(1);
        // The log knows certificates that were never used, so it takes force here.
        let name = roots::fingerprint(&old);
        authority.retire_root(&name, true).unwrap();
        member(&self.cloud.cps).await;
    }
}

/// A server opens what the cut left of its keys, beside an empty registry: what it shows, and what it
/// certifies then.
async fn opened(image: &Image, keys: &Path, role: Role) -> Result<[Member; 2], String> {
    // In memory where there is such a folder: what is judged here has been on a disk already.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let folder = folder.unwrap();
    let at = folder.path().join("keys");
    image.put(keys, &at).unwrap();
    let is_cloud = matches!(role, Role::Cloud);
    let name = if is_cloud { "cloud" } else { "gw1" };
    let config = CpsConfig::new(server(name), "holdfast.internal".parse().unwrap(), role);
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let keys = Keys::open(&at).map_err(|error| text(&error))?;
    let clock = Arc::new(ManualClock::at(NOW));
    let opened = Cps::open(config, stores(folder.path()), keys, clock).await;
    let cps = opened.map_err(|error| text(&error))?;
    let authority = cps.authority();
    if is_cloud {
        let site = cps.add_site(&site("north")).await;
        site.map_err(|error| text(&error))?;
        authority.renew_issuers().map_err(|error| text(&error))?;
    }
    let own = authority.own_identity(&[LOCAL]).await;
    own.map_err(|error| text(&error))?;
    let both = [
        member(&cps).await,
        device(&cps, "device that comes later").await,
    ];
    // Every issuer still has the key of its chain: this server's own, for another address.
    let other = authority
        .own_identity(&["127.0.0.2".parse().unwrap()])
        .await;
    other.map_err(|error| text(&error))?;
    if is_cloud {
        // Nobody is stuck in the middle: what was ordered is done, or can be done now.
        match authority.rotate_root() {
            Ok(_) | Err(RotationError::Unfinished(_)) => {}
            Err(error) => return Err(text(&error)),
        }
    }
    Ok(both)
}

/// Counts the cuts, and names those who did not get through after one.
#[derive(Debug, Default)]
struct Tally {
    cuts: usize,
    locked_out: Vec<String>,
}

/// Judges each image of the keys of one server; the other one is as it is.
async fn judge(world: &World, disk: &Recorder, keys: &Path, (role, torn): (Role, usize)) -> Tally {
    let still = match role {
        Role::Cloud => member(&world.gateway.cps).await,
        Role::Gateway { .. } => member(&world.cloud.cps).await,
    };
    let mut images = Vec::new();
    let random = || SystemRandom.next_u64();
    disk.each_image(torn, random, |at, image| images.push((at, image)));
    let mut tally = Tally::default();
    for (at, image) in images {
        tally.cuts += 1;
        let failed = match opened(&image, keys, role.clone()).await {
            Err(error) => vec![error],
            Ok(again) => {
                let mut all = again.to_vec();
                all.push(still.clone());
                all.extend(world.others.iter().cloned());
                meet(&all)
            }
        };
        let failed = failed.into_iter().map(|why| format!("cut at {at}: {why}"));
        tally.locked_out.extend(failed);
    }
    tally
}

fn keys_of(served: &Served) -> PathBuf {
    served.folder.path().join("keys")
}

fn north() -> Role {
    Role::Gateway {
        site: site("north"),
    }
}

fn nobody(tally: &Tally) -> usize {
    assert_eq!(tally.locked_out, [] as [String; 0]);
    tally.cuts
}

/// The steps in turn; the sum of the cuts.
#[tokio::test]
async fn two_hundred_power_cuts_leave_nobody_without_an_accepted_identity() {
    let mut cuts = 0;
    let world = World::new().await;
    let (cloud, gateway) = (keys_of(&world.cloud), keys_of(&world.gateway));
    let disk = Recorder::watch(&[&cloud]).unwrap();
    world.rotate().await;
    cuts += nobody(&judge(&world, &disk, &cloud, (Role::Cloud, TORN)).await);
    let disk = Recorder::watch(&[&gateway]).unwrap();
    world.follow().await;
    cuts += nobody(&judge(&world, &disk, &gateway, (north(), TORN)).await);

    // Everybody has followed: the old root goes, at the cloud first.
    let mut world = World::new().await;
    let (cloud, gateway) = (keys_of(&world.cloud), keys_of(&world.gateway));
    world.level().await;
    let disk = Recorder::watch(&[&cloud]).unwrap();
    world.retire().await;
    cuts += nobody(&judge(&world, &disk, &cloud, (Role::Cloud, TORN)).await);
    let disk = Recorder::watch(&[&gateway]).unwrap();
    world.follow().await;
    cuts += nobody(&judge(&world, &disk, &gateway, (north(), TORN)).await);

    // Intermediates alone.
    let disk = Recorder::watch(&[&cloud]).unwrap();
    world.cloud.cps.authority().rotate_issuers().unwrap();
    member(&world.cloud.cps).await;
    cuts += nobody(&judge(&world, &disk, &cloud, (Role::Cloud, TORN)).await);
    let ordered = world.cloud.cps.authority().order_rotation(&site("north"));
    ordered.unwrap();
    let disk = Recorder::watch(&[&gateway]).unwrap();
    world.follow().await;
    cuts += nobody(&judge(&world, &disk, &gateway, (north(), TORN)).await);
    println!("{cuts} cuts");
    assert!(cuts >= 200, "{cuts} cuts");
}

/// The control: a signer that gives the next key its place before the chain for it is there.
#[derive(Debug)]
struct KeyFirst {
    inner: FileSigner,
    folder: PathBuf,
}

impl Signer for KeyFirst {
    fn prepare(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError> {
        self.inner.prepare(issuer)
    }
    fn request(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError> {
        self.inner.request(issuer)
    }
    fn request_next(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError> {
        self.inner.request_next(issuer)
    }
    fn succeed(&self, own: &Template, cross: &Template) -> Result<[Vec<u8>; 2], SignerError> {
        self.inner.succeed(own, cross)
    }
    fn install(&self, issuer: &Issuer, chain: &[Vec<u8>]) -> Result<(), SignerError> {
        let file = |kind: &str| self.folder.join(format!("ca-{}.{kind}", issuer.label()));
        holdfast_disk::rename(&file("next.key"), &file("key")).unwrap();
        self.inner.install(issuer, chain)
    }
    fn chain(&self, issuer: &Issuer) -> Result<Vec<Vec<u8>>, SignerError> {
        self.inner.chain(issuer)
    }
    fn sign(&self, issuer: &Issuer, template: &Template) -> Result<Vec<u8>, SignerError> {
        self.inner.sign(issuer, template)
    }
}

#[tokio::test]
async fn control_a_key_in_its_place_before_its_chain_is_found() {
    let world = World::new().await;
    let keys = keys_of(&world.cloud);
    let careless = KeyFirst {
        inner: FileSigner::open(&keys).unwrap(),
        folder: keys.clone(),
    };
    let disk = Recorder::watch(&[&keys]).unwrap();
    let issuer = Issuer::Servers;
    let csr = careless.request_next(&issuer).unwrap();
    let csr = holdfast_protocol::csr::Csr::parse(&csr).unwrap();
    let authority = world.cloud.cps.authority();
    let chain = authority.sign_issuer(&issuer, &server("cloud"), csr.key().to_spki_der());
    careless.install(&issuer, &chain.unwrap()).unwrap();
    let tally = judge(&world, &disk, &keys, (Role::Cloud, 0)).await;
    assert!(!tally.locked_out.is_empty(), "{} cuts", tally.cuts);
}

/// The control: the old root goes before anybody has followed.
#[tokio::test]
async fn control_an_old_root_dropped_first_is_found() {
    let world = World::new().await;
    let keys = keys_of(&world.cloud);
    let disk = Recorder::watch(&[&keys]).unwrap();
    world.rotate().await;
    world.retire().await;
    let tally = judge(&world, &disk, &keys, (Role::Cloud, 0)).await;
    assert!(!tally.locked_out.is_empty(), "{} cuts", tally.cuts);
}
