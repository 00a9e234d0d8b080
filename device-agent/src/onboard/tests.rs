//! Onboarding against the protocol's own server sides over real HTTP on loopback: the straight way,
//! every refusal, and cuts and kills at every message.

mod world;

use std::time::Duration;

use holdfast_link::retry::Policy;
use holdfast_link::time::SystemTrust;
use holdfast_protocol::id::Guid;
use tokio::time::timeout;

use super::*;
use crate::vault::Death;
use world::{Cut, Owner, World};

const PATIENCE: Duration = Duration::from_secs(20);

fn onboarding(state: &std::path::Path) -> Onboarding {
    Onboarding {
        vault: Vault::new(state),
        config: config::Onboarding {
            retry: Policy {
                first: Duration::from_millis(5),
                longest: Duration::from_millis(20),
            },
            deadline: Duration::from_secs(5),
        },
        network: NetworkFile::of(state),
        discovery: None,
        patience: Duration::from_millis(10),
        clock: Arc::new(SystemClock::without_floor(SystemTrust::Hint)),
        board: Board::default(),
    }
}

async fn born(world: &World) -> (tempfile::TempDir, Vault, Guid) {
    let state = tempfile::tempdir().unwrap();
    let vault = Vault::new(state.path());
    let address = world.address();
    let device = initialise(&vault, address, "", "serial-1", "thermometer", PATIENCE).await;
    let guid = device.unwrap().guid();
    (state, vault, guid)
}

/// What both sides must agree upon after an onboarding.
fn check(world: &World, vault: &Vault, born: Guid) {
    let contents = vault.load().unwrap();
    assert!(contents.staged.is_none());
    let identity = contents.identity.expect("onboarded");
    assert_eq!(identity.site.device, DeviceId::from_guid(born));
    assert_ne!(
        contents.credential.guid, born,
        "the credential was replaced"
    );
    assert!(
        world.knows(contents.credential.guid),
        "the owner has no voucher for the credential that the device holds"
    );
    assert!(
        world.certified(&identity.key.public()),
        "the certificate is for another key"
    );
}

#[tokio::test]
async fn the_straight_way() {
    let world = World::start().await;
    let (state, vault, guid) = born(&world).await;
    world.assign(guid);
    let onboarding = onboarding(state.path());
    timeout(PATIENCE, onboarding.run()).await.unwrap().unwrap();
    check(&world, &vault, guid);
    assert_eq!(world.statements(), 1);
    assert!(
        onboarding.clock.now().is_authenticated(),
        "the owner's time was learnt"
    );
    // Run again it has nothing to ask anybody.
    drop(world);
    timeout(PATIENCE, onboarding.run()).await.unwrap().unwrap();
    let error = initialise(&vault, "127.0.0.1:1".into(), "", "s", "m", PATIENCE).await;
    assert!(matches!(error, Err(Fault::Vault(VaultError::Present(_)))));
}

#[tokio::test]
async fn waits_until_the_voucher_is_registered_and_says_so() {
    let world = World::start().await;
    let (state, vault, guid) = born(&world).await;
    let onboarding = Arc::new(onboarding(state.path()));
    let running = tokio::spawn({
        let onboarding = Arc::clone(&onboarding);
        async move { onboarding.run().await }
    });
    let expected = format!("no rendezvous server knows {}", DeviceId::from_guid(guid));
    wait_for(&onboarding.board, &expected).await;
    world.assign(guid);
    timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    check(&world, &vault, guid);
}

