//! Further devices, the installer, and a gateway that is lost: each the real binary with a state folder of its own.
//! Called by stories and tests; it starts nothing by itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{Doors, GATEWAY, Part, SITE, World};
use crate::place::Party;
use crate::weather;

/// Time between two messages of a further device.
const PACE: Duration = Duration::from_millis(100);

impl World {
    /// Another device, called `name`, that publishes the weather; it has not been through the factory.
    ///
    /// # Errors
    /// The binary is missing, or its configuration cannot be written.
    pub fn another_device(&self, name: &'static str) -> anyhow::Result<Part> {
        let seat = self.plan.place.station(name)?;
        let part = Part::new("holdfast-agent", name, seat, self.folder())?;
        let text = format!(
            "[discovery]\ninterfaces = [\"{}\"]\n{}",
            self.plan.place.lan_interface(),
            sensors(PACE, self.plan.pulse),
        );
        std::fs::write(&part.config, text)?;
        Ok(part)
    }

    /// The installer, with a key of its own; its public half lies in the file that is returned.
    ///
    /// # Errors
    /// The binary is missing, or the key cannot be made.
    pub async fn installer(&self, name: &'static str) -> anyhow::Result<(Part, PathBuf)> {
        let seat = self.plan.place.station(name)?;
        let part = Part::new("holdfast-installer", name, seat, self.folder())?;
        std::fs::write(&part.config, "")?;
        let public = self.folder().join(format!("{name}.pem"));
        std::fs::write(&public, part.ask(&["key", "new"]).await?)?;
        Ok((part, public))
    }

    /// Sends a device through the factory (DI); its GUID, 32 hex digits. Its voucher stays with the seller.
    ///
    /// # Errors
    /// What the command said.
    pub async fn make(&self, device: &Part, serial: &str) -> anyhow::Result<String> {
        let factory = format!("http://{}", self.cloud_doors.manufacturing);
        let words = ["init", "--manufacturer", &factory, "--serial", serial];
        let beside = self.plan.place.seat(Party::Cloud);
        let said = device.command_at(&beside, &words, "").await?;
        let said = said.success("holdfast-agent init")?;
        let guid = said.trim().to_owned();
        ensure!(guid.len() == 32, "init printed no GUID but {said:?}");
        Ok(guid)
    }

    /// The seller extends a device's voucher to the installer's key; the file.
    ///
    /// # Errors
    /// What the command said.
    pub async fn sell(&self, guid: &str, to: &Path, file: &str) -> anyhow::Result<PathBuf> {
        let paper = self.folder().join(file);
        let (to, out) = (text(to)?, text(&paper)?);
        let words = ["vouchers", "extend", guid, "--to", to, "--out", out];
        self.cloud.ask(&words).await?;
        Ok(paper)
    }

    /// Teaches the installer by which root the gateway is known.
    ///
    /// # Errors
    /// What the command that failed said.
    pub async fn trust_root(&self, installer: &Part) -> anyhow::Result<()> {
        let root = self.folder().join("root.pem");
        std::fs::write(&root, self.gateway.ask(&["root"]).await?)?;
        installer.ask(&["trust", text(&root)?]).await?;
        Ok(())
    }

    /// The installer finds the gateway on the LAN by mDNS and extends the voucher to it; what it said.
    ///
    /// # Errors
    /// What the command said.
    pub async fn hand_in(&self, installer: &Part, paper: &Path) -> anyhow::Result<String> {
        let (paper, lan) = (text(paper)?, self.plan.place.lan_interface());
        let words = ["extend", paper, "--interface", lan];
        let told = installer.command(&words, "").await?;
        ensure!(
            told.err.contains("searching the LAN"),
            "the LAN was not searched: {}",
            told.err
        );
        // On loopback other worlds of this machine are on the same LAN.
        if told.err.contains("more than one gateway") {
            let door = self.gateway_doors.https.to_string();
            return installer.ask(&["extend", paper, "--gateway", &door]).await;
        }
        told.success("holdfast-installer extend")
    }

    /// The gateway's machine is lost: killed, its disk gone. The part that is returned is what starts when somebody
    /// plugs that disk into another machine.
    ///
    /// # Errors
    /// It did not run, or the disk cannot be moved.
    pub async fn lose_gateway(&mut self) -> anyhow::Result<Part> {
        self.gateway.process()?.kill_nine().await?;
        self.gateway.stop().await?;
        let seat = self.plan.place.seat(Party::LostGateway);
        let lost = Part::new("holdfast-gateway", "lost-gateway", seat, self.folder())?;
        std::fs::rename(&self.gateway.state, &lost.state)?;
        // The other machine has another address.
        let doors = Doors::of(&self.plan.place, Party::LostGateway)?;
        std::fs::write(&lost.config, self.gateway_configuration(&doors))?;
        Ok(lost)
    }

    /// Puts a fresh gateway with an empty disk in the lost one's place, under its name and address.
    ///
    /// # Errors
    /// What the command that failed said, or it is not well in time.
    pub async fn replace_gateway(&mut self) -> anyhow::Result<()> {
        let words = ["gateways", "replace", "--site", SITE, "--gateway", GATEWAY];
        let token = self.cloud.ask(&words).await?;
        let enrolled = self.enrol_with(token.trim()).await?;
        enrolled.success("holdfast-gateway enrol")?;
        self.start_gateway().await
    }
}

/// The sensors of a device: the weather at `pace` and, if wanted, as a pulse that lasts.
pub(super) fn sensors(pace: Duration, pulse: Option<Duration>) -> String {
    let mut text = String::new();
    let named = [("weather", Some(pace)), ("pulse", pulse)];
    for (name, pace) in named {
        let Some(pace) = pace else { continue };
        writeln!(
            text,
            "[[publish]]\nname = \"{name}\"\ncsv = {:?}\ninterval = \"{}ms\"",
            weather::file(),
            pace.as_millis()
        )
        .expect("a text takes all");
    }
    text
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is no text")
}
