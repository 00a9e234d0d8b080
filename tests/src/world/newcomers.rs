//! Further devices and the installer of a world, each the real binary with a state folder of its own.
//! Called by stories and tests; it starts nothing by itself.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::{Part, World};
use crate::process::binary;
use crate::weather;

impl World {
    /// Another device, called `name`, that publishes the weather; it has not been through the factory.
    ///
    /// # Errors
    /// The binary is missing, or its configuration cannot be written.
    pub fn another_device(&self, name: &'static str) -> anyhow::Result<Part> {
        let part = part("holdfast-agent", name, self.folder())?;
        let text = format!(
            "[discovery]\ninterfaces = [\"lo\"]\n[[publish]]\nname = \"weather\"\ncsv = {:?}\ninterval = \"100ms\"\n",
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
        let part = part("holdfast-installer", name, self.folder())?;
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
        let said = device
            .ask(&["init", "--manufacturer", &factory, "--serial", serial])
            .await?;
        let guid = said.trim().to_owned();
        ensure!(guid.len() == 32, "init printed no GUID but {said:?}");
        Ok(guid)
    }
}

fn part(program: &str, name: &'static str, folder: &Path) -> anyhow::Result<Part> {
    Ok(Part {
        name,
        program: binary(program).with_context(|| format!("for {name}"))?,
        config: folder.join(format!("{name}.toml")),
        state: folder.join(name),
        log: folder.join(format!("{name}.log")),
        process: None,
    })
}
