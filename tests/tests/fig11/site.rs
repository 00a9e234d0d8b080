//! The site of figure 11: a world without mDNS, an installer that the gateway lists, devices that know the installer's fixed
//! address from their factory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_agent::vault::Vault;
use holdfast_protocol::credential::DeviceCredential;
use holdfast_tests::place::Party;
use holdfast_tests::process::{Finished, Process, binary, run};
use holdfast_tests::world::{Part, Plan, SITE, World};
use serde_json::Value;
use tokio::time::{Instant, sleep};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// World and installer.
pub(crate) struct Site {
    pub(crate) world: World,
    pub(crate) anna: Part,
    anna_key: PathBuf,
    /// The address that every device has from its factory.
    fixed: SocketAddr,
    secret: PathBuf,
}

/// A device that went through its factory.
pub(crate) struct Bought {
    pub(crate) part: Part,
    pub(crate) id: String,
}

impl Site {
    pub(crate) async fn begin() -> Self {
        let plan = Plan::apart();
        let mut world = World::new(&plan).await.unwrap();
        let fixed = plan.place.socket(Party::Gateway, 18_042).unwrap();
        let config = std::fs::read_to_string(&world.cloud.config).unwrap();
        // The file ends within [manufacturing]. Devices go from one address to the next at once.
        let config = config.replace("delay = \"1s\"", "delay = \"0s\"");
        let config = format!("{config}installer = \"{fixed}\"\n");
        std::fs::write(&world.cloud.config, config).unwrap();
        world.start_cloud().await.unwrap();
        world.enrol().await.unwrap();
        world.start_gateway().await.unwrap();
        // A site that never heard which makers are believed proves no device.
        let (makers, believed) = (["manufacturers", "list", "--json"], "the makers are known");
        let any = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
        world
            .gateway
            .wait_json(&makers, believed, any)
            .await
            .unwrap();
        let (anna, anna_key) = world.installer("anna").await.unwrap();
        let root = world.folder().join("root.pem");
        std::fs::write(&root, world.gateway.ask(&["root"]).await.unwrap()).unwrap();
        anna.ask(&["trust", text(&root)]).await.unwrap();
        let add = ["installers", "add", text(&anna_key), "--name", "anna"];
        world.gateway.ask(&add).await.unwrap();
        let secret = world.folder().join("passphrase");
        std::fs::write(&secret, "anchors aweigh\n").unwrap();
        Self {
            world,
            anna,
            anna_key,
            fixed,
            secret,
        }
    }

    async fn made(&self, name: &'static str) -> Bought {
        let part = self.world.another_device(name).unwrap();
        let mut config = std::fs::read_to_string(&part.config).unwrap();
        // So that the story does not wait for a device that rests.
        config = config.replace("[discovery]\n", "[discovery]\nenabled = false\n");
        config.insert_str(
            0,
            "[onboarding]\nretry_first = \"200ms\"\nretry_longest = \"400ms\"\ndeadline = \"2s\"\n",
        );
        std::fs::write(&part.config, config).unwrap();
        let id = self.world.make(&part, name).await.unwrap();
        Bought { part, id }
    }

    /// Its voucher comes along on a stick, extended to the installer's key.
    pub(crate) async fn sold_with_voucher(&self, name: &'static str) -> (Bought, PathBuf) {
        let device = self.made(name).await;
        let paper = self.world.folder().join(format!("{name}.ov"));
        let key = text(&self.anna_key);
        let extend = [
            "vouchers",
            "extend",
            &device.id,
            "--to",
            key,
            "--out",
            text(&paper),
        ];
        self.world.cloud.ask(&extend).await.unwrap();
        (device, paper)
    }

    /// In normal times.
    pub(crate) async fn sold_to_the_site(&self, name: &'static str) -> Bought {
        let device = self.made(name).await;
        let assign = ["vouchers", "assign", &device.id, "--site", SITE];
        self.world.cloud.ask(&assign).await.unwrap();
        device
    }

    pub(crate) async fn hands_in(&self, paper: &Path) {
        let at = self.world.gateway_doors.https.to_string();
        let words = ["extend", text(paper), "--gateway", &at, "--site", SITE];
        let took = self.anna.ask(&words).await.unwrap();
        assert!(took.contains("the voucher of"), "{took}");
    }

    /// The words for `pair`.
    pub(crate) fn pairing(&self, paper: &Path, more: &[&str]) -> Vec<String> {
        let fixed = self.fixed.to_string();
        let words = [
            "pair",
            text(paper),
            "--ssid",
            "harbour",
            "--passphrase-file",
            text(&self.secret),
            "--listen",
            &fixed,
            "--patience",
            "50",
        ];
        self.words(&[&words[..], more].concat())
    }

    pub(crate) async fn pairs(&self, paper: &Path, more: &[&str]) -> Finished {
        let program = binary("holdfast-installer").unwrap();
        let told = run(&program, &self.pairing(paper, more), "").await.unwrap();
        assert_eq!(told.code, Some(0), "{told:?}");
        told
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        let state = self.anna.state.display().to_string();
        let all = ["--state", &state].into_iter().chain(words.iter().copied());
        all.map(str::to_owned).collect()
    }

