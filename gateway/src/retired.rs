//! A gateway whose machine was replaced, or that was revoked: it serves nobody any more, and says so.
//!
//! The cloud's signed statement ([`holdfast_cps::sync::Replaced`]) is kept before anything follows
//! from it, in a small doubly written file, and verified again at each start: this machine stays out
//! without an uplink too. [`wait`] runs beside the parts of [`crate::app`]; [`serve`] takes their
//! place: no MQTT, no HTTPS, no FDO, no mDNS, only the health page (503) and `status`. Nothing is
//! deleted: what the state folder holds is the operator's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use holdfast_config::life;
use holdfast_cps::Limits;
use holdfast_cps::enrol::Cloud;
use holdfast_cps::http::{self, Bounds};
use holdfast_cps::sync::Replaced;
use holdfast_store::StoreError;
use holdfast_store::twice::Twice;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The file in the state folder.
const FILE: &str = "replaced";
/// Pause after a failed write of it.
const RETRY: Duration = Duration::from_secs(5);
/// Most tries; then the gateway stops serving all the same, and is told anew after a restart.
const TRIES: u32 = 3;

/// Whether this gateway was replaced, by what its state folder keeps.
///
/// # Errors
/// The file cannot be read.
pub fn look(state: &Path, own: &Cloud) -> Result<Option<Replaced>, StoreError> {
    let kept = Twice::open(state.join(FILE))?;
    // A statement about an earlier enrolment in this folder says nothing of the present one.
    Ok(Replaced::verify(kept.content(), own))
}

/// Waits until the cloud says that this gateway was replaced, and keeps it.
pub async fn wait(mut told: watch::Receiver<Option<Replaced>>, state: PathBuf) -> Replaced {
    let replaced = match told.wait_for(Option::is_some).await {
        Ok(told) => told.clone(),
        Err(_) => None,
    };
    let Some(replaced) = replaced else {
        // Who could tell has ended; the gateway ends by itself then.
        return std::future::pending().await;
    };
    for _ in 0..TRIES {
        match keep(&state, &replaced) {
            Ok(()) => break,
            Err(error) => {
                tracing::error!(%error, "cannot keep that this gateway was replaced; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    replaced
}

fn keep(state: &Path, replaced: &Replaced) -> Result<(), StoreError> {
    Twice::open(state.join(FILE))?.write(&replaced.statement)
}

/// One sentence, and what to do.
#[must_use]
pub fn sentence(replaced: &Replaced) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(replaced.at));
    let at = at.map_or_else(String::new, |at| {
        format!(" on {}", humantime::format_rfc3339_seconds(at))
    });
    if replaced.revoked {
        return format!(
            "this gateway, {} of site {}, was revoked{at} and serves nobody any more; its devices go on at \
             the cloud; to use this machine again, get a token at the cloud (holdfast-cloud gateways \
             token) and enrol it anew with an empty state folder",
            replaced.gateway, replaced.site
        );
    }
    format!(
        "this gateway, {} of site {}, was replaced by enrolment {}{at} and serves nobody any more; to \
         bring this machine back, get a token at the cloud (holdfast-cloud gateways token, or gateways \
         replace to put it in the other one's place) and enrol it anew with an empty state folder",
        replaced.gateway, replaced.site, replaced.epoch
    )
}

/// Why it cannot even say so.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The health page's socket.
    #[error(
        "cannot listen on {0}: {1}; change listen.metrics in the configuration, or stop what holds that port"
    )]
    Bind(SocketAddr, std::io::Error),
    /// The admin socket.
    #[error("the admin socket failed: {0}")]
    Admin(std::io::Error),
}

/// Says it to whoever asks, until `stop`.
///
/// # Errors
/// A socket cannot be had.
pub async fn serve(
    metrics: SocketAddr,
    state: &Path,
    replaced: &Replaced,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let text = sentence(replaced);
    tracing::error!("{text}");
    let listener = TcpListener::bind(metrics).await;
    let listener = listener.map_err(|cause| Fault::Bind(metrics, cause))?;
    let bounds = || Bounds::new(Limits::default(), holdfast_cps::Metrics::default());
    let page = http::serve_plain(listener, health(&text), bounds(), stop.clone());
    let socket = state.join("admin.sock");
    let admin = http::serve_admin(&socket, status(replaced, &text), bounds(), stop.clone());
    let fed = async {
        life::feed_watchdog(stop.clone(), async || true).await;
        stop.cancelled().await;
    };
    life::tell_ready(&text);
    tokio::select! {
        () = page => Ok(()),
        ended = admin => ended.map_err(Fault::Admin),
        () = fed => Ok(()),
    }
}

fn health(text: &str) -> Router {
    let told = format!("{text}\n");
    let page = "# TYPE holdfast_gateway_replaced gauge\nholdfast_gateway_replaced 1\n# EOF\n";
    Router::new()
        .route("/metrics", get(async move || page))
        .fallback(async move || (StatusCode::SERVICE_UNAVAILABLE, told))
}

fn status(replaced: &Replaced, text: &str) -> Router {
    let told = json!({
        "server": replaced.gateway.to_string(),
        "site": replaced.site.to_string(),
        "mode": if replaced.revoked { "revoked" } else { "replaced" },
        "reason": text,
        "since": replaced.at,
        "locked_out": text,
        "replaced_by_epoch": replaced.epoch,
    });
    let refusal = json!({ "error": text });
    Router::new()
        .route("/v1/status", get(async move || Json(told)))
        .fallback(async move || -> Response {
            (StatusCode::BAD_REQUEST, Json(refusal)).into_response()
        })
}
