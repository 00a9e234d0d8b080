//! A device's services as listings show them: plain values for JSON. Made by `lifecycle`.

use holdfast_protocol::record::{Assignment, DeviceRecord, Period};
use serde::Serialize;

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
    /// The application program, if one was named.
    pub application: Option<String>,
    /// Unix seconds.
    pub start: u64,
    /// What the server's clock was worth then.
    pub start_quality: String,
    /// Unix seconds; still runs if none.
    pub end: Option<u64>,
    /// What the server's clock was worth then.
    pub end_quality: Option<String>,
    /// Serial numbers of its certificates, hex, oldest first.
    pub serials: Vec<String>,
}

impl ServicesView {
    pub(super) fn of(record: &DeviceRecord) -> Self {
        let services = record.services();
        let name = |one: &Assignment| one.service.to_string();
        Self {
            device: record.device().to_string(),
            desired: services.desired().map(|order| name(&order.assignment)),
            running: services.running().map(|(one, _)| name(one)),
            activated: services.activation().is_some(),
            history: services.history().iter().map(PeriodView::of).collect(),
        }
    }
}

impl PeriodView {
    fn of(period: &Period) -> Self {
        let one = &period.assignment;
        Self {
            service: one.service.to_string(),
            server: one.server.as_ref().map(|server| server.server.to_string()),
            application: one.application.as_ref().map(ToString::to_string),
            start: period.start.secs,
            start_quality: period.start.quality.to_string(),
            end: period.end.map(|end| end.secs),
            end_quality: period.end.map(|end| end.quality.to_string()),
            serials: period.serials.iter().map(ToString::to_string).collect(),
        }
    }
}