async fn wait_for(board: &Board, detail: &str) {
    let found = async {
        while !board.now().detail.contains(detail) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let late = timeout(PATIENCE, found).await.is_err();
    assert!(
        !late,
        "{detail:?} was expected, {:?} is shown",
        board.now().detail
    );
}

/// Each of these owners is refused, with a word that helps; the right one is then taken.
#[tokio::test]
async fn wrong_owners_are_refused() {
    for (owner, expected) in [
        (Owner::Stranger, "not this device's owner"),
        (Owner::WithoutSite, "not a Holdfast server"),
        (Owner::ForeignCertificate, "another key"),
        (Owner::OtherName, "it names"),
        (Owner::OtherAnchor, "not acceptable"),
        (Owner::NoCertificate, "refused a certificate"),
    ] {
        let world = World::start().await;
        let (state, vault, guid) = born(&world).await;
        world.assign(guid);
        world.become_(owner);
        let onboarding = Arc::new(onboarding(state.path()));
        let before = vault.load().unwrap().credential.encode();
        let running = tokio::spawn({
            let onboarding = Arc::clone(&onboarding);
            async move { onboarding.run().await }
        });
        wait_for(&onboarding.board, expected).await;
        let contents = vault.load().unwrap();
        assert_eq!(contents.credential.encode(), before, "{owner:?}");
        assert!(
            contents.identity.is_none() && contents.staged.is_none(),
            "{owner:?}"
        );
        world.become_(Owner::Right);
        timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
        check(&world, &vault, guid);
    }
}

/// The link breaks once, before or after the n-th message was heard: the next try ends right.
#[tokio::test]
async fn a_link_cut_at_any_message_does_no_harm() {
    let mut cuts = 0;
    for after in 0.. {
        for answered in [false, true] {
            let world = World::start().await;
            let (state, vault, guid) = born(&world).await;
            world.assign(guid);
            world.cut(Cut {
                after,
                heard: answered,
                hang: false,
            });
            let onboarding = onboarding(state.path());
            timeout(PATIENCE, onboarding.run()).await.unwrap().unwrap();
            check(&world, &vault, guid);
            cuts += u32::from(world.was_cut());
        }
        if cuts < 2 * (after + 1) {
            break;
        }
    }
    assert!(cuts >= 16, "{cuts} cuts hit");
}

/// The agent is killed while it waits for the answer to the n-th message, which the owner heard or
/// not, and started again.
#[tokio::test]
async fn killed_at_any_message_it_ends_right_at_the_next_start() {
    let mut kills = 0;
    for after in 0.. {
        for heard in [false, true] {
            for forgets in [false, true] {
                let world = World::start().await;
                let (state, vault, guid) = born(&world).await;
                world.assign(guid);
                world.cut(Cut {
                    after,
                    heard,
                    hang: true,
                });
                let first = onboarding(state.path());
                tokio::select! {
                    _ = first.run() => {}
                    () = world.hung() => kills += 1,
                }
                drop(first);
                if forgets {
                    // An owner that drops the old voucher at once.
                    world.forget_replaced();
                }
                let second = onboarding(state.path());
                timeout(PATIENCE, second.run()).await.unwrap().unwrap();
                check(&world, &vault, guid);
            }
        }
        if kills < 4 * (after + 1) {
            break;
        }
    }
    assert!(kills >= 32, "{kills} kills hit");
}

/// Killed before the owner heard its n-th message; then somebody on the path denies the device. That
/// word is not proved by anything, so it decides nothing: the credential that the owner holds survives.
#[tokio::test]
async fn an_unproved_denial_throws_no_credential_away() {
    let (mut kills, mut stranded) = (0, 0);
    for after in 0.. {
        let world = World::start().await;
        let (state, vault, guid) = born(&world).await;
        world.assign(guid);
        world.cut(Cut {
            after,
            heard: false,
            hang: true,
        });
        let first = onboarding(state.path());
        let killed = tokio::select! {
            _ = first.run() => false,
            () = world.hung() => true,
        };
        if !killed {
            break;
        }
        kills += 1;
        drop(first);
        // The control: an agent that takes the denial for the owner's word.
        let credulous = tempfile::tempdir().unwrap();
        std::fs::copy(state.path().join("vault"), credulous.path().join("vault")).unwrap();
        let after_commit = Vault::new(credulous.path()).commit().unwrap();
        stranded += u32::from(!world.knows(after_commit.credential.guid));

        world.lie(3);
        let second = onboarding(state.path());
        timeout(PATIENCE, second.run()).await.unwrap().unwrap();
        assert_eq!(world.lies_left(), 0, "the liar was heard");
        check(&world, &vault, guid);
    }
    assert!(kills >= 8, "{kills} kills hit");
    assert!(
        stranded >= 1,
        "the control: some kill leaves a staged credential that nobody holds"
    );
}

/// The agent's disk dies at its n-th write, which is on the disk or not: at the next start it ends right.
#[tokio::test]
async fn a_disk_that_dies_at_any_write_does_no_harm() {
    let mut deaths = 0;
    for after in 0.. {
        let before = deaths;
        for written in [false, true] {
            let world = World::start().await;
            let (state, vault, guid) = born(&world).await;
            world.assign(guid);
            let first = onboarding(state.path());
            *first.vault.dies.lock().unwrap() = Some(Death { after, written });
            match timeout(PATIENCE, first.run()).await.unwrap() {
                Err(VaultError::Io { .. }) => deaths += 1,
                Err(other) => panic!("{other}"),
                Ok(_) => {}
            }
            let second = onboarding(state.path());
            timeout(PATIENCE, second.run()).await.unwrap().unwrap();
            check(&world, &vault, guid);
        }
        if deaths == before {
            break;
        }
    }
    assert_eq!(deaths, 4, "staged and committed, each on the disk or not");
}

/// Pairing, cut or killed at its n-th message: the LAN's credentials come whole, the device's own stay, and the site's
/// owner takes it afterwards.
#[tokio::test]
async fn pairing_cut_or_killed_at_any_message_ends_right() {
    let (mut cuts, mut kills) = (0, 0);
    for after in 0.. {
        let before = (cuts, kills);
        for heard in [false, true] {
            for hang in [false, true] {
                let world = World::start().await;
                let (state, vault, guid) = born(&world).await;
                world.assign(guid);
                world.become_(Owner::Installer);
                world.cut(Cut { after, heard, hang });
                let credential = vault.load().unwrap().credential.encode();
                let first = onboarding(state.path());
                let file = state.path().join("network.json");
                let paired = wait_for(&first.board, "paired with the installer");
                tokio::select! {
                    _ = first.run() => panic!("an installer makes no identity"),
                    () = world.hung() => kills += 1,
                    () = paired => cuts += u32::from(world.was_cut()),
                }
                drop(first);
                assert_eq!(vault.load().unwrap().credential.encode(), credential);
                let second = onboarding(state.path());
                tokio::select! {
                    _ = second.run() => panic!("an installer makes no identity"),
                    () = wait_for(&second.board, "paired with the installer") => {}
                }
                let kept = std::fs::read_to_string(&file).unwrap();
                assert!(
                    kept.contains("harbour") && kept.contains("anchors aweigh"),
                    "{kept}"
                );
                world.become_(Owner::Right);
                timeout(PATIENCE, second.run()).await.unwrap().unwrap();
                check(&world, &vault, guid);
            }
        }
        if (cuts, kills) == before {
            break;
        }
    }
    assert!(
        cuts >= 12 && kills >= 12,
        "{cuts} cuts and {kills} kills hit"
    );
}

#[tokio::test]
async fn initialisation_is_whole_or_not() {
    for after in 0..2 {
        for heard in [false, true] {
            let world = World::start().await;
            world.cut(Cut {
                after,
                heard,
                hang: false,
            });
            let state = tempfile::tempdir().unwrap();
            let vault = Vault::new(state.path());
            let made = initialise(&vault, world.address(), "", "s", "m", PATIENCE).await;
            assert!(made.is_err());
            assert!(matches!(vault.load(), Err(VaultError::Missing)));
            initialise(&vault, world.address(), "", "s", "m", PATIENCE)
                .await
                .unwrap();
            vault.load().unwrap();
        }
    }
}
