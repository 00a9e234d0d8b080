//! Step 13: the site's readings also go to a broker of somebody else. See [`super::Story::run`].

use super::*;
use crate::partner::WATCHER;

/// Readings of each device that must come in each stretch.
const STRETCH: usize = 12;
/// What goes to the partner, and how it is called there.
const RULE: &str = "[[bridge]]\nname = \"readings\"\nremote = \"partner\"\ndirection = \"out\"\n\
                    filter = \"hf/v1/harbour/+/up/pulse\"\nprefix = \"site-7/\"\n";

impl Story {
    pub(super) async fn bridges_elsewhere(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let (mut partner, near) = self.world.partner().await?;
        partner.start().await?;
        let watcher = self.watch(&partner).await?;
        // With the link down the devices come back to the gateway and not to the cloud, and what they say waits.
        self.world.uplink.set(Mode::Reset)?;
        let rule = partner.as_toml(near, "") + RULE;
        // It goes on running for whoever looks around afterwards.
        self.partner = Some(partner);
        self.world.configure_gateway(&rule).await?;
        notes.tell("the gateway has a rule for a broker that is not ours, and a certificate of its authority");
        self.waits_and_arrives(&watcher, "down", notes).await?;
        self.world.uplink.set(Mode::Silent)?;
        self.waits_and_arrives(&watcher, "cut silently", notes)
            .await?;
        let heard = self.heard_here()?;
        let drained = |status: &Value| remote(status)["waiting"] == 0;
        self.world
            .gateway
            .wait_status("the partner has all", drained)
            .await?;
        self.judge_readings(&watcher, &heard, notes)
    }

    /// The last row that the LAN has heard of each device.
    fn heard_here(&self) -> anyhow::Result<Vec<usize>> {
        let lan = &self.witnesses()?.lan;
        let last = |device| {
            let seen = lan.seen(|it| it == pulse_of(HERE, device));
            let rows = seen
                .iter()
                .filter_map(|one| self.table.row_of(&one.payload));
            rows.max().context("the LAN has heard every device")
        };
        self.devices().map(last).collect()
    }

    /// With the link cut: the LAN hears the devices, and it waits for the partner; then the link is mended, and it comes.
    async fn waits_and_arrives(
        &self,
        watcher: &Reader,
        what: &str,
        notes: &mut Notes,
    ) -> anyhow::Result<()> {
        let lan = &self.witnesses()?.lan;
        self.wait_for_readings(lan, HERE, STRETCH).await?;
        let status = self.world.gateway.status().await?;
        let waiting = remote(&status)["waiting"].as_u64().unwrap_or(0);
        ensure!(
            waiting >= STRETCH as u64,
            "with the link {what} {waiting} messages wait for the partner: {status}"
        );
        notes.figure(format!("link {what}: {waiting} wait"));
        self.world.uplink.set(Mode::Open)?;
        let connected = |status: &Value| remote(status)["connected"] == true;
        self.world
            .gateway
            .wait_status("connected to the partner", connected)
            .await?;
        self.wait_for_readings(watcher, THERE, STRETCH).await
    }

    /// A stock reader at the partner's broker, beside it.
    async fn watch(&self, partner: &Partner) -> anyhow::Result<Reader> {
        let what = Subscription {
            seat: self.world.seat_near(Server::Cloud)?,
            broker: partner.tls,
            identity: partner.watcher()?,
            client: WATCHER.to_owned(),
            filters: vec![format!("{THERE}#")],
        };
        let copy = self.world.folder().join("partner.ledger");
        let watcher = Reader::start(WATCHER, &what, &copy).await?;
        watcher.wait_subscribed(PATIENCE).await?;
        Ok(watcher)
    }

    fn devices(&self) -> impl Iterator<Item = &str> {
        let others = self.newcomers().map(|one| one.id.as_str());
        [self.device.as_str()].into_iter().chain(others)
    }

    /// Waits until so many further readings of every device have come to a reader.
    async fn wait_for_readings(
        &self,
        reader: &Reader,
        at: &str,
        more: usize,
    ) -> anyhow::Result<()> {
        let count = |topic: &str| reader.count(|it| it == topic);
        let topics = self.devices().map(|device| pulse_of(at, device));
        let wanted: Vec<_> = topics.map(|topic| (count(&topic) + more, topic)).collect();
        let came = || wanted.iter().all(|(wanted, topic)| count(topic) >= *wanted);
        let what = format!("{more} readings of each device at {at}hf");
        wait_until(&what, PATIENCE, came).await
    }

    /// From the first that came on, and to what the LAN has heard at least: every row of every device, none lost, in
    /// order; repeats are counted.
    fn judge_readings(
        &self,
        watcher: &Reader,
        heard: &[usize],
        notes: &mut Notes,
    ) -> anyhow::Result<()> {
        let mut all = Vec::new();
        for (device, heard) in self.devices().zip(heard) {
            let seen = watcher.seen(|it| it == pulse_of(THERE, device));
            let rows: Option<Vec<_>> = seen
                .iter()
                .map(|one| self.table.row_of(&one.payload))
                .collect();
            let rows =
                rows.with_context(|| format!("what came of {device} is none of its rows"))?;
            let (first, repeats) = first_comings(&rows);
            ensure!(
                first.last() >= Some(heard),
                "the last ones are lost: {first:?} of {heard}"
            );
            ensure!(
                is_whole(&first),
                "lost or out of order at the partner: {first:?}"
            );
            all.push(format!("{} and {repeats} repeats", first.len()));
        }
        let all = all.join(", ");
        notes.figure(format!(
            "at the partner, in order, none lost, of A, B and C: {all}"
        ));
        Ok(())
    }
}

/// Nothing before the topic: on the LAN.
const HERE: &str = "";
/// Before the topic at the partner.
const THERE: &str = "site-7/";

fn pulse_of(at: &str, device: &str) -> String {
    format!("{at}hf/v1/{SITE}/{device}/up/pulse")
}

/// The rows in the order in which each came first, and how many came again.
fn first_comings(rows: &[usize]) -> (Vec<usize>, usize) {
    let mut seen = std::collections::HashSet::new();
    let first: Vec<_> = rows
        .iter()
        .copied()
        .filter(|row| seen.insert(*row))
        .collect();
    let repeats = rows.len() - first.len();
    (first, repeats)
}

/// Each row follows the one before it.
fn is_whole(first: &[usize]) -> bool {
    first.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

/// The partner's line in the gateway's status.
fn remote(status: &Value) -> &Value {
    let mut remotes = status["remotes"].as_array().into_iter().flatten();
    let found = remotes.find(|one| one["name"] == "partner");
    found.unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use super::{first_comings, is_whole};

    #[test]
    fn control_a_lost_and_a_late_row_are_found_and_a_repeat_is_forgiven() {
        let (first, repeats) = first_comings(&[7, 8, 8, 7, 9]);
        assert!(is_whole(&first) && repeats == 2, "{first:?}");
        assert!(!is_whole(&first_comings(&[7, 9]).0), "a lost row");
        assert!(!is_whole(&first_comings(&[7, 9, 8]).0), "a late row");
    }
}
