//! A world of real parts for the drill, the demo and the tests: the real binaries as processes, a cuttable uplink,
//! stock MQTT readers and a judge of what really arrived. Nothing here reaches into the parts it judges.

pub mod bench;
pub mod folder;
pub mod judge;
pub mod networks;
pub mod partner;
pub mod place;
pub mod process;
pub mod proxy;
pub mod reader;
pub mod rogue;
pub mod seat;
pub mod sheet;
pub mod skip;
pub mod stock;
pub mod story;
pub mod walls;
pub mod weather;
pub mod world;
