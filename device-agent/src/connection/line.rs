//! For whom a connection speaks: the device itself at its site, or the device in a service.
//!
//! Used by `connection`. It names topics and filters and tells people how it goes; it sends nothing.

use holdfast_protocol::id::{ServerId, ServiceId};
use holdfast_protocol::site_module::SiteConfig;
use holdfast_protocol::topic::{Filter, Topic};

use crate::outbox::Row;
use crate::service::Desk;
use crate::status::{Board, Link, Phase};

/// Numbers of all sensors of a service run in one row: they share its one topic.
const LANE: &str = "telemetry";

/// One of the two lines of an agent.
#[derive(Debug)]
pub(super) enum Line {
    /// By the device's own certificate: `up`, `down` and the notices; with the room of the services, if it is there.
    Site(Option<Desk>),
    /// By the certificate of a service: `telemetry` and `command`.
    Service(ServiceId),
}

/// How a connection is.
#[derive(Debug)]
pub(super) enum How {
    /// Not there, and why.
    Connecting(String),
    /// There.
    Serving {
        server: String,
        role: Option<&'static str>,
        address: String,
    },
}

impl Line {
    /// The room that hears notices on this line.
    pub(super) fn desk(&self) -> Option<&Desk> {
        match self {
            Self::Site(desk) => desk.as_ref(),
            Self::Service(_) => None,
        }
    }

    /// Where a reading goes.
    pub(super) fn topic(&self, site: &SiteConfig, row: &Row) -> Topic {
        let (device, site) = (site.device, site.site.clone());
        match self {
            Self::Site(_) => Topic::Up {
                site,
                device,
                name: row
                    .name
                    .parse()
                    .expect("the configuration takes topic names only"),
            },
            Self::Service(service) => Topic::Telemetry {
                site,
                service: service.clone(),
                device,
            },
        }
    }

    /// Readings of one lane are numbered in a row, and overtake each other at no server.
    pub(super) fn lane<'a>(&self, row: &'a Row) -> &'a str {
        match self {
            Self::Site(_) => &row.name,
            Self::Service(_) => LANE,
        }
    }

    /// What is to be heard.
    pub(super) fn filters(&self, site: &SiteConfig) -> Vec<Filter> {
        let (device, site) = (site.device, site.site.clone());
        if let Self::Service(service) = self {
            let service = service.clone();
            return vec![Filter::exactly(&Topic::Command {
                site,
                service,
                device,
            })];
        }
        // A name has one to four parts, and `#` would also mean the parent itself.
        let down = format!("hf/v1/{site}/{device}/down/#");
        let desired = Topic::ServiceDesired {
            site: site.clone(),
            device,
        };
        let alternate = Topic::Alternate {
            site: site.clone(),
            device,
        };
        let identity = Topic::Identity { site, device };
        let told = [identity, desired, alternate];
        let mut filters: Vec<_> = told.iter().map(Filter::exactly).collect();
        filters.extend(down.parse());
        filters
    }

    /// Tells people that a server is dialled, unless they read a reason why there is none.
    pub(super) fn dialling(&self, board: &Board, server: &ServerId) {
        match self {
            Self::Site(_) => board.tell(|status| {
                if status.phase != Phase::Connecting {
                    status.phase = Phase::Connecting;
                    status.detail = format!("dialling {server}");
                }
            }),
            Self::Service(service) => board.tell(|status| {
                let link = &mut status.service_link;
                if link.detail.is_empty() {
                    link.service = Some(service.to_string());
                    link.detail = format!("dialling {server}");
                }
            }),
        }
    }

    /// Tells people.
    pub(super) fn tell(&self, board: &Board, how: How) {
        match (self, how) {
            (Self::Site(_), How::Connecting(why)) => board.phase(Phase::Connecting, why),
            (
                Self::Site(_),
                How::Serving {
                    server,
                    role,
                    address,
                },
            ) => {
                board.phase(Phase::Serving, "");
                board.tell(|status| {
                    status.server = Some(server);
                    status.role = role.map(str::to_owned);
                    status.address = Some(address);
                });
            }
            (Self::Service(service), how) => {
                let link = match how {
                    How::Connecting(detail) => Link {
                        detail,
                        ..Link::default()
                    },
                    How::Serving {
                        server,
                        role,
                        address,
                    } => Link {
                        server: Some(server),
                        role: role.map(str::to_owned),
                        address: Some(address),
                        ..Link::default()
                    },
                };
                let service = Some(service.to_string());
                board.tell(|status| status.service_link = Link { service, ..link });
            }
        }
    }
}
