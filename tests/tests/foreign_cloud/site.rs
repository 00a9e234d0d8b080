//! The site: a gateway with the rules to the partner, a controller on its LAN that says and hears.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_tests::process::{Finished, run};
use holdfast_tests::world::{Plan, Server, World};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::partner::Partner;

const PATIENCE: Duration = Duration::from_secs(40);

/// The rules of every story here.
pub(crate) const RULES: &str = "
[[bridge]]
name = \"states\"
remote = \"partner\"
direction = \"out\"
filter = \"plant/#\"
strip = \"plant/\"
prefix = \"site-7/\"

[[bridge]]
name = \"orders\"
remote = \"partner\"
direction = \"in\"
filter = \"orders/site-7/#\"
strip = \"orders/site-7/\"
prefix = \"ordered/\"
";

/// A gateway with its cloud, and the partner.
pub(crate) struct Site {
    pub(crate) world: World,
    pub(crate) partner: Partner,
    /// The gateway's configuration without remotes.
    plain: String,
    /// Folders with the certificates of the machines on the LAN, and of who gives them orders.
    press: PathBuf,
    oven: PathBuf,
    foreman: PathBuf,
}

impl Site {
    /// Everything runs but the partner's broker.
    pub(crate) async fn new() -> Self {
        let mut world = World::new(&Plan::apart()).await.unwrap();
        let partner = Partner::new(world.folder()).await;
        world.start_cloud().await.unwrap();
        world.enrol().await.unwrap();
        let plain = std::fs::read_to_string(&world.gateway.config).unwrap();
        let mut site = Self {
            world,
            partner,
            plain,
            press: PathBuf::new(),
            oven: PathBuf::new(),
            foreman: PathBuf::new(),
        };
        site.configure("");
        site.world.start_gateway().await.unwrap();
        let at = Server::Gateway;
        site.press = site
            .world
            .admit(at, "press", &["plant/#"], &[])
            .await
            .unwrap();
        site.oven = site
            .world
            .admit(at, "oven", &["plant/#"], &[])
            .await
            .unwrap();
        site.foreman = site
            .world
            .admit(at, "foreman", &[], &["ordered/#"])
            .await
            .unwrap();
        site
    }

    /// Writes the gateway's configuration; `more` goes into the partner's table.
    pub(crate) fn configure(&self, more: &str) {
        let remote = self.partner.as_toml(self.partner.near, more);
        let text = format!("{}\n{remote}{RULES}", self.plain);
        std::fs::write(&self.world.gateway.config, text).unwrap();
    }

    pub(crate) async fn restart_gateway(&mut self) {
        self.world.gateway.stop().await.unwrap();
        self.world.start_gateway().await.unwrap();
    }

    /// The topic's machine publishes the numbers of `range`, each acknowledged by the gateway.
    pub(crate) async fn publish(&self, topic: &str, range: std::ops::RangeInclusive<u64>) {
        let lines: String = range.map(|number| format!("{number}\n")).collect();
        let machine = match topic.contains("press") {
            true => &self.press,
            false => &self.oven,
        };
        let mut words = self.words(machine, topic);
        words.push("-l".to_owned());
        let told = run(Path::new("mosquitto_pub"), &words, &lines)
            .await
            .unwrap();
        told.success("mosquitto_pub").unwrap();
    }

    /// The foreman's session is there from now on.
    pub(crate) async fn subscribe(&self, topic: &str) {
        let mut words = self.words(&self.foreman, topic);
        words.extend(["-c", "-E"].map(str::to_owned));
        let told = run(Path::new("mosquitto_sub"), &words, "").await.unwrap();
        told.success("mosquitto_sub").unwrap();
    }

    /// The foreman hears `count` messages, those that waited for him among them.
    pub(crate) async fn hear(&self, topic: &str, count: usize) -> Finished {
        let mut words = self.words(&self.foreman, topic);
        let more = ["-C", &count.to_string(), "-W", "20", "-c", "-F", "%t %p"];
        words.extend(more.map(str::to_owned));
        run(Path::new("mosquitto_sub"), &words, "").await.unwrap()
    }

    fn words(&self, who: &Path, topic: &str) -> Vec<String> {
        let door = self.world.gateway_doors.mqtt;
        let file = |name: &str| who.join(name).display().to_string();
        let name = who.file_name().unwrap().to_str().unwrap();
        let (host, port) = (door.ip().to_string(), door.port().to_string());
        let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
        let words = [
            "-i", name, "-q", "1", "-h", &host, "-p", &port, "--cafile", &ca, "--cert", &cert,
            "--key", &key, "-t", topic,
        ];
        words.map(str::to_owned).to_vec()
    }

    /// How the gateway says the partner stands.
    pub(crate) async fn standing(&self) -> Value {
        let status = self.world.gateway.status().await.unwrap();
        let remotes = status["remotes"].as_array().unwrap();
        let ours = remotes.iter().find(|one| one["name"] == "partner");
        ours.unwrap().clone()
    }

    /// Waits until it stands so.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let standing = self.standing().await;
            if is_so(&standing) {
                return standing;
            }
            assert!(
                Instant::now() < end,
                "{what}: {standing:#}\n{}\n{}",
                self.world.gateway.log_end(),
                self.partner.logged()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }
}
