//! ServiceInfo.
