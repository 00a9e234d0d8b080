//! `[clients]`: listeners for ordinary MQTT clients, all of them off unless an address is written, and the
//! file of those that come with a password.
//!
//! Read by each binary's configuration, used by [`crate::doors`] and [`crate::users`]. The file is read
//! here too, so that every fault is told at once; its content is read again when it is used.

use std::net::SocketAddr;
use std::path::PathBuf;

use holdfast_config::{Section, Settings};

use super::users;

/// Most origins of web pages.
const MOST_ORIGINS: usize = 100;

/// `[clients]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clients {
    /// Who comes with a password, and what each may do.
    pub file: Option<PathBuf>,
    /// TLS by the server's certificate, then name and password.
    pub tls: Option<SocketAddr>,
    /// Name and password as they come, readable on the way.
    pub plain: Option<SocketAddr>,
    /// The operator knows what `plain` means on an address that others reach.
    pub plain_beyond_loopback: bool,
    /// MQTT through WebSocket over TLS, by a client certificate.
    pub websocket: Option<SocketAddr>,
    /// MQTT through WebSocket over TLS, by name and password.
    pub websocket_password: Option<SocketAddr>,
    /// Web pages that may open WebSockets; programs name no origin and need none.
    pub origins: Vec<String>,
    /// Wrong passwords borne from one address for one name each minute, and ten times that for all
    /// names; beyond it nothing is checked until the minute is over.
    pub guesses_per_minute: u32,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            file: None,
            tls: None,
            plain: None,
            plain_beyond_loopback: false,
            websocket: None,
            websocket_password: None,
            origins: Vec::new(),
            guesses_per_minute: 10,
        }
    }
}

impl Settings for Clients {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let clients = Self {
            file: section.path("file"),
            tls: section.optional("tls"),
            plain: section.optional("plain"),
            plain_beyond_loopback: section.get("plain_beyond_loopback", false),
            websocket: section.optional("websocket"),
            websocket_password: section.optional("websocket_password"),
            origins: section.get_checked("origins", Vec::new(), |list| are_origins(list)),
            guesses_per_minute: section.get_checked(
                "guesses_per_minute",
                default.guesses_per_minute,
                |count| match *count {
                    1..=1000 => Ok(()),
                    _ => Err((format!("{count} guesses"), "write 1 to 1000".to_owned())),
                },
            ),
        };
        clients.check(section);
        clients
    }
}

impl Clients {
    /// The listeners that ask for a password, by their keys.
    fn by_password(&self) -> [(&'static str, Option<SocketAddr>); 3] {
        [
            ("tls", self.tls),
            ("plain", self.plain),
            ("websocket_password", self.websocket_password),
        ]
    }

    fn check(&self, section: &mut Section<'_>) {
        let open = self.by_password();
        if let Some(file) = &self.file {
            if open.iter().all(|(_, address)| address.is_none()) {
                let remedy = "write tls = \"0.0.0.0:8884\" as well, or leave the file out";
                section.fault("file", "names clients whom no listener lets in", remedy);
            }
            users::check(section, "file", file);
        }
        for (key, address) in open {
            if address.is_some() && self.file.is_none() {
                let remedy =
                    "add file = \"clients.toml\", where the clients and their hashes stand";
                section.fault(key, "asks for passwords that nobody has", remedy);
            }
        }
        if let Some(plain) = self.plain
            && !plain.ip().is_loopback()
            && !self.plain_beyond_loopback
        {
            let what = format!(
                "{plain} shows names, passwords and messages to everyone on that network, who can \
                 change them too"
            );
            let remedy = "use tls instead, or a loopback address such as \"127.0.0.1:1883\"; if it \
                          must be so, write plain_beyond_loopback = true as well";
            section.fault("plain", &what, remedy);
        }
        let web = self.websocket.or(self.websocket_password);
        if !self.origins.is_empty() && web.is_none() {
            let remedy = "write websocket or websocket_password as well, or leave the origins out";
            section.fault("origins", "let pages in where no listener is", remedy);
        }
    }
}

/// An origin as browsers write it: scheme, host, perhaps a port, nothing behind.
fn are_origins(list: &[String]) -> Result<(), (String, String)> {
    let remedy = "write what the browser sends, such as \"https://console.example:8080\"";
    if list.len() > MOST_ORIGINS {
        let remedy = format!("write at most {MOST_ORIGINS}");
        return Err((format!("holds {} origins", list.len()), remedy));
    }
    let is_origin = |text: &str| {
        let rest = text
            .strip_prefix("https://")
            .or(text.strip_prefix("http://"));
        rest.is_some_and(|host| {
            !host.is_empty()
                && !host.contains(['/', '*', '@', ' '])
                && !host.contains(|c: char| c.is_ascii_uppercase() || c.is_control())
        })
    };
    match list.iter().find(|text| !is_origin(text)) {
        Some(bad) => Err((format!("{bad:?} is no origin"), remedy.to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
