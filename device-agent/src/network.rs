//! Where the LAN's credentials go that an installer hands over: a file, whole or not at all, readable
//! by its user alone, for whatever brings the interface up on this device.
//!
//! Called by `onboard` inside TO2. It configures no interface itself and never logs a passphrase.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_config::secret_file;
use holdfast_protocol::lan_module::Network;
use serde_json::json;

/// The credentials as a JSON file: `{"ssid": .., "passphrase": ..}`, the latter null for an open
/// network.
#[derive(Debug, Clone)]
pub struct NetworkFile(PathBuf);

impl NetworkFile {
    /// The file in the state folder.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self(state.join("network.json"))
    }

    /// Keeps the credentials durably. The same ones again change nothing; others replace them.
    ///
    /// # Errors
    /// The disk.
    pub fn keep(&self, network: &Network) -> io::Result<()> {
        let text = json!({ "ssid": network.ssid(), "passphrase": network.passphrase() });
        secret_file::write(&self.0, format!("{text}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn credentials_are_kept_for_the_user_alone_and_replaced_as_a_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let file = NetworkFile::of(folder.path());
        for ssid in ["harbour", "harbour", "quay"] {
            let secret = "eight888".to_owned().into();
            let network = Network::new(ssid.to_owned(), Some(secret)).expect("network");
            file.keep(&network).expect("kept");
            let text = std::fs::read_to_string(&file.0).expect("read");
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(
                (&value["ssid"], &value["passphrase"]),
                (&ssid.into(), &"eight888".into())
            );
        }
        let mode = std::fs::metadata(&file.0)
            .expect("file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
