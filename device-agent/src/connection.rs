//! The MQTT connection: carries the outbox to a server and the server's messages to the device.
//!
//! Run by `app` for as long as the device serves. The gateway comes first, the cloud stands in when it
//! cannot be reached; which one and when is decided by `protocol::alternate`. A row leaves the outbox
//! when a server has acknowledged it, and only then; after every reconnection what is left is sent
//! again, in order and under the same numbers, so that servers know repeats. It keeps nothing itself.

mod flight;
mod line;
mod notices;
mod server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_link::discovery::Discovery;
use holdfast_link::mqtt::{self, Client, Inbox, Publish, PublishError, Qos};
use holdfast_link::random::SystemRandom;
use holdfast_link::time::{Clock, SystemClock};
use holdfast_link::tls::Anchors;
use holdfast_protocol::alternate::{Alternate, Settings, Step};
use holdfast_protocol::id::{ServerId, ServiceId};
use holdfast_protocol::time::{PROPERTY, Time};
use holdfast_protocol::topic::Topic;
use holdfast_store::StoreError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::alternates::{self, Alternates};
use crate::commands::Commands;
use crate::config;
use crate::outbox::{Outbox, Row};
use crate::renewal::Ordered;
use crate::service::{self, Desk};
use crate::status::Board;
use crate::vault::Identity;
use flight::Flight;
use line::{How, Line};
pub(crate) use server::SESSION;
use server::Servers;
pub use server::Unusable;

/// Rows read from the outbox at once.
const READ: usize = 128;
/// Pause before a command is kept again after a fault of the disk.
const COMMAND_RETRY: Duration = Duration::from_secs(1);
/// Pause before the store is read again after a fault.
const STORE_RETRY: Duration = Duration::from_millis(200);
/// For what is on its way when the agent stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// For the outcomes in flight after a refusal.
const LANDING: Duration = Duration::from_secs(5);
/// How long a connection must have lived to count as a success.
const SETTLED: Duration = Duration::from_secs(10);
/// The mark of reports among publications; rows of the outbox never reach it.
const REPORT: u64 = u64::MAX;
/// From one look at a better server to the next, while it can be reached.
const CHECK: Duration = Duration::from_secs(5);

/// The connection of one identity.
#[derive(Debug)]
pub struct Connection {
    servers: Servers,
    identity: Identity,
    outbox: Outbox,
    config: config::Connection,
    board: Board,
    line: Line,
    commands: Commands,
    told: Option<Told>,
    /// Hears that the certificate shall be renewed.
    ordered: Option<Ordered>,
    clock: Arc<dyn Clock>,
    /// Hears the time that servers tell.
    teller: Option<Arc<SystemClock>>,
    /// Counts sessions begun with the present certificate.
    sessions: Arc<AtomicU32>,
    begun: Instant,
}

