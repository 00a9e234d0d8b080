//! How the sockets of the cloud are reached by others.

use std::net::SocketAddr;

use holdfast_config::HostPort;
use holdfast_link::discovery::{Interfaces, local_addresses};

use super::BuildError;

/// How others reach `listening`: as told, or by the address itself, or by all of this machine's.
pub(super) fn reached(
    told: &[HostPort],
    listening: SocketAddr,
) -> Result<Vec<HostPort>, BuildError> {
    if !told.is_empty() {
        return Ok(told.to_vec());
    }
    let addresses = match listening.ip() {
        ip if !ip.is_unspecified() => vec![ip],
        _ => local_addresses(&Interfaces::Lan).map_err(BuildError::Interfaces)?,
    };
    let port = listening.port();
    Ok(addresses
        .into_iter()
        .map(|ip| HostPort {
            host: ip.to_string(),
            port,
        })
        .collect())
}
