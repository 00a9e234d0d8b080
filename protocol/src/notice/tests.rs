//! Notices: signatures, direction, and the gate against replays.
