//! A device's services as listings show them: plain values for JSON. Made by `lifecycle`.

use holdfast_protocol::id::SiteId;
use holdfast_protocol::record::{Assignment, DeviceRecord, EntryId, Period, Renewed};
use holdfast_store::StoreError;
use serde::Serialize;

use crate::tables::{Source, Tables, When};

/// What is ordered, what runs, and the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicesView {
    /// Its id.
    pub device: String,
    /// The service that is ordered.
    pub desired: Option<String>,
    /// The service that it was given its certificate for last.
    pub running: Option<String>,
    /// Whether it has its credential.
    pub activated: bool,
    /// Oldest first.
    pub history: Vec<PeriodView>,
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeriodView {
    /// Which service.
    pub service: String,
    /// The service-providing server, if one was named.
    pub server: Option<String>,
    /// Whether no server of the site may stand in for it.
    pub alone: bool,
    /// The application program, if one was named.
    pub application: Option<String>,
    /// When it began, as far as it is known by now.
    pub from: When,
    /// When it ended; still runs if none.
    pub until: Option<When>,
    /// Serial numbers of its certificates, hex, oldest first.
    pub serials: Vec<String>,
    /// When its key and certificate were renewed, oldest first.
    pub renewals: Vec<RenewalView>,
}

/// A new key and certificate for a service that went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenewalView {
    /// Serial number of the new certificate, hex.
    pub serial: String,
    /// When, as far as it is known by now.
    pub at: When,
}

impl ServicesView {
    pub(super) fn of<S: Source>(
        view: Tables<S>,
        site: &SiteId,
        record: &DeviceRecord,
    ) -> Result<Self, StoreError> {
        let history = record.services().history();
        let history = history.iter().map(|one| PeriodView::of(view, site, one));
        let services = record.services();
        let name = |one: &Assignment| one.service.to_string();
        Ok(Self {
            device: record.device().to_string(),
            desired: services.desired().map(|order| name(&order.assignment)),
            running: services.running().map(|(one, _)| name(one)),
            activated: services.activation().is_some(),
            history: history.collect::<Result<_, _>>()?,
        })
    }
}

impl PeriodView {
    fn of<S: Source>(view: Tables<S>, site: &SiteId, period: &Period) -> Result<Self, StoreError> {
        let one = &period.assignment;
        let when = |id: &EntryId, shown| -> Result<When, StoreError> {
            let when = view.when_of(site, id)?;
            Ok(when.unwrap_or_else(|| When::shown(shown)))
        };
        let end = period.end.zip(period.ended.as_ref());
        Ok(Self {
            service: one.service.to_string(),
            server: one.server.as_ref().map(|server| server.server.to_string()),
            alone: one.alone,
            application: one.application.as_ref().map(ToString::to_string),
            from: when(&period.started, period.start)?,
            until: end.map(|(at, id)| when(id, at)).transpose()?,
            serials: period.serials.iter().map(ToString::to_string).collect(),
            renewals: {
                let view = |one: &Renewed| -> Result<RenewalView, StoreError> {
                    let (serial, at) = (one.serial.to_string(), when(&one.entry, one.at)?);
                    Ok(RenewalView { serial, at })
                };
                period.renewals.iter().map(view).collect::<Result<_, _>>()?
            },
        })
    }
}
