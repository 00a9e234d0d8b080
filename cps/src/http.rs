//! The HTTP side of a CPS server: routers for FDO, the API and the administrator, and the loops
//! that serve them with deadlines and bounds. Called by the binaries, which bind the listeners.
//! Nothing here decides anything: it turns requests into calls of the rooms.

pub mod admin;
mod api;
pub mod ask;
mod authority;
mod budget;
mod certificates;
mod fdo;
mod gateways;
mod keys;
mod lifecycle;
mod lists;
mod renew;
mod serve;
pub(crate) mod wire;

pub use admin::admin_router;
pub use api::{Failure, api_router};
pub use budget::Bounds;
pub use fdo::fdo_router;
pub use serve::{Peer, serve_admin, serve_plain, serve_tls};
