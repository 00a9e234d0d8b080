//! What a party may publish, subscribe to and receive: compiled once from what its certificate
//! names and, for ordinary clients, from configured patterns. Default deny.
//!
//! Gateway and cloud ask the same compiler, each for its own [`Place`]; the broker asks the
//! compiled [`Rights`] at CONNECT (will), PUBLISH, SUBSCRIBE and again at delivery. Filters are
//! compared by parsed segments, so nothing in an id can become a wildcard.

use crate::{
    id::SiteId,
    name::Party,
    topic::{self, Filter, SharedFilter, Topic},
};

/// Whose broker asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A gateway's: only parties of this site have rights here.
    Site(SiteId),
    /// The cloud's: each site's parties keep to their own site.
    Cloud,
}

/// What an operator granted to an ordinary client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patterns {
    /// Filters within which it may publish.
    pub publish: Vec<Filter>,
    /// Filters within which it may subscribe.
    pub subscribe: Vec<Filter>,
    /// Whether it may share subscriptions (`$share/<group>/...`).
    pub shared: bool,
}

/// Compiled rights of one party at one place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    publish: Vec<Filter>,
    subscribe: Vec<Filter>,
    shared: bool,
}

impl Rights {
    /// The rights of nobody.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Compiles the rights of `party` at `place`. `patterns` count for [`Party::Client`] alone;
    /// at the cloud those of a site's client are kept to that site, since the site admitted it.
    #[must_use]
    pub fn compile(party: &Party, patterns: Option<&Patterns>, place: &Place) -> Self {
        match place {
            Place::Site(here) if party.site() != Some(here) => Self::none(),
            Place::Site(_) | Place::Cloud => Self::of(party, patterns, place),
        }
    }

    fn of(party: &Party, patterns: Option<&Patterns>, place: &Place) -> Self {
        match party {
            Party::Device { device, site } => {
                let (site, device) = (site.clone(), *device);
                Self {
                    publish: vec![
                        Filter::up_of(&site, device),
                        Filter::exactly(&Topic::ServiceReported {
                            site: site.clone(),
                            device,
                        }),
                    ],
                    subscribe: vec![Filter::of_device(&site, device)],
                    shared: false,
                }
            }
            Party::Service {
                device,
                service,
                site,
            } => {
                let (site, service, device) = (site.clone(), service.clone(), *device);
                let (to, from) = (site.clone(), service.clone());
                Self {
                    publish: vec![Filter::exactly(&Topic::Telemetry {
                        site,
                        service,
                        device,
                    })],
                    subscribe: vec![Filter::exactly(&Topic::Command {
                        site: to,
                        service: from,
                        device,
                    })],
                    shared: false,
                }
            }
            Party::Gateway { site, .. } => {
                let mut all = vec![Filter::of_site(site), Filter::services_of(site)];
                if *place == Place::Cloud {
                    all.push(Filter::extension_of(site));
                }
                Self {
                    publish: all.clone(),
                    subscribe: all,
                    shared: false,
                }
            }
            Party::Client { site, .. } => patterns.map_or_else(Self::none, |granted| {
                let bound = site.as_ref().filter(|_| *place == Place::Cloud);
                Self {
                    publish: within(bound, &granted.publish),
                    subscribe: within(bound, &granted.subscribe),
                    shared: granted.shared,
                }
            }),
            Party::Cloud { .. } => {
                let all = Filter::everything().to_vec();
                Self {
                    publish: all.clone(),
                    subscribe: all,
                    shared: false,
                }
            }
        }
    }

    /// The filters within which it may publish.
    #[must_use]
    pub fn publish(&self) -> &[Filter] {
        &self.publish
    }

    /// The filters within which it may subscribe.
    #[must_use]
    pub fn subscribe(&self) -> &[Filter] {
        &self.subscribe
    }

    /// Whether it may publish to this topic name (a will's too). Inside `hf` and `svc` the name
    /// must also be a topic of the tree.
    #[must_use]
    pub fn may_publish(&self, topic: &str) -> bool {
        self.publish.iter().any(|rule| rule.matches(topic))
            && topic::check_name(topic).is_ok()
            && (!Topic::claims(topic) || topic.parse::<Topic>().is_ok())
    }

    /// Whether it may subscribe to this filter, as SUBSCRIBE carries it: every topic that the
    /// filter could match must be allowed; a share group only to those who may share. A filter in
    /// `hf` or `svc` that could match no topic of the tree (`..`, empty levels) is refused too.
    #[must_use]
    pub fn may_subscribe(&self, filter: &str) -> bool {
        let Ok(asked) = filter.parse::<SharedFilter>() else {
            return false;
        };
        (asked.group.is_none() || self.shared)
            && (!Topic::claims(asked.filter.as_str()) || asked.filter.is_plain())
            && self
                .subscribe
                .iter()
                .any(|rule| rule.contains(&asked.filter))
    }

    /// Whether a message of this topic may be delivered to it.
    #[must_use]
    pub fn may_receive(&self, topic: &str) -> bool {
        self.subscribe.iter().any(|rule| rule.matches(topic))
    }
}

/// Those of `filters` that lie wholly inside the site, all of them when there is no bound.
fn within(bound: Option<&SiteId>, filters: &[Filter]) -> Vec<Filter> {
    let Some(site) = bound else {
        return filters.to_vec();
    };
    let trees = [
        Filter::of_site(site),
        Filter::services_of(site),
        Filter::extension_of(site),
    ];
    let inside = |filter: &&Filter| trees.iter().any(|tree| tree.contains(filter));
    filters.iter().filter(inside).cloned().collect()
}

#[cfg(test)]
mod tests;
