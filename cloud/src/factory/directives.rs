//! The rendezvous directives that the factory writes into a device, in the order of the design:
//! the gateway's name on the LAN, the installer's fixed address, the Internet rendezvous.
//!
//! Called once by [`crate::app`] at the start. Each directive names its protocol and its delay:
//! devices exist that otherwise assume TLS and two minutes.

use std::net::IpAddr;

use holdfast_config::HostPort;
use holdfast_protocol::rv::{Instruction, RendezvousInfo, RvProtocol};
use holdfast_protocol::wire::cbor::CborError;

use crate::config::Manufacturing;

/// The rendezvous info of `terms`; `internet` stands in where it names no Internet rendezvous.
///
/// # Errors
/// Too many addresses for one device.
pub fn rendezvous_info(
    terms: &Manufacturing,
    internet: &[HostPort],
) -> Result<RendezvousInfo, CborError> {
    let delay = u32::try_from(terms.delay.as_secs()).unwrap_or(u32::MAX);
    let mut directives = vec![on_the_lan(&terms.gateway, delay)];
    if let Some(address) = terms.installer {
        let installer = HostPort {
            host: address.ip().to_string(),
            port: address.port(),
        };
        directives.push(on_the_lan(&installer, delay));
    }
    let internet = if terms.rendezvous.is_empty() {
        internet
    } else {
        &terms.rendezvous
    };
    directives.extend(internet.iter().map(|server| {
        let mut directive = common(server, delay);
        directive.push(Instruction::OwnerPort(server.port));
        directive
    }));
    RendezvousInfo::new(directives)
}

/// The owner does not register there: the gateway and the installer answer by themselves.
fn on_the_lan(server: &HostPort, delay: u32) -> Vec<Instruction> {
    let mut directive = vec![Instruction::DevOnly];
    directive.extend(common(server, delay));
    directive
}

fn common(server: &HostPort, delay: u32) -> Vec<Instruction> {
    let host = match server.host.parse::<IpAddr>() {
        Ok(address) => Instruction::Ip(address),
        Err(_) => Instruction::Dns(server.host.clone()),
    };
    vec![
        host,
        Instruction::DevPort(server.port),
        Instruction::Protocol(RvProtocol::Http),
        Instruction::DelaySecs(delay),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_gateway_installer_internet() {
        let terms = Manufacturing {
            installer: Some("192.168.49.1:8042".parse().expect("address")),
            ..Manufacturing::default()
        };
        let internet = ["rv.example.com:80".parse().expect("host")];
        let info = rendezvous_info(&terms, &internet).expect("fits");
        let hosts: Vec<_> = info
            .device_contacts()
            .into_iter()
            .map(|contact| contact.dns.or(contact.ip.map(|ip| ip.to_string())))
            .map(Option::unwrap_or_default)
            .collect();
        assert_eq!(
            hosts,
            ["holdfast-rv.local", "192.168.49.1", "rv.example.com"]
        );
        let contacts = info.device_contacts();
        assert!(
            contacts
                .iter()
                .all(|c| c.delay_secs == Some(2) && c.protocol == RvProtocol::Http)
        );
        let owner: Vec<_> = info
            .owner_contacts()
            .into_iter()
            .map(|c| (c.dns, c.port))
            .collect();
        assert_eq!(
            owner,
            [(Some("rv.example.com".to_owned()), 80)],
            "the LAN is not the owner's"
        );
    }

    #[test]
    fn configured_rendezvous_servers_replace_our_own() {
        let terms = Manufacturing {
            rendezvous: vec!["10.0.0.9:8042".parse().expect("host")],
            ..Manufacturing::default()
        };
        let info = rendezvous_info(&terms, &["own:1".parse().expect("host")]).expect("fits");
        assert_eq!(
            info.owner_contacts()[0].ip,
            Some("10.0.0.9".parse().expect("ip"))
        );
        assert_eq!(info.owner_contacts().len(), 1);
    }
}
