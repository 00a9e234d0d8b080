//! Further devices and the installer of a world, each the real binary with a state folder of its own.
//! Called by stories and tests; it starts nothing by itself.

use std::path::PathBuf;

use anyhow::ensure;

use super::{Part, World};
use crate::place::Party;
use crate::weather;

impl World {
    /// Another device, called `name`, that publishes the weather; it has not been through the factory.
    ///
    /// # Errors
    /// The binary is missing, or its configuration cannot be written.
    pub fn another_device(&self, name: &'static str) -> anyhow::Result<Part> {
        let seat = self.place.station(name)?;
        let part = Part::new("holdfast-agent", name, seat, self.folder())?;
        let text = format!(
            "[discovery]\ninterfaces = [\"{}\"]\n[[publish]]\nname = \"weather\"\ncsv = {:?}\ninterval = \"100ms\"\n",
            self.place.lan_interface(),
            weather::file(),
        );
        std::fs::write(&part.config, text)?;
        Ok(part)
    }

    /// The installer, with a key of its own; its public half lies in the file that is returned.
    ///
    /// # Errors
    /// The binary is missing, or the key cannot be made.
    pub async fn installer(&self, name: &'static str) -> anyhow::Result<(Part, PathBuf)> {
        let seat = self.place.station(name)?;
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
        let factory = format!("http://{}", self.cloud_doors.fdo);
        let words = ["init", "--manufacturer", &factory, "--serial", serial];
        let beside = self.place.seat(Party::Cloud);
        let said = device.command_at(&beside, &words, "").await?;
        let said = said.success("holdfast-agent init")?;
        let guid = said.trim().to_owned();
        ensure!(guid.len() == 32, "init printed no GUID but {said:?}");
        Ok(guid)
    }
}
