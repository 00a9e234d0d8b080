//! The walls between the rooms, as data and a judge: who may import whom, and what may not be in the graph at all.
//! Called by the test `walls`, which feeds it `cargo metadata`; it never runs a command itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Our crates and, for each, the crates of ours it may import. `holdfast-tests` sees all.
const DOORS: &[(&str, &[&str])] = &[
    ("holdfast-protocol", &[]),
    ("holdfast-store", &[]),
    ("holdfast-disk", &[]),
    ("holdfast-config", &["holdfast-disk"]),
    ("holdfast-link", &["holdfast-protocol"]),
    ("holdfast-broker", &["holdfast-store"]),
    (
        "holdfast-cps",
        &[
            "holdfast-protocol",
            "holdfast-store",
            "holdfast-disk",
            "holdfast-link",
        ],
    ),
    ("holdfast-server", LIBRARIES),
    ("holdfast-gateway", SERVER_DOORS),
    ("holdfast-cloud", SERVER_DOORS),
    (
        "holdfast-agent",
        &[
            "holdfast-protocol",
            "holdfast-store",
            "holdfast-link",
            "holdfast-config",
            "holdfast-disk",
        ],
    ),
    (
        "holdfast-installer",
        &[
            "holdfast-protocol",
            "holdfast-link",
            "holdfast-config",
            "holdfast-disk",
        ],
    ),
];

/// What the servers' common crate may import: every library, no binary.
const LIBRARIES: &[&str] = &[
    "holdfast-protocol",
    "holdfast-store",
    "holdfast-link",
    "holdfast-broker",
    "holdfast-cps",
    "holdfast-config",
];

/// What the two server binaries may import: those and the common crate, which nobody else may.
const SERVER_DOORS: &[&str] = &[
    "holdfast-protocol",
    "holdfast-store",
    "holdfast-disk",
    "holdfast-link",
    "holdfast-broker",
    "holdfast-cps",
    "holdfast-config",
    "holdfast-server",
];

/// Crates that nothing of ours may bring in: a second TLS or crypto provider.
const BANNED: &[&str] = &[
    "aws-lc-rs",
    "aws-lc-sys",
    "openssl",
    "openssl-sys",
    "native-tls",
];

/// Crates that `protocol` may not reach by any path in a normal build: it has no I/O, clock or global randomness.
const NOT_IN_PROTOCOL: &[&str] = &["tokio", "mio", "hyper", "redb", "rustls", "axum", "socket2"];

/// Every breach found in the output of `cargo metadata --format-version 1`, one sentence each; empty if the walls hold.
#[must_use]
pub fn breaches(metadata: &Value) -> Vec<String> {
    let graph = Graph::read(metadata);
    let mut found = Vec::new();
    graph.forbidden_edges(&mut found);
    graph.banned_crates(&mut found);
    graph.impure_protocol(&mut found);
    found
}

/// The resolved graph: names by package id, edges by package id with a mark for dev-only ones.
#[derive(Debug)]
struct Graph {
    names: BTreeMap<String, String>,
    ours: BTreeSet<String>,
    edges: BTreeMap<String, Vec<(String, bool)>>,
}

