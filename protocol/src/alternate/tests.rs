//! The choice of server in virtual time: quick away, calm back, spread out.

use super::*;
use crate::fixture::{Dice, TestRng};

const MS: Duration = Duration::from_millis(1);
const SEC: Duration = Duration::from_secs(1);

fn servers(names: &[&str]) -> Vec<ServerId> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// Servers that are up or down, and a device among them.
struct World {
    choice: Alternate,
    now: Duration,
    up: [bool; 2],
    rng: TestRng,
    names: Vec<ServerId>,
    /// Where it was connected, and since when.
    visits: Vec<(usize, Duration)>,
    dials: Vec<Duration>,
}

impl World {
    fn new(seed: u64) -> Self {
        let names = servers(&["gw", "cloud"]);
        Self {
            choice: Alternate::new(Settings::default(), &names),
            now: Duration::ZERO,
            up: [true, true],
            rng: TestRng::new(seed),
            names,
            visits: Vec::new(),
            dials: Vec::new(),
        }
    }

    fn place(&self, server: &ServerId) -> usize {
        self.names.iter().position(|name| name == server).unwrap()
    }

    fn connected(&self) -> Option<usize> {
        let Stand::Connected(..) = self.choice.stand else {
            return None;
        };
        self.choice.current().map(|server| self.place(server))
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            if self.connected().is_some_and(|at| !self.up[at]) {
                self.choice.lost(self.now, &mut self.rng);
            }
            match self.choice.next(self.now) {
                Step::Dial(server) => {
                    self.dials.push(self.now);
                    let at = self.place(&server);
                    self.now += 10 * MS;
                    if self.up[at] {
                        self.choice.connected(self.now);
                        self.visits.push((at, self.now));
                    } else {
                        self.choice.failed(self.now, &mut self.rng);
                    }
                }
                Step::Check(server) => {
                    let up = self.up[self.place(&server)];
                    self.now += 10 * MS;
                    self.choice.checked(up, self.now, &mut self.rng);
                }
                Step::Leave => self.choice.left(self.now),
                Step::Wait(until) => {
                    assert!(until > self.now, "a wait lies ahead");
                    self.now = until.min(self.now + 100 * MS);
                }
            }
        }
    }
}

#[test]
fn away_at_once_and_back_when_steady() {
    for seed in 0..50 {
        let mut world = World::new(seed);
        world.run(60 * SEC);
        assert_eq!(
            (world.connected(), world.choice.is_preferred()),
            (Some(0), true)
        );
        world.up[0] = false;
        world.run(SEC);
        assert_eq!(
            world.connected(),
            Some(1),
            "seed {seed}: the next in order is tried at once"
        );
        world.run(20 * SEC);
        world.up[0] = true;
        // At the longest: one full rest, then steady, then settled long ago.
        world.run(Settings::default().longest_wait + Settings::default().steady + 6 * SEC);
        assert_eq!(world.connected(), Some(0), "seed {seed}");
        assert_eq!(world.visits.len(), 3, "seed {seed}: {:?}", world.visits);
    }
}

#[test]
fn a_flapping_server_is_not_followed() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.run(60 * SEC);
        world.visits.clear();
        for _ in 0..180 {
            world.up[0] = false;
            world.run(10 * SEC);
            world.up[0] = true;
            world.run(10 * SEC);
        }
        // Ten seconds up are never steady: once away, it stays away for the hour.
        assert!(world.visits.len() <= 2, "seed {seed}: {:?}", world.visits);
    }
    // Control: with no need to be steady it is followed to and fro.
    let mut world = World::new(1);
    world.choice.settings.steady = MS;
    for _ in 0..180 {
        world.up[0] = false;
        world.run(10 * SEC);
        world.up[0] = true;
        world.run(10 * SEC);
    }
    assert!(world.visits.len() > 100);
}

#[test]
fn dead_servers_are_dialled_seldom_and_never_in_step() {
    let mut firsts = Vec::new();
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.up = [false, false];
        world.run(600 * SEC);
        // Two servers, each at most every 15 s once the wait has grown; about 2 in the first 8 s each.
        assert!(
            world.dials.len() <= 2 * (600 / 15 + 8),
            "{} dials",
            world.dials.len()
        );
        assert!(
            world.dials.len() >= 2 * (600 / 31),
            "{} dials",
            world.dials.len()
        );
        let late = world.dials.iter().find(|at| **at > 300 * SEC).unwrap();
        firsts.push(late.as_millis() / 1_000);
        world.up = [true, true];
        world.run(Settings::default().longest_wait + SEC);
        assert!(world.connected().is_some());
    }
    // 200 devices spread over the seconds: no second gets more than a fifth of them.
    for second in 300..320 {
        assert!(firsts.iter().filter(|at| **at == second).count() < 40);
    }
}

#[test]
fn a_new_list_keeps_what_is_known() {
    let mut rng = TestRng::new(1);
    let mut choice = Alternate::new(Settings::default(), &servers(&["gw", "gw", "cloud"]));
    assert_eq!(
        choice.next(Duration::ZERO),
        Step::Dial("gw".parse().unwrap())
    );
    choice.failed(MS, &mut rng);
    assert_eq!(choice.next(MS), Step::Dial("cloud".parse().unwrap()));
    choice.connected(2 * MS);
    assert!(!choice.set_servers(&servers(&["cloud", "gw"])));
    assert!(choice.is_preferred());
    assert!(
        choice.set_servers(&servers(&["gw"])),
        "the one in use is gone"
    );
    assert!(
        matches!(choice.next(3 * MS), Step::Wait(until) if until > 200 * MS),
        "gw still rests"
    );
    assert!(!choice.set_servers(&[]) && choice.current().is_none());
    assert!(matches!(choice.next(4 * MS), Step::Wait(_)));
}

#[test]
fn reports_that_fit_no_state_change_nothing() {
    let mut dice = Dice::new(1);
    for seed in 0..2_000 {
        let mut rng = TestRng::new(seed);
        let mut choice = Alternate::new(Settings::default(), &servers(&["a", "b", "c"]));
        let mut now = Duration::ZERO;
        for _ in 0..30 {
            now += Duration::from_millis(dice.below(3_000));
            match dice.below(8) {
                0 => choice.connected(now),
                1 => choice.failed(now, &mut rng),
                2 => choice.lost(now, &mut rng),
                3 => choice.left(now),
                4 => choice.checked(dice.chance(50), now, &mut rng),
                5 => {
                    let lists = [&["a"][..], &["b", "a"], &[], &["c", "b", "a"]];
                    choice.set_servers(&servers(dice.pick::<&[&str]>(&lists)));
                }
                _ => {
                    choice.next(now);
                }
            }
        }
    }
}
