//! Time as a value with its quality. Whoever acts on time asks how good it is; whoever orders
//! things does not ask time at all (`record` orders by counters).
//!
//! The clocks themselves live in `link`; nothing here reads one.

use std::{fmt, time::Duration};

/// How far a time may be trusted; later variants are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimeQuality {
    /// A clock that nothing vouches for: a machine that woke up in 1970, say.
    None,
    /// Not before the durable floor, otherwise unknown.
    Floor,
    /// From the owner or the cloud over an authenticated channel.
    Authenticated,
}

impl TimeQuality {
    /// The number that stands for it in records.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Floor => 1,
            Self::Authenticated => 2,
        }
    }

    /// The quality of that number; a number from the future is worth nothing to us.
    #[must_use]
    pub fn from_code(code: u64) -> Self {
        match code {
            1 => Self::Floor,
            2 => Self::Authenticated,
            _ => Self::None,
        }
    }
}

impl fmt::Display for TimeQuality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Floor => "floor",
            Self::Authenticated => "authenticated",
        })
    }
}

/// User property of a CONNACK in which a server tells its time.
pub const PROPERTY: &str = "hf-time";

/// A moment: whole seconds of Unix time and how good they are. Sorts by seconds, then by quality,
/// for containers and listings; what came first is decided by `record::Order`, never by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub secs: u64,
    /// What vouches for them.
    pub quality: TimeQuality,
}

impl Time {
    /// A time that is nobody's: second 0, quality none.
    pub const UNKNOWN: Self = Self {
        secs: 0,
        quality: TimeQuality::None,
    };

    /// `secs` with that quality.
    #[must_use]
    pub const fn new(secs: u64, quality: TimeQuality) -> Self {
        Self { secs, quality }
    }

    /// The same quality, `later` on (whole seconds; stops at the end of time).
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self {
            secs: self.secs.saturating_add(later.as_secs()),
            ..self
        }
    }

    /// The time itself, once it is known by how much this one is off.
    #[must_use]
    pub fn learnt(self, shift: i64) -> Self {
        Self::new(
            self.secs.saturating_add_signed(shift),
            TimeQuality::Authenticated,
        )
    }

    /// The effective time: never before the durable `floor` (seconds). A clock behind the floor
    /// is replaced by it, and is then worth `Floor`; a better quality is kept only by a clock that
    /// is not behind.
    #[must_use]
    pub fn not_before(self, floor: u64) -> Self {
        if self.secs < floor {
            Self::new(floor, TimeQuality::Floor)
        } else {
            self
        }
    }

    /// As it stands in the property [`PROPERTY`] of MQTT's CONNACK: `1767225600 authenticated`.
    #[must_use]
    pub fn to_words(self) -> String {
        format!("{} {}", self.secs, self.quality)
    }

    /// Reads [`Time::to_words`] back; nothing of what cannot be read.
    #[must_use]
    pub fn from_words(text: &str) -> Option<Self> {
        let (secs, quality) = text.split_once(' ')?;
        let qualities = [
            TimeQuality::None,
            TimeQuality::Floor,
            TimeQuality::Authenticated,
        ];
        let quality = qualities
            .into_iter()
            .find(|one| one.to_string() == quality)?;
        Some(Self::new(secs.parse().ok()?, quality))
    }

    /// Whether destructive acts may follow from this time (delete, lock out, rotate, revoke).
    #[must_use]
    pub fn is_authenticated(self) -> bool {
        self.quality == TimeQuality::Authenticated
    }
}

impl fmt::Display for Time {
    /// RFC 3339 in UTC, the quality added when it is less than authenticated.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.secs / 86_400, self.secs % 86_400);
        let (year, month, day) = civil(days);
        write!(f, "{year:04}-{month:02}-{day:02}T")?;
        write!(
            f,
            "{:02}:{:02}:{:02}Z",
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        )?;
        match self.quality {
            TimeQuality::Authenticated => Ok(()),
            poorer => write!(f, " ({poorer})"),
        }
    }
}

/// Year, month and day of that day number since 1970-01-01, proleptic Gregorian.
///
/// Counts in years that begin in March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let from_march_0000 = days + 719_468;
    let (era, day_of_era) = (from_march_0000 / 146_097, from_march_0000 % 146_097);
    let leaps = day_of_era / 1_460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leaps) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_read_right() {
        let shown = |secs| Time::new(secs, TimeQuality::Authenticated).to_string();
        assert_eq!(shown(0), "1970-01-01T00:00:00Z");
        assert_eq!(shown(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(shown(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(shown(1_795_305_600), "2026-11-22T00:00:00Z");
        assert_eq!(shown(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(Time::UNKNOWN.to_string(), "1970-01-01T00:00:00Z (none)");
    }

    #[test]
    fn every_day_of_eight_centuries_follows_the_one_before() {
        let mut last = civil(0);
        for day in 1..292_194 {
            let next = civil(day);
            let (year, month, today) = last;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match (today == length, month == 12) {
                (false, _) => (year, month, today + 1),
                (true, false) => (year, month + 1, 1),
                (true, true) => (year + 1, 1, 1),
            };
            assert_eq!(next, expected);
            last = next;
        }
    }

    #[test]
    fn words_are_read_back() {
        for (quality, text) in [
            (TimeQuality::None, "7 none"),
            (TimeQuality::Floor, "7 floor"),
            (TimeQuality::Authenticated, "7 authenticated"),
        ] {
            let time = Time::new(7, quality);
            assert_eq!(time.to_words(), text);
            assert_eq!(Time::from_words(text), Some(time));
        }
        for bad in ["", "7", "7 ", "-7 floor", "7 Floor", "7  floor", "x none"] {
            assert_eq!(Time::from_words(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_floor_holds() {
        let floor = 1_000;
        let early = Time::new(5, TimeQuality::Authenticated).not_before(floor);
        assert_eq!(early, Time::new(1_000, TimeQuality::Floor));
        let late = Time::new(2_000, TimeQuality::None).not_before(floor);
        assert_eq!(late, Time::new(2_000, TimeQuality::None));
        assert!(TimeQuality::None < TimeQuality::Floor);
        assert!(TimeQuality::Floor < TimeQuality::Authenticated);
    }
}