impl Graph {
    fn read(metadata: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let names = list(&metadata["packages"])
            .iter()
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let ours = list(&metadata["workspace_members"])
            .iter()
            .map(text)
            .collect();
        let edges = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let to = list(&node["deps"])
                    .iter()
                    .map(|dep| (text(&dep["pkg"]), is_dev_only(&dep["dep_kinds"])))
                    .collect();
                (text(&node["id"]), to)
            })
            .collect();
        Self { names, ours, edges }
    }

    fn name(&self, id: &str) -> &str {
        self.names.get(id).map_or("?", String::as_str)
    }

    fn forbidden_edges(&self, found: &mut Vec<String>) {
        for id in &self.ours {
            let from = self.name(id);
            if from == "holdfast-tests" {
                continue;
            }
            let Some((_, doors)) = DOORS.iter().find(|(name, _)| *name == from) else {
                found.push(format!(
                    "{from} is a new crate: give it a line in tests/src/walls.rs"
                ));
                continue;
            };
            for (to, _) in self.edges.get(id).into_iter().flatten() {
                let to_name = self.name(to);
                if self.ours.contains(to) && !doors.contains(&to_name) {
                    found.push(format!("{from} imports {to_name}: no door there"));
                }
            }
        }
    }

    fn banned_crates(&self, found: &mut Vec<String>) {
        for id in self.edges.keys() {
            let name = self.name(id);
            if BANNED.contains(&name) {
                found.push(format!(
                    "{name} is in the graph: rustls with ring is the one provider"
                ));
            }
        }
    }

    fn impure_protocol(&self, found: &mut Vec<String>) {
        let Some(start) = self
            .ours
            .iter()
            .find(|id| self.name(id) == "holdfast-protocol")
        else {
            found.push("holdfast-protocol is not in the workspace".to_owned());
            return;
        };
        let mut seen = BTreeSet::from([start.clone()]);
        let mut next = vec![start.clone()];
        while let Some(id) = next.pop() {
            for (to, dev_only) in self.edges.get(&id).into_iter().flatten() {
                if !dev_only && seen.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        for id in &seen {
            let name = self.name(id);
            if NOT_IN_PROTOCOL.contains(&name) {
                found.push(format!(
                    "holdfast-protocol reaches {name}: it must stay pure"
                ));
            }
        }
    }
}

/// True if every kind of this dependency is `dev`.
fn is_dev_only(kinds: &Value) -> bool {
    kinds.as_array().is_some_and(|kinds| {
        !kinds.is_empty()
            && kinds
                .iter()
                .all(|kind| kind["kind"].as_str() == Some("dev"))
    })
}

#[cfg(test)]
mod tests {
    use super::breaches;
    use serde_json::{Value, json};

    /// A tiny workspace of some of our crates, with the given edges from the named crate.
    fn metadata(from: &str, to: &[(&str, Option<&str>)]) -> Value {
        let all = [
            "holdfast-protocol",
            "holdfast-store",
            "holdfast-gateway",
            "holdfast-cloud",
            "holdfast-server",
            "holdfast-agent",
            "tokio",
            "openssl",
        ];
        let packages: Vec<_> = all
            .iter()
            .map(|name| json!({"id": name, "name": name}))
            .collect();
        let members: Vec<_> = all
            .iter()
            .filter(|name| name.starts_with("holdfast"))
            .collect();
        let deps: Vec<_> = to
            .iter()
            .map(|(pkg, kind)| json!({"pkg": pkg, "dep_kinds": [{"kind": kind}]}))
            .collect();
        json!({
            "packages": packages,
            "workspace_members": members,
            "resolve": {"nodes": [{"id": from, "deps": deps}]},
        })
    }

    #[test]
    fn a_door_is_no_breach() {
        let graph = metadata(
            "holdfast-gateway",
            &[("holdfast-store", None), ("tokio", None)],
        );
        assert_eq!(breaches(&graph), Vec::<String>::new());
    }

    #[test]
    fn control_a_planted_edge_is_found() {
        let binary_to_binary = metadata("holdfast-gateway", &[("holdfast-cloud", None)]);
        assert_eq!(breaches(&binary_to_binary).len(), 1);
        let upwards = metadata("holdfast-protocol", &[("holdfast-store", None)]);
        assert_eq!(breaches(&upwards).len(), 1);
        let only_for_tests = metadata("holdfast-gateway", &[("holdfast-cloud", Some("dev"))]);
        assert_eq!(
            breaches(&only_for_tests).len(),
            1,
            "a dev-dependency is an edge too"
        );
        let not_a_server = metadata("holdfast-agent", &[("holdfast-server", None)]);
        assert_eq!(breaches(&not_a_server).len(), 1);
        let back = metadata("holdfast-server", &[("holdfast-gateway", None)]);
        assert_eq!(breaches(&back).len(), 1);
        let a_server = metadata("holdfast-cloud", &[("holdfast-server", None)]);
        assert!(breaches(&a_server).is_empty());
    }

    #[test]
    fn control_a_banned_crate_and_an_impure_protocol_are_found() {
        let mut banned = metadata("holdfast-gateway", &[("openssl", None)]);
        banned["resolve"]["nodes"][0]["id"] = json!("openssl");
        assert_eq!(breaches(&banned).len(), 1);
        assert_eq!(
            breaches(&metadata("holdfast-protocol", &[("tokio", None)])).len(),
            1
        );
        assert!(breaches(&metadata("holdfast-protocol", &[("tokio", Some("dev"))])).is_empty());
    }
}
