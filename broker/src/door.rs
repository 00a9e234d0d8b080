//! The doors: TCP accept, TLS, budgets for what has not proven who it is.
//!
//! Called by [`crate::Broker::serve`]. The handshake runs in the connection's own task with a
//! deadline; nothing of MQTT is read before it is done. It never decides rights.

use std::fmt;
use std::sync::Arc;

/// How connections through a listener are secured.
#[derive(Clone, Debug)]
pub enum Door {
    /// TLS; whether a client certificate is asked for is the configuration's business.
    Tls(Arc<dyn TlsSource>),
    /// As they come: for loopback, or where the operator chose so.
    Plain,
}

/// Gives the TLS configuration for each new connection, so that certificates, anchors and
/// revocations can change while the door is open.
pub trait TlsSource: Send + Sync + 'static + fmt::Debug {
    /// The configuration as of now. Must be cheap.
    fn current(&self) -> Arc<rustls::ServerConfig>;
}

/// A configuration that never changes.
#[derive(Clone, Debug)]
pub struct FixedTls(pub Arc<rustls::ServerConfig>);

impl TlsSource for FixedTls {
    fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.0)
    }
}
