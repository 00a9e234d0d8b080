//! Who a certificate names: the DNS names of the house and the parties behind them, both ways.
//!
//! ```text
//! <device>.devices.<site>.<domain>               a device (10, 210)
//! <device>.<service>.services.<site>.<domain>    the same device towards its service (210 -> 230)
//! <server>.gateways.<site>.<domain>              a gateway with its local CPS server (30, 50)
//! <name>.clients.<site>.<domain>                 a client admitted by a site
//! <name>.clients.<domain>                        a client admitted by the cloud
//! <server>.servers.<domain>                      a cloud server (40, 60, 90, 110)
//! ```
//! No two forms can be mistaken for one another: they differ in the number of labels or in a fixed
//! label, and no site may be called `clients` or `servers`. Only `certificate` and `topic` rights
//! are derived from a `Party`; nothing a peer says about itself is.

use std::fmt;

use crate::id::{ClientName, DeviceId, Domain, InvalidId, ServerId, ServiceId, SiteId};

/// A party as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    /// A device towards gateway and cloud.
    Device {
        /// Which one.
        device: DeviceId,
        /// Where it belongs.
        site: SiteId,
    },
    /// A device towards its service-providing server.
    Service {
        /// Which device.
        device: DeviceId,
        /// For which service.
        service: ServiceId,
        /// Where it belongs.
        site: SiteId,
    },
    /// A gateway.
    Gateway {
        /// Which one.
        server: ServerId,
        /// Whose site it serves.
        site: SiteId,
    },
    /// An ordinary MQTT client.
    Client {
        /// Its name.
        name: ClientName,
        /// The site that admitted it; `None` when the cloud did.
        site: Option<SiteId>,
    },
    /// A cloud server.
    Cloud {
        /// Which one.
        server: ServerId,
    },
}

impl Party {
    /// The one DNS name of this party; at most 253 characters, since a domain has at most 80.
    #[must_use]
    pub fn dns(&self, domain: &Domain) -> String {
        match self {
            Self::Device { device, site } => format!("{device}.devices.{site}.{domain}"),
            Self::Service {
                device,
                service,
                site,
            } => {
                format!("{device}.{service}.services.{site}.{domain}")
            }
            Self::Gateway { server, site } => format!("{server}.gateways.{site}.{domain}"),
            Self::Client {
                name,
                site: Some(site),
            } => format!("{name}.clients.{site}.{domain}"),
            Self::Client { name, site: None } => format!("{name}.clients.{domain}"),
            Self::Cloud { server } => format!("{server}.servers.{domain}"),
        }
    }

    /// The party that `dns` names under `domain`. Exact: no upper case, no trailing dot, no
    /// wildcard.
    ///
    /// # Errors
    /// [`InvalidName`], blame: whoever issued or presented the name.
    pub fn parse(dns: &str, domain: &Domain) -> Result<Self, InvalidName> {
        let inside = dns
            .strip_suffix(domain.as_str())
            .and_then(|rest| rest.strip_suffix('.'))
            .ok_or_else(|| InvalidName::Foreign {
                domain: domain.clone(),
            })?;
        let labels: Vec<&str> = inside.split('.').take(MAX_LABELS + 1).collect();
        Ok(match labels[..] {
            [server, "servers"] => Self::Cloud {
                server: server.parse()?,
            },
            [name, "clients"] => Self::Client {
                name: name.parse()?,
                site: None,
            },
            [device, "devices", site] => Self::Device {
                device: device.parse()?,
                site: site.parse()?,
            },
            [server, "gateways", site] => Self::Gateway {
                server: server.parse()?,
                site: site.parse()?,
            },
            [name, "clients", site] => Self::Client {
                name: name.parse()?,
                site: Some(site.parse()?),
            },
            [device, service, "services", site] => Self::Service {
                device: device.parse()?,
                service: service.parse()?,
                site: site.parse()?,
            },
            _ => return Err(InvalidName::Form),
        })
    }

    /// The site that the party belongs to; `None` for the cloud's own and its clients.
    #[must_use]
    pub fn site(&self) -> Option<&SiteId> {
        match self {
            Self::Device { site, .. } | Self::Service { site, .. } | Self::Gateway { site, .. } => {
                Some(site)
            }
            Self::Client { site, .. } => site.as_ref(),
            Self::Cloud { .. } => None,
        }
    }

    /// The device that it is, in either of its roles.
    #[must_use]
    pub fn device(&self) -> Option<DeviceId> {
        match self {
            Self::Device { device, .. } | Self::Service { device, .. } => Some(*device),
            Self::Gateway { .. } | Self::Client { .. } | Self::Cloud { .. } => None,
        }
    }

