//! Durations as people and the original's configuration write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

/// A duration written as `500ms`, `2s`, `1h30m`, `1.5h`, `7d`. A bare number is refused where no unit is customary; see
/// [`seconds`] and [`days`] for the keys where TiDB Binlog has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a duration: write a number with a unit (ns, us, ms, s, m, h, d, w), such as `2s` or `1h30m`"
)]
pub struct DurationError {
    text: String,
}

const UNITS: [(&str, u128); 9] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
    ("w", 604_800_000_000_000),
];

/// Nanoseconds of one day, the unit of [`days`].
const DAY: u128 = 86_400_000_000_000;
/// Nanoseconds of one second, the unit of [`seconds`].
const SECOND: u128 = 1_000_000_000;

impl HumanDuration {
    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// As the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }
}

/// Sums the parts of `text`; `bare` is the unit, in nanoseconds, of a number without one.
fn parse(text: &str, bare: Option<u128>) -> Result<HumanDuration, DurationError> {
    let error = || DurationError { text: text.to_owned() };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(error());
    }
    let mut total: u128 = 0;
    let mut first = true;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let tail = tail.trim_start();
        let letters = tail.find(|c: char| !c.is_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let scale = match bare {
            Some(scale) if unit.is_empty() && first && tail.is_empty() => scale,
            _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale).ok_or_else(error)?,
        };
        total = total.checked_add(scaled(number, scale).ok_or_else(error)?).ok_or_else(error)?;
        rest = tail.trim_start();
        first = false;
    }
    let seconds = u64::try_from(total / SECOND).map_err(|_| error())?;
    // A remainder below 10^9 fits.
    Ok(HumanDuration(Duration::new(seconds, (total % SECOND) as u32)))
}

/// `number` (decimal, at most 18 places after the point) times `scale`, cut to whole nanoseconds.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let digits =
        |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u64>().ok().map(u128::from) };
    let whole = digits(whole)?.checked_mul(scale)?;
    let fraction = digits(fraction)?.checked_mul(scale)? / 10u128.pow(fraction.len() as u32);
    whole.checked_add(fraction)
}

impl FromStr for HumanDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        parse(text, None)
    }
}

impl fmt::Display for HumanDuration {
    /// The shortest exact form; it parses back to the same duration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_nanos();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (name, scale) in [
            ("d", DAY),
            ("h", 3600 * SECOND),
            ("m", 60 * SECOND),
            ("s", SECOND),
            ("ms", 1_000_000),
            ("us", 1_000),
            ("ns", 1),
        ] {
            if rest >= scale {
                write!(f, "{}{name}", rest / scale)?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct DurationVisitor {
    bare: Option<u128>,
}

impl Visitor<'_> for DurationVisitor {
    type Value = HumanDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.bare {
            None => "a duration with a unit, such as \"2s\"",
            Some(DAY) => "a number of days, or a duration such as \"8h\"",
            Some(_) => "a number of seconds, or a duration such as \"500ms\"",
        })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
        parse(text, self.bare).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<HumanDuration, E> {
        let number = u64::try_from(number).map_err(|_| E::custom("a duration cannot be negative"))?;
        self.visit_u64(number)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<HumanDuration, E> {
        if self.bare.is_none() {
            return Err(E::custom(format!(
                "{number} has no unit: write it as a string with one, such as \"{number}s\""
            )));
        }
        parse(&number.to_string(), self.bare).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<HumanDuration, E> {
        if self.bare.is_none() {
            return Err(E::custom(format!(
                "{number} has no unit: write it as a string with one, such as \"{number}s\""
            )));
        }
        parse(&number.to_string(), self.bare).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DurationVisitor { bare: None })
    }
}

/// For `#[serde(deserialize_with = "node::config::seconds")]`: a bare number means seconds, as in TiDB Binlog's
/// `heartbeat-interval`, `gen-binlog-interval`, `detect-interval`.
pub fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HumanDuration, D::Error> {
    deserializer.deserialize_any(DurationVisitor { bare: Some(SECOND) })
}

/// For `#[serde(deserialize_with = "node::config::days")]`: a bare number means days, as in TiDB Binlog's `gc`.
pub fn days<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HumanDuration, D::Error> {
    deserializer.deserialize_any(DurationVisitor { bare: Some(DAY) })
}

/// For clap's `value_parser`: as [`seconds`].
pub fn parse_seconds(text: &str) -> Result<HumanDuration, DurationError> {
    parse(text, Some(SECOND))
}

/// For clap's `value_parser`: as [`days`].
pub fn parse_days(text: &str) -> Result<HumanDuration, DurationError> {
    parse(text, Some(DAY))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        for (text, nanos) in [
            ("2s", 2 * SECOND),
            ("7d", 7 * DAY),
            ("1h30m", 5400 * SECOND),
            ("1.5h", 5400 * SECOND),
            ("250 ms", SECOND / 4),
            ("1h 0.5s", 3_600_500_000_000),
            ("3µs", 3_000),
            ("0s", 0),
        ] {
            assert_eq!(text.parse::<HumanDuration>().unwrap().0.as_nanos(), nanos, "{text}");
        }
        for text in ["", "2", "s", "-2s", "2 parsecs", "1..5s", "1h30", "99999999999999999999d"] {
            let error = text.parse::<HumanDuration>().unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn bare_numbers() {
        assert_eq!(parse_seconds("3").unwrap(), HumanDuration::from_secs(3));
        assert_eq!(parse_days("7").unwrap(), HumanDuration::from_secs(604_800));
        assert_eq!(parse_days("8h").unwrap(), HumanDuration::from_secs(28_800));
        assert!(parse_days("7 3").is_err());
    }

    proptest! {
        #[test]
        fn shown_and_read_back(nanos in 0u64..) {
            let duration = HumanDuration(Duration::from_nanos(nanos));
            prop_assert_eq!(duration.to_string().parse::<HumanDuration>().unwrap(), duration);
        }

        #[test]
        fn any_text_is_answered(text in "\\PC{0,20}") {
            let _ = parse(&text, None);
            let _ = parse(&text, Some(SECOND));
        }
    }
}
