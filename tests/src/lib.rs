//! A world of real parts for the drill, the demo and the tests: the real binaries as processes, a cuttable uplink,
//! stock MQTT readers and a judge of what really arrived. Nothing here reaches into the parts it judges.

pub mod walls;
