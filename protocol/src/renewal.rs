//! When a certificate is to be renewed. Pure; asked by the gateway and the cloud for their own
//! certificates and by the agent for the device's.
//!
//! The rule: at two thirds of its life, and up to a twelfth of its life earlier, by its serial number,
//! so that what was issued together is not renewed together. On top of it an operator may ask for
//! renewal with every session, with every n-th, or after a time of his own.

use std::time::Duration;

use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificate::validity;

/// How long before the moment of its making a certificate of ours begins, for clocks that lag.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// The part of its life before two thirds over which renewals are spread.
const SPREAD: u64 = 12;

/// When (unix seconds) the certificate is to be renewed; nothing of what is no certificate.
#[must_use]
pub fn due_at(der: &[u8]) -> Option<u64> {
    let (from, to) = made_and_over(der)?;
    let life = to - from;
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    // Serial numbers of ours are random: their last bytes are a die that was cast once.
    let serial = certificate.raw_serial();
    let last = serial.iter().rev().take(4);
    let die = last.fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    let spread = life / SPREAD;
    let earlier = spread.saturating_mul(die) >> 32;
    Some(from + life / 3 * 2 - earlier)
}

/// When it was made and when it ends.
fn made_and_over(der: &[u8]) -> Option<(u64, u64)> {
    let (from, to) = validity(der)?;
    Some((from.saturating_add(BACKDATE.as_secs()).min(to), to))
}

/// What an operator asks for beyond the rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    /// A new certificate with each so many sessions; none: sessions do not count.
    pub sessions: Option<u32>,
    /// A new certificate when the present one is this old; none: by the rule alone.
    pub after: Option<Duration>,
}

impl Wish {
    /// Whether the certificate is due at `now` (what is certain), after so many `sessions` with it.
    /// What cannot be read is due: nothing else would ever replace it.
    #[must_use]
    pub fn is_due(&self, der: &[u8], now: u64, sessions: u32) -> bool {
        let (Some(due), Some((made, _))) = (due_at(der), made_and_over(der)) else {
            return true;
        };
        let by_sessions = self.sessions.is_some_and(|most| sessions >= most);
        let by_age = self
            .after
            .is_some_and(|after| now >= made.saturating_add(after.as_secs()));
        now >= due || by_sessions || by_age
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn certificate(serial: u64, from_day: u64, days: u64) -> Vec<u8> {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let mut params = rcgen::CertificateParams::new(vec!["a.b".to_owned()]).unwrap();
        params.serial_number = Some(serial.into());
        params.not_before = epoch + Duration::from_secs(from_day * DAY);
        params.not_after = epoch + Duration::from_secs((from_day + days) * DAY);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn renewal_is_spread_below_two_thirds() {
        let mut seen = Vec::new();
        for n in 0..40_u64 {
            // The golden section in the last byte, which weighs most: no two of them near each other.
            let serial = 0x7f00_0000_0000_0000 | (n * 0x9d);
            let due = due_at(&certificate(serial, 20_000, 360)).unwrap();
            let days = (due - 20_000 * DAY) / DAY;
            assert!((210..=240).contains(&days), "{days}");
            seen.push(days);
        }
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 15, "spread over the month: {seen:?}");
    }

    #[test]
    fn wishes_come_on_top_of_the_rule() {
        let der = certificate(0x7f00_0000_0000_0000, 20_000, 300);
        let at = |day: u64| (20_000 + day) * DAY;
        let rule = Wish::default();
        assert!(!rule.is_due(&der, at(170), 1_000) && rule.is_due(&der, at(201), 0));
        let sessions = Wish {
            sessions: Some(3),
            after: None,
        };
        assert!(!sessions.is_due(&der, at(1), 2) && sessions.is_due(&der, at(1), 3));
        assert!(
            sessions.is_due(&der, at(201), 0),
            "never later than the rule"
        );
        let age = Wish {
            sessions: None,
            after: Some(Duration::from_secs(2 * DAY)),
        };
        assert!(!age.is_due(&der, at(2), 9) && age.is_due(&der, at(3), 0));
        assert!(rule.is_due(b"none", 0, 0));
    }
}
