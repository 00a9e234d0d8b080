//! Who sees what the partner's broker got, and the judge over it.
//!
//! The witness subscribes with QoS 0 on the broker's inner listener: mosquitto writes a message into
//! the witness's socket before it acknowledges it to its sender, so that what it acknowledged was
//! seen, even when it is killed in the next moment.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::mqtt::{self, Client, Options, Publish, Qos};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);

/// Sees everything below `site-7/`.
pub(crate) struct Witness {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    messages: Vec<(String, String)>,
    /// How often it was subscribed.
    sessions: usize,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Witness {
    pub(crate) fn of(broker: SocketAddr) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let task = tokio::spawn(watch(broker, Arc::clone(&seen)));
        Self { seen, task }
    }

    /// Waits until it was subscribed so often.
    pub(crate) async fn session(&self, number: usize) {
        self.until("the witness", |seen| seen.sessions >= number)
            .await;
    }

    /// Waits until so many different messages were seen on a topic.
    pub(crate) async fn has(&self, topic: &str, count: u64) {
        let what = format!("{count} messages on {topic}");
        let full = |seen: &Seen| distinct(&seen.messages, topic) >= count;
        self.until(&what, full).await;
    }

    pub(crate) fn count(&self, topic: &str) -> u64 {
        distinct(&self.seen.lock().unwrap().messages, topic)
    }

    /// What is wrong with a topic on which `1..=count` were sent.
    pub(crate) fn faults(&self, topic: &str, count: u64) -> Vec<String> {
        faults(&self.seen.lock().unwrap().messages, topic, count)
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Seen) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(&self.seen.lock().unwrap()) {
            assert!(Instant::now() < end, "waited for {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn distinct(messages: &[(String, String)], topic: &str) -> u64 {
    let of = messages.iter().filter(|(name, _)| name == topic);
    let mut payloads: Vec<_> = of.map(|(_, payload)| payload).collect();
    payloads.sort();
    payloads.dedup();
    payloads.len() as u64
}

async fn watch(broker: SocketAddr, seen: Arc<Mutex<Seen>>) {
    loop {
        if let Some(client) = connect(broker, "witness").await {
            let (client, mut inbox) = client;
            if client
                .subscribe(&[("site-7/#", Qos::AtMostOnce)])
                .await
                .is_ok()
            {
                seen.lock().unwrap().sessions += 1;
                while let Some(message) = inbox.next().await {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    seen.lock().unwrap().messages.push((message.topic, text));
                }
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(broker: SocketAddr, name: &str) -> Option<(Client, mqtt::Inbox)> {
    let endpoint = Endpoint {
        addresses: vec![broker.to_string()],
        security: Security::Plain,
    };
    let options = Options {
        clean_start: true,
        loose_bound: u16::MAX,
        ..Options::new(endpoint, name)
    };
    let (client, inbox, _) = mqtt::connect(options).await.ok()?;
    Some((client, inbox))
}

/// One of the partner's own programs says something.
pub(crate) async fn say(broker: SocketAddr, topic: &str, text: &str) {
    let (client, _inbox) = connect(broker, "clerk").await.unwrap();
    let message = Publish::new(topic.to_owned(), text.to_owned());
    client.publish_and_wait(message).await.unwrap();
    client.disconnect().await;
}

/// At least once, and in order: repeats may come, but each number comes first after its elders.
fn faults(messages: &[(String, String)], topic: &str, count: u64) -> Vec<String> {
    let (mut faults, mut highest) = (Vec::new(), 0);
    let mut seen = std::collections::BTreeSet::new();
    for (_, payload) in messages.iter().filter(|(name, _)| name == topic) {
        let Ok(number) = payload.parse::<u64>() else {
            faults.push(format!("{payload:?} was never sent"));
            continue;
        };
        if seen.insert(number) && number < highest {
            faults.push(format!("{number} came after {highest}"));
        }
        highest = highest.max(number);
    }
    faults.extend(
        (1..=count)
            .filter(|n| !seen.contains(n))
            .map(|n| format!("{n} lost")),
    );
    if highest > count {
        faults.push(format!("{highest} was never sent"));
    }
    faults
}

#[test]
fn the_judge_finds_planted_faults() {
    let good = || -> Vec<(String, String)> {
        let numbers = [1, 2, 3, 2, 3, 4, 5];
        let line = |n: &i32| ("t".to_owned(), n.to_string());
        numbers.iter().map(line).collect()
    };
    assert_eq!(
        faults(&good(), "t", 5),
        Vec::<String>::new(),
        "repeats are no fault"
    );
    let mut lost = good();
    lost.retain(|(_, payload)| payload != "3");
    assert_eq!(faults(&lost, "t", 5), ["3 lost"]);
    let mut swapped = good();
    swapped.swap(5, 6);
    assert_eq!(faults(&swapped, "t", 5), ["4 came after 5"]);
    let mut strange = good();
    strange.push(("t".to_owned(), "9".to_owned()));
    assert_eq!(faults(&strange, "t", 5), ["9 was never sent"]);
}