/// Who hears notices of other servers, and what is known of them.
#[derive(Debug)]
struct Told {
    room: Alternates,
    servers: alternates::Servers,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("asked to")]
    Stopping,
    #[error("a better server can be reached again")]
    Better,
    #[error(transparent)]
    Lost(mqtt::Ended),
    #[error("the server refused {count} publications ({code}): see its log for the reason")]
    Refused {
        count: usize,
        code: mqtt::ReasonCode,
    },
    #[error("a reading cannot be sent: {0}")]
    Unsendable(PublishError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Connection {
    /// A connection for `identity`; nothing is dialled yet.
    ///
    /// # Errors
    /// Certificate, key or anchors cannot be used for TLS.
    pub fn new(
        identity: Identity,
        outbox: Outbox,
        config: config::Connection,
        discovery: Option<(Arc<Discovery>, Duration)>,
        clock: Arc<dyn Clock>,
        board: Board,
    ) -> Result<Self, Unusable> {
        let servers = Arc::clone(&clock);
        let servers = Servers::new(&identity, discovery, servers, &config, board.clone())?;
        Ok(Self {
            servers,
            identity,
            outbox,
            config,
            board,
            line: Line::Site(None),
            commands: Commands::logged(),
            told: None,
            ordered: None,
            clock,
            teller: None,
            sessions: Arc::default(),
            begun: Instant::now(),
        })
    }

    /// By which servers are believed; it remembers what the last one showed.
    #[must_use]
    pub fn anchors(&self) -> Anchors {
        self.servers.anchors()
    }

    /// Hands notices about services over to `desk`, and publishes its reports.
    #[must_use]
    pub fn with_desk(mut self, desk: Desk) -> Self {
        self.line = Line::Site(Some(desk));
        self
    }

    /// Speaks for the device in this service, by an identity whose certificate is the service's: to the servers of
    /// that identity, the first one preferred.
    #[must_use]
    pub fn in_service(mut self, service: ServiceId) -> Self {
        self.servers.prefer_as_told(&self.identity);
        self.line = Line::Service(service);
        self
    }

    /// Hands what the device is told to do over to `commands`.
    #[must_use]
    pub fn with_commands(mut self, commands: Commands) -> Self {
        self.commands = commands;
        self
    }

    /// Counts its sessions in `sessions`.
    #[must_use]
    pub fn counted_in(mut self, sessions: Arc<AtomicU32>) -> Self {
        self.sessions = sessions;
        self
    }

    /// Lets `clock` hear the time that servers tell.
    #[must_use]
    pub fn with_teller(mut self, clock: Arc<SystemClock>) -> Self {
        self.teller = Some(clock);
        self
    }

    /// Hands notices of other servers over to `room`, and uses `servers` as they change.
    #[must_use]
    pub fn told_by(mut self, room: Alternates, servers: alternates::Servers) -> Self {
        self.told = Some(Told { room, servers });
        self
    }

    /// Hands orders to renew the certificate over to `ordered`.
    #[must_use]
    pub fn renewed_by(mut self, ordered: Ordered) -> Self {
        self.ordered = Some(ordered);
        self
    }

    /// Stays connected until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(told) = &self.told {
            let mut changes = told.servers.clone();
            let servers = changes.borrow_and_update().clone();
            self.servers.become_(servers);
            let end = stop.child_token();
            {
                let mut connected = std::pin::pin!(self.stay_connected(&end));
                tokio::select! {
                    () = &mut connected => {}
                    Ok(()) = changes.changed() => {
                        info!("the device was told of other servers: connecting anew");
                        end.cancel();
                        connected.await;
                    }
                }
            }
            if stop.is_cancelled() {
                return;
            }
        }
        self.stay_connected(&stop).await;
    }

    async fn stay_connected(&self, stop: &CancellationToken) {
        if let Line::Site(_) = self.line {
            let known = self.servers.ids().iter().map(ToString::to_string).collect();
            self.board.tell(|status| status.servers = known);
        }
        let mut choice = Alternate::new(self.settings(), &self.servers.ids());
        if self.servers.ids().is_empty() {
            let why = "the owner named no server to connect to: see its [advertise] settings";
            warn!("{why}; readings are kept");
            self.how(How::Connecting(why.to_owned()));
        }
        let mut told = BTreeMap::new();
        while !stop.is_cancelled() {
            match choice.next(self.now()) {
                Step::Dial(server) => {
                    let dialled = tokio::select! {
                        dialled = self.dial(&server) => dialled.map_err(|error| error.to_string()),
                        () = self.better_than(&server) => Err("a better server answers".to_owned()),
                        () = stop.cancelled() => return,
                    };
                    match dialled {
                        Ok(dialled) => {
                            told.clear();
                            choice.connected(self.now());
                            self.stay(&mut choice, &server, dialled, stop).await;
                        }
                        Err(error) => {
                            choice.failed(self.now(), &mut SystemRandom);
                            self.tell(&mut told, &server, error);
                        }
                    }
                }
                Step::Wait(until) => {
                    _ = stop
                        .run_until_cancelled(tokio::time::sleep_until(self.begun + until))
                        .await;
                }
                // Only asked for while connected.
                Step::Check(_) | Step::Leave => choice.left(self.now()),
            }
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            first_wait: self.config.retry.first,
            longest_wait: self.config.retry.longest,
            settled: SETTLED,
            steady: self.config.return_after,
            check: CHECK,
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The same fault of a server is warned of once and then only noted.
    fn tell(&self, told: &mut BTreeMap<ServerId, String>, server: &ServerId, error: String) {
        if told.get(server) == Some(&error) {
            debug!(%server, error, "no connection");
        } else {
            warn!(%server, error, "no connection; readings are kept and will be sent");
        }
        self.how(How::Connecting(format!("{server}: {error}")));
        told.insert(server.clone(), error);
    }

    fn how(&self, how: How) {
        self.line.tell(&self.board, how);
    }

    async fn dial(
        &self,
        server: &ServerId,
    ) -> Result<(Client, Inbox, mqtt::Granted), mqtt::ConnectError> {
        self.line.dialling(&self.board, server);
        self.servers.dial(server).await
    }

    /// Waits until the preferred server can be reached. A stand-in behind a dead uplink may take
    /// seconds not to answer, and a gateway that was only restarted is back sooner than that.
    async fn better_than(&self, server: &ServerId) {
        let preferred = self.servers.ids().into_iter().next();
        let Some(preferred) = preferred.filter(|preferred| preferred != server) else {
            return std::future::pending().await;
        };
        let mut pause = self.config.retry.first;
        loop {
            tokio::time::sleep(pause).await;
            if self.servers.is_reachable(&preferred).await {
                return;
            }
            pause = (pause * 2).min(self.config.retry.longest);
        }
    }

    /// One connection from its begin to its end.
    async fn stay(
        &self,
        choice: &mut Alternate,
        server: &ServerId,
        (client, inbox, granted): (Client, Inbox, mqtt::Granted),
        stop: &CancellationToken,
    ) {
        info!(%server, address = %granted.peer, resumed = granted.session_present, "connected");
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.hear_time(&granted);
        self.how(How::Serving {
            server: server.to_string(),
            role: self.servers.role(server),
            address: granted.peer.to_string(),
        });
        let flight = Mutex::new(Flight::default());
        let end = tokio::select! {
            end = self.send(&client, &flight) => end,
            end = self.settle(&client, &flight) => end,
            end = self.receive(&client, inbox) => end,
            end = self.look_up(choice) => end,
            end = self.report(&client) => end,
            () = stop.cancelled() => End::Stopping,
        };
        if matches!(end, End::Stopping) {
            self.last_report(&client).await;
        }
        self.finish(&client, flight).await;
        match end {
            End::Better => choice.left(self.now()),
            _ => choice.lost(self.now(), &mut SystemRandom),
        }
        match &end {
            End::Stopping | End::Better => info!(%server, "disconnected: {end}"),
            _ => warn!(%server, "disconnected: {end}"),
        }
        self.how(How::Connecting(format!("{server}: {end}")));
    }

    /// The server is who it should be, so what it says of the time counts, as far as it knows itself.
    fn hear_time(&self, granted: &mqtt::Granted) {
        let told = granted.user.iter().find(|(name, _)| name == PROPERTY);
        let told = told.and_then(|(_, words)| Time::from_words(words));
        if let (Some(clock), Some(told)) = (&self.teller, told) {
            clock.hear(told);
        }
    }

    /// Sends the outbox in order, and then what is added to it.
    async fn send(&self, client: &Client, flight: &Mutex<Flight>) -> End {
        let mut level = self.outbox.level();
        let mut last = 0;
        loop {
            level.mark_unchanged();
            let rows = match self.outbox.after(last, READ) {
                Ok(rows) => rows,
                Err(error) => {
                    debug!(%error, "the outbox cannot be read now");
                    tokio::time::sleep(STORE_RETRY).await;
                    continue;
                }
            };
            if rows.is_empty() && level.changed().await.is_err() {
                return End::Store(StoreError::Closed);
            }
            for row in rows {
                if lock(flight).refusal.is_some() {
                    // What follows must not overtake it: `settle` ends this connection.
                    return std::future::pending().await;
                }
                last = row.id;
                // Before it is sent: its outcome may come at once.
                lock(flight).sent(&row, self.line.lane(&row));
                match client.publish(self.message(row)).await {
                    Ok(()) => {}
                    Err(PublishError::Closed) => return End::Lost(client.ended().await),
                    Err(error) => return End::Unsendable(error),
                }
            }
        }
    }

    fn message(&self, row: Row) -> Publish {
        let topic = self.line.topic(&self.identity.site, &row);
        let message = Publish {
            tag: row.id,
            ..Publish::new(topic.to_string(), row.reading)
        };
        let message = message
            .with_user("hf-epoch", row.epoch.to_string())
            .with_user("hf-seq", row.seq.to_string());
        match self.line {
            Line::Site(_) => message,
            // The topic does not name it.
            Line::Service(_) => message.with_user("hf-source", row.name),
        }
    }

    /// Removes from the outbox what the server has taken over. After a refusal it waits for all that
    /// is in flight, so that it is known what the server has.
    async fn settle(&self, client: &Client, flight: &Mutex<Flight>) -> End {
        loop {
            let (refusal, landed, count) = {
                let flight = lock(flight);
                (flight.refusal, flight.is_landed(), flight.refusals())
            };
            let settled = match refusal {
                None => client.settled().await,
                Some(code) if landed => return End::Refused { count, code },
                Some(code) => match tokio::time::timeout(LANDING, client.settled()).await {
                    Ok(settled) => settled,
                    Err(_) => return End::Refused { count, code },
                },
            };
            let Some(settled) = settled else {
                return End::Lost(client.ended().await);
            };
            let acknowledged = lock(flight).settle(&settled);
            if !acknowledged.is_empty()
                && let Err(error) = self.outbox.acknowledge(acknowledged).await
            {
                // They are sent again, and the server knows them.
                return End::Store(error);
            }
        }
    }

    /// Publishes what is to be known of the device's services, and again whenever it changes.
    async fn report(&self, client: &Client) -> End {
        let Some(mut reports) = self.line.desk().map(|desk| desk.report.clone()) else {
            return std::future::pending().await;
        };
        let site = &self.identity.site;
        let topic = Topic::ServiceReported {
            site: site.site.clone(),
            device: site.device,
        };
        loop {
            let report = reports.borrow_and_update().clone();
            if let Some(report) = report {
                let message = Publish {
                    tag: REPORT,
                    retain: true,
                    ..Publish::new(topic.to_string(), report)
                };
                match client.publish(message).await {
                    Ok(()) => {}
                    Err(PublishError::Closed) => return End::Lost(client.ended().await),
                    Err(error) => warn!(%error, "what runs on the device cannot be reported"),
                }
            }
            if reports.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// An orderly end of use: what runs is said to be out of use until the device is back.
    async fn last_report(&self, client: &Client) {
        let Some(desk) = self.line.desk() else { return };
        let report = desk.report.borrow().clone();
        let report = report.and_then(|report| service::out_of_use(&report));
        let (Some(report), site) = (report, &self.identity.site) else {
            return;
        };
        let topic = Topic::ServiceReported {
            site: site.site.clone(),
            device: site.device,
        };
        let message = Publish {
            tag: REPORT,
            retain: true,
            ..Publish::new(topic.to_string(), report)
        };
        // The connection may be gone, or its window full: nothing hangs on it.
        let _ = tokio::time::timeout(FAREWELL, client.publish(message)).await;
    }

    /// Takes what is sent to the device: notices about services go to their room, commands to theirs.
    async fn receive(&self, client: &Client, inbox: Inbox) -> End {
        let filters = self.line.filters(&self.identity.site);
        let filters: Vec<_> = filters
            .iter()
            .map(|filter| (filter.as_str(), Qos::AtLeastOnce))
            .collect();
        let asking = async {
            match client.subscribe(&filters).await {
                Ok(()) | Err(mqtt::SubscribeError::Closed) => {}
                // Readings go out all the same.
                Err(error) => warn!(%error, "the device hears no commands on this connection"),
            }
        };
        // A session that was kept sends what waits in it first; the answer stands behind all that.
        tokio::join!(asking, self.take_in(inbox));
        End::Lost(client.ended().await)
    }

    /// Tries until a command is kept: what is not acknowledged comes again, and nothing behind it overtakes it.
    async fn keep(&self, message: &mqtt::Incoming) {
        let mut told = false;
        loop {
            let now = self.clock.now();
            match self
                .commands
                .take(&message.topic, &message.payload, now)
                .await
            {
                Ok(()) => return,
                Err(error) if !told => {
                    warn!(%error, "a command cannot be kept; trying again, and no other is taken before");
                    told = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(COMMAND_RETRY).await;
        }
    }

    /// While a lesser server serves: looks for a better one.
    async fn look_up(&self, choice: &mut Alternate) -> End {
        loop {
            match choice.next(self.now()) {
                Step::Check(server) => {
                    let reachable = self.servers.is_reachable(&server).await;
                    choice.checked(reachable, self.now(), &mut SystemRandom);
                }
                Step::Leave => return End::Better,
                Step::Wait(until) => tokio::time::sleep_until(self.begun + until).await,
                Step::Dial(_) => return End::Better,
            }
        }
    }

    /// Ends a connection in good order: takes the outcomes that are still there, and gives new numbers
    /// to refused rows that others have overtaken.
    async fn finish(&self, client: &Client, flight: Mutex<Flight>) {
        let last_words = async {
            client.disconnect().await;
            while let Some(settled) = client.settled().await {
                let acknowledged = lock(&flight).settle(&settled);
                if let Err(error) = self.outbox.acknowledge(acknowledged).await {
                    debug!(%error, "acknowledged rows stay for now; the server knows them");
                }
            }
        };
        if tokio::time::timeout(FAREWELL, last_words).await.is_err() {
            debug!("the server did not take leave in time");
        }
        let flight = flight.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.board
            .tell(|status| status.refused += flight.refusals() as u64);
        for id in flight.overtaken() {
            if let Err(error) = self.outbox.restamp(id).await {
                warn!(%error, "a refused reading could not get a new number");
            }
        }
    }
}

fn lock(flight: &Mutex<Flight>) -> std::sync::MutexGuard<'_, Flight> {
    flight.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
