//! Bounds that many settings have, with the words for the operator: for [`crate::Section::get_checked`].

use std::net::SocketAddr;
use std::time::Duration;

/// What is wrong, and what to do.
pub type Verdict = Result<(), (String, String)>;

/// `value` is `least` or more; `shown` is how the operator writes that.
///
/// # Errors
/// It is less.
pub fn at_least(value: u64, least: u64, shown: &str) -> Verdict {
    if value >= least {
        return Ok(());
    }
    Err((
        format!("{value} is too small to work with"),
        format!("write {shown} or more"),
    ))
}

/// `value` is within these times, both included.
///
/// # Errors
/// It is not.
pub fn between(value: Duration, least: Duration, most: Duration) -> Verdict {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err((
        format!("{value:?} is out of range"),
        format!("write a time from {least:?} to {most:?}"),
    ))
}

/// Only this machine reaches the address; `example` is a good one.
///
/// # Errors
/// Others may.
pub fn loopback(address: SocketAddr, example: &str) -> Verdict {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err((
        format!("{address} can be read by everyone who reaches it"),
        format!("use a loopback address such as \"{example}\""),
    ))
}