    /// Whether it serves others, and so bears serverAuth and IP addresses in its certificate.
    #[must_use]
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Gateway { .. } | Self::Cloud { .. })
    }
}

/// Most labels that a name has before the domain.
const MAX_LABELS: usize = 4;

impl fmt::Display for Party {
    /// For logs and people: the name without the domain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { device, site } => write!(f, "device {device} of {site}"),
            Self::Service {
                device,
                service,
                site,
            } => {
                write!(f, "device {device} of {site} for service {service}")
            }
            Self::Gateway { server, site } => write!(f, "gateway {server} of {site}"),
            Self::Client {
                name,
                site: Some(site),
            } => write!(f, "client {name} of {site}"),
            Self::Client { name, site: None } => write!(f, "client {name}"),
            Self::Cloud { server } => write!(f, "cloud server {server}"),
        }
    }
}

/// A DNS name that names no party of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// It lies outside our domain.
    #[error("the name is not under {domain}")]
    Foreign {
        /// The domain it should be under.
        domain: Domain,
    },
    /// Under our domain, but none of the forms above.
    #[error("the name has none of the forms of a device, service, gateway, client or server")]
    Form,
    /// The right form with a wrong id in it.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Guid, MAX_DOMAIN};
    use proptest::prelude::*;

    fn label() -> impl Strategy<Value = String> {
        // The fixed labels of the scheme are the likeliest to be mistaken: give them often.
        prop_oneof![
            "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?",
            prop::sample::select(vec![
                "devices", "services", "gateways", "clients", "servers", "internal"
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn site() -> impl Strategy<Value = SiteId> {
        label().prop_filter_map("reserved", |text| text.parse().ok())
    }

    fn party() -> impl Strategy<Value = Party> {
        let device = any::<[u8; 16]>().prop_map(|guid| DeviceId::from_guid(Guid(guid)));
        prop_oneof![
            (device.clone(), site()).prop_map(|(device, site)| Party::Device { device, site }),
            (device, label(), site()).prop_map(|(device, service, site)| Party::Service {
                device,
                service: service.parse().unwrap(),
                site
            }),
            (label(), site()).prop_map(|(server, site)| Party::Gateway {
                server: server.parse().unwrap(),
                site
            }),
            (label(), prop::option::of(site())).prop_map(|(name, site)| Party::Client {
                name: name.parse().unwrap(),
                site
            }),
            label().prop_map(|server| Party::Cloud {
                server: server.parse().unwrap()
            }),
        ]
    }

    proptest! {
        #[test]
        fn names_and_parties_are_one_to_one(a in party(), b in party()) {
            let domain: Domain = "holdfast.internal".parse().unwrap();
            prop_assert_eq!(&Party::parse(&a.dns(&domain), &domain).unwrap(), &a);
            prop_assert_eq!(a.dns(&domain) == b.dns(&domain), a == b);
        }

        #[test]
        fn nothing_else_parses(text in "[a-zA-Z0-9.*_-]{0,80}") {
            let domain: Domain = "holdfast.internal".parse().unwrap();
            if let Ok(party) = Party::parse(&text, &domain) {
                prop_assert_eq!(party.dns(&domain), text);
            }
        }
    }

    #[test]
    fn refuses_names_that_only_look_right() {
        let domain: Domain = "holdfast.internal".parse().unwrap();
        let device = "0".repeat(32);
        for bad in [
            format!("{device}.devices.clients.holdfast.internal"),
            format!("{device}.devices.plant.holdfast.internal."),
            format!("{device}.devices.plant.holdfast.internal.evil"),
            format!("{device}.devices.plant.evilholdfast.internal"),
            format!("{device}.devices.Plant.holdfast.internal"),
            format!("x.{device}.devices.plant.holdfast.internal"),
            "*.devices.plant.holdfast.internal".to_owned(),
            "gw.devices.plant.holdfast.internal".to_owned(),
            ".servers.holdfast.internal".to_owned(),
            "holdfast.internal".to_owned(),
            String::new(),
        ] {
            assert!(Party::parse(&bad, &domain).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_name_fits_dns() {
        let long = "x".repeat(63);
        let domain: Domain = format!("{}.{}", "d".repeat(63), "d".repeat(MAX_DOMAIN - 64))
            .parse()
            .unwrap();
        let party = Party::Service {
            device: DeviceId::from_guid(Guid([0xff; 16])),
            service: long.parse().unwrap(),
            site: long.parse().unwrap(),
        };
        assert!(party.dns(&domain).len() <= 253);
    }
}
