//! Sections of the configuration file that gateway and cloud both read. Each of the two has a `Config`
//! of its own that is composed of these and of what it alone has.

mod clients;
mod limits;
mod listen;
mod lives;
pub mod users;

pub use clients::Clients;
pub use limits::{Journal, Peers, batch};
pub use listen::Listen;
pub use lives::{Lives, life};
