//! The broker's doors: which listener asks whom for what, and the tasks that serve them.
//!
//! Spawned by each server's `app`. The door for parties of the house always asks for a certificate.
//! Those for ordinary clients are there only if configured, each with one way in: no door takes either
//! a certificate or a password, so none can be talked down from the one to the other.

use std::sync::Arc;

use holdfast_broker::{Broker, CountedTls, Door, Origins, TlsSource};
use holdfast_config::stages::Stages;
use holdfast_cps::{Cps, http};
use holdfast_link::time::Clock;
use holdfast_link::tls::{self, Anchors, ClientAuth, IdentitySlot};

use crate::bind::{Bound, ClientListeners};
use crate::users::Users;

/// What all doors are made with.
#[derive(Debug)]
pub struct Doors<'a> {
    /// The server.
    pub cps: &'a Cps,
    /// Its broker.
    pub broker: &'a Broker,
    /// Its certificate.
    pub identity: &'a IdentitySlot,
    /// Whose certificates it believes.
    pub anchors: &'a Anchors,
    /// By which certificates are judged.
    pub clock: Arc<dyn Clock>,
    /// The stage that they stop in.
    pub stage: usize,
}

impl Doors<'_> {
    /// MQTT for the parties of the house: a certificate is required.
    ///
    /// # Errors
    /// TLS could not be set up; here and below.
    pub fn mqtt(&self, stages: &mut Stages, bound: Bound) -> Result<(), rustls::Error> {
        let door = Door::Tls(self.by_certificate()?);
        self.serve(stages, ("mqtt listener", "mqtt"), bound, door);
        Ok(())
    }

    /// HTTPS: a certificate may be shown, and one that is late may ask to be renewed.
    ///
    /// # Errors
    /// As above.
    pub fn https(
        &self,
        stages: &mut Stages,
        bound: Bound,
        router: axum::Router,
    ) -> Result<(), rustls::Error> {
        let grace = self.cps.config().lives.grace;
        let asked = ClientAuth::Late(self.anchors.clone(), grace);
        let config = tls::server_config(self.identity.clone(), asked, Arc::clone(&self.clock))?;
        let stop = stages.token(self.stage);
        let served = http::serve_tls(bound.0, config, router, self.cps.bounds(), stop);
        stages.spawn_quiet(self.stage, "https listener", served);
        Ok(())
    }

    /// HTTP as it comes, for what secures itself or stays on this machine.
    pub fn http(
        &self,
        stages: &mut Stages,
        name: &'static str,
        bound: Bound,
        router: axum::Router,
    ) {
        let stop = stages.token(self.stage);
        let served = http::serve_plain(bound.0, router, self.cps.bounds(), stop);
        stages.spawn_quiet(self.stage, name, served);
    }

    /// Those for ordinary clients, as far as they are bound.
    ///
    /// # Errors
    /// As above.
    pub fn clients(
        &self,
        stages: &mut Stages,
        bound: ClientListeners,
        users: &Users,
        origins: &[String],
    ) -> Result<(), rustls::Error> {
        for (key, address) in bound.addresses() {
            tracing::info!(%address, clients = users.len(), "ordinary MQTT clients are let in: clients.{key}");
        }
        let origins = match origins {
            [] => Origins::None,
            some => Origins::Only(some.to_vec()),
        };
        let asking = |door| Door::Passwords(Box::new(door), users.passwords());
        let web = |door| Door::WebSocket(Box::new(door), origins.clone());
        if let Some(bound) = bound.tls {
            let door = asking(Door::Tls(self.without_certificate()?));
            self.serve(
                stages,
                ("listener for passwords", "clients.tls"),
                bound,
                door,
            );
        }
        if let Some(bound) = bound.plain {
            if !bound.1.ip().is_loopback() {
                tracing::warn!(
                    address = %bound.1,
                    "clients.plain: names, passwords and messages can be read and changed by everyone \
                     on that network; use clients.tls as soon as the devices can"
                );
            }
            let names = ("plain listener for passwords", "clients.plain");
            self.serve(stages, names, bound, asking(Door::Plain));
        }
        if let Some(bound) = bound.websocket {
            let door = web(Door::Tls(self.by_certificate()?));
            self.serve(
                stages,
                ("websocket listener", "clients.websocket"),
                bound,
                door,
            );
        }
        if let Some(bound) = bound.websocket_password {
            let door = asking(web(Door::Tls(self.without_certificate()?)));
            let names = (
                "websocket listener for passwords",
                "clients.websocket_password",
            );
            self.serve(stages, names, bound, door);
        }
        Ok(())
    }

    fn serve(
        &self,
        stages: &mut Stages,
        (task, name): (&'static str, &'static str),
        (listener, _): Bound,
        door: Door,
    ) {
        let (broker, stop) = (self.broker.clone(), stages.token(self.stage));
        stages.spawn(self.stage, task, async move {
            broker.serve_named(name, listener, door, stop).await
        });
    }

    fn by_certificate(&self) -> Result<Arc<dyn TlsSource>, rustls::Error> {
        self.tls(ClientAuth::Required(self.anchors.clone()), "mqtt handshake")
    }

    fn without_certificate(&self) -> Result<Arc<dyn TlsSource>, rustls::Error> {
        self.tls(ClientAuth::None, "mqtt login handshake")
    }

    fn tls(
        &self,
        asked: ClientAuth,
        area: &'static str,
    ) -> Result<Arc<dyn TlsSource>, rustls::Error> {
        let config = tls::server_config(self.identity.clone(), asked, Arc::clone(&self.clock))?;
        let refused = self.cps.metrics().clone();
        Ok(Arc::new(CountedTls::new(config, move |why| {
            refused.refused(area, tls::refusal(why));
            tls::explain(why)
        })))
    }
}