    /// The installer as a process that runs until it is stopped.
    pub(crate) fn starts(&self, name: &str, words: &[String]) -> Process {
        let program = binary("holdfast-installer").unwrap();
        let log = self.world.folder().join(format!("{name}.log"));
        Process::start(name, &program, words, &log).unwrap()
    }

    /// At the fixed address.
    pub(crate) async fn relays(&self, servers: &[&str]) -> Process {
        let mut relay = self.relay(self.fixed, servers);
        self.says(&mut relay, "relaying rendezvous requests").await;
        relay
    }

    /// At another port of the fixed address.
    pub(crate) fn relays_at(&self, port: u16, servers: &[&str]) -> Process {
        self.relay(SocketAddr::new(self.fixed.ip(), port), servers)
    }

    fn relay(&self, at: SocketAddr, servers: &[&str]) -> Process {
        let at = at.to_string();
        let to = servers.iter().flat_map(|server| ["--to", server]);
        let words: Vec<_> = ["relay", "--listen", &at].into_iter().chain(to).collect();
        // A log of its own: what it says is looked at from the beginning.
        let name =
            format!("relay-{:?}", Instant::now()).replace(|c: char| !c.is_alphanumeric(), "");
        self.starts(&name, &self.words(&words))
    }

    /// The address that it says it relays at.
    pub(crate) async fn relay_address(&self, relay: &mut Process) -> SocketAddr {
        self.says(relay, "Ctrl-C").await;
        let said = relay.log_since(0);
        let (_, at) = said.split_once("requests at ").unwrap();
        at.split(';').next().unwrap().parse().unwrap()
    }

    pub(crate) async fn says(&self, process: &mut Process, sign: &str) {
        process.wait_for_log(sign, 0, PATIENCE).await.unwrap();
    }

    /// The device's row at this server says that it was onboarded by `server`, with proof.
    pub(crate) async fn is_onboarded(&self, part: &Part, device: &Bought, server: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            // A server that was killed may not be asked yet.
            let said = part.ask(&["devices", "list", "--json"]).await;
            let rows: Vec<Value> =
                said.map_or_else(|_| Vec::new(), |said| serde_json::from_str(&said).unwrap());
            let row = rows.into_iter().find(|row| row["device"] == *device.id);
            let done = |row: &Value| {
                row["onboarded"] == true && row["standing"] == "proved" && row["server"] == server
            };
            if row.as_ref().is_some_and(done) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{row:?}\n{}\n{}",
                device.part.logged(),
                self.world.log_ends()
            );
            sleep(LOOK).await;
        }
    }
}

impl Bought {
    pub(crate) fn network(&self) -> PathBuf {
        self.part.state.join("network.json")
    }

    pub(crate) fn credential(&self) -> DeviceCredential {
        Vault::new(&self.part.state).load().unwrap().credential
    }

    /// It looks for its owner, and says so.
    pub(crate) async fn looks_around(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.part.status().await.unwrap();
            if status["phase"] == "onboarding" {
                return;
            }
            assert!(Instant::now() < end, "{status:#}\n{}", self.part.logged());
            sleep(LOOK).await;
        }
    }

    /// Readings are acknowledged, by the gateway.
    pub(crate) async fn works(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.part.status().await.unwrap();
            if status["role"] == "gateway" && status["acknowledged"].as_u64() > Some(3) {
                return;
            }
            assert!(Instant::now() < end, "{status:#}\n{}", self.part.logged());
            sleep(LOOK).await;
        }
    }

    /// Its chain: leaf, the one intermediate that the gateway holds, the cloud's root.
    pub(crate) async fn has_a_certificate_of_the_gateway(&self, world: &World) {
        let identity = Vault::new(&self.part.state)
            .load()
            .unwrap()
            .identity
            .unwrap();
        assert_eq!(
            identity.site.server.as_str(),
            holdfast_tests::world::GATEWAY
        );
        let [intermediate] = &identity.site.chain[..] else {
            panic!("{} certificates above it", identity.site.chain.len())
        };
        let file = |name: &str| world.folder().join(name);
        for (name, der) in [("leaf", &identity.certificate), ("above", intermediate)] {
            std::fs::write(file(name), der).unwrap();
            let (der, pem) = (file(name), file(&format!("{name}.pem")));
            openssl(&[
                "x509",
                "-inform",
                "DER",
                "-in",
                text(&der),
                "-out",
                text(&pem),
            ])
            .await;
        }
        let above = file("above.pem");
        let subject = openssl(&["x509", "-noout", "-subject", "-in", text(&above)]).await;
        assert!(subject.contains(SITE), "{subject}");
        let (root, leaf) = (file("root.pem"), file("leaf.pem"));
        let verify = [
            "verify",
            "-CAfile",
            text(&root),
            "-untrusted",
            text(&above),
            text(&leaf),
        ];
        assert!(openssl(&verify).await.contains("OK"));
    }
}

async fn openssl(words: &[&str]) -> String {
    let told = run(Path::new("openssl"), words, "").await.unwrap();
    told.success("openssl").unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a readable path")
}
