//! Dates, times of day and their combination, as TiDB packs them (TiDB `types/time.go`).
//!
//! MySQL's dates include what no calendar has: zero, month or day zero, 31 February. So these types keep fields and
//! never pass through an epoch.

use std::{fmt, str::FromStr};

use crate::DecodeError;

const YEAR_MAX: u64 = 9999;

/// A date with or without a time of day, in no zone (or UTC, for TIMESTAMP). Zero and invalid dates are legal.
///
/// Ordered by the packed number, which is the order of time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    packed: u64,
    fsp: u8,
}

/// The fields of a [`Time`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fields {
    /// 0 to 9999.
    pub year: u16,
    /// 0 to 12.
    pub month: u8,
    /// 0 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// 0 to 999999.
    pub micros: u32,
}

impl Fields {
    fn checked(self) -> Option<Self> {
        let Self { year, month, day, hour, minute, second, micros } = self;
        (u64::from(year) <= YEAR_MAX
            && month <= 12
            && day <= 31
            && hour <= 23
            && minute <= 59
            && second <= 59
            && micros <= 999_999)
            .then_some(self)
    }
}

impl Time {
    /// The zero date.
    pub const ZERO: Self = Self { packed: 0, fsp: 0 };

    /// From the packed number; `fsp` digits of fractional seconds (0 to 6) are shown.
    pub fn from_packed(packed: u64, fsp: u8) -> Result<Self, DecodeError> {
        let time = Self { packed, fsp: fsp.min(6) };
        let year_month = packed >> 46;
        if year_month / 13 > YEAR_MAX || time.fields().checked().is_none() {
            return Err(DecodeError::Time(packed));
        }
        Ok(time)
    }

    /// From fields; None if one is out of range. Day 31 of any month is allowed.
    pub fn from_fields(fields: Fields, fsp: u8) -> Option<Self> {
        let Fields { year, month, day, hour, minute, second, micros } = fields.checked()?;
        let ymd = (u64::from(year) * 13 + u64::from(month)) << 5 | u64::from(day);
        let hms = u64::from(hour) << 12 | u64::from(minute) << 6 | u64::from(second);
        Some(Self { packed: (ymd << 17 | hms) << 24 | u64::from(micros), fsp: fsp.min(6) })
    }

    /// The packed number: `((((year*13+month)<<5 | day)<<17 | hour<<12 | min<<6 | sec)<<24) | micros`.
    pub fn packed(&self) -> u64 {
        self.packed
    }

    /// Digits of fractional seconds shown.
    pub fn fsp(&self) -> u8 {
        self.fsp
    }

    /// The same time shown with another number of fraction digits.
    pub fn with_fsp(self, fsp: u8) -> Self {
        Self { fsp: fsp.min(6), ..self }
    }

    /// True for the zero date with time zero.
    pub fn is_zero(&self) -> bool {
        self.packed == 0
    }

    /// The fields.
    pub fn fields(&self) -> Fields {
        let p = self.packed;
        let year_month = p >> 46;
        Fields {
            year: (year_month / 13) as u16,
            month: (year_month % 13) as u8,
            day: (p >> 41 & 0x1f) as u8,
            hour: (p >> 36 & 0x1f) as u8,
            minute: (p >> 30 & 0x3f) as u8,
            second: (p >> 24 & 0x3f) as u8,
            micros: (p & 0xff_ffff) as u32,
        }
    }

    /// From the form inside binary JSON (CoreTime): year 14 bits, month 4, day 5, hour 5, minute 6, second 6, micros 20,
    /// then 4 bits that are ignored.
    pub fn from_core_time(core: u64, fsp: u8) -> Result<Self, DecodeError> {
        let fields = Fields {
            year: (core >> 50) as u16,
            month: (core >> 46 & 0xf) as u8,
            day: (core >> 41 & 0x1f) as u8,
            hour: (core >> 36 & 0x1f) as u8,
            minute: (core >> 30 & 0x3f) as u8,
            second: (core >> 24 & 0x3f) as u8,
            micros: (core >> 4 & 0xf_ffff) as u32,
        };
        Self::from_fields(fields, fsp).ok_or(DecodeError::Time(core))
    }

    /// The form inside binary JSON.
    pub fn core_time(&self) -> u64 {
        let f = self.fields();
        u64::from(f.year) << 50
            | u64::from(f.month) << 46
            | u64::from(f.day) << 41
            | u64::from(f.hour) << 36
            | u64::from(f.minute) << 30
            | u64::from(f.second) << 24
            | u64::from(f.micros) << 4
    }

    /// The date alone.
    pub fn date(&self) -> Date {
        Date(*self)
    }

    /// From `YYYY-MM-DD[ HH:MM:SS[.ffffff]]`, cut to `fsp` digits.
    pub fn parse(text: &str, fsp: u8) -> Result<Self, ParseTimeError> {
        let error = || ParseTimeError(text.chars().take(64).collect());
        let (date, time) = match text.trim().split_once([' ', 'T']) {
            Some((date, time)) => (date, Some(time)),
            None => (text.trim(), None),
        };
        let mut parts = date.split('-');
        let mut number = |max_len: usize| -> Option<u16> { digits(parts.next()?, max_len)?.try_into().ok() };
        let (Some(year), Some(month), Some(day)) = (number(4), number(2), number(2)) else {
            return Err(error());
        };
        if parts.next().is_some() {
            return Err(error());
        }
        let (hour, minute, second, micros) = match time {
            None => (0, 0, 0, 0),
            Some(time) => parse_clock(time, fsp).ok_or_else(error)?,
        };
        let narrow = |v: u16| u8::try_from(v).unwrap_or(u8::MAX);
        let fields = Fields {
            year,
            month: narrow(month),
            day: narrow(day),
            hour: u8::try_from(hour).unwrap_or(u8::MAX),
            minute,
            second,
            micros,
        };
        Self::from_fields(fields, fsp).ok_or_else(error)
    }
}

/// Shows a [`Time`] as `YYYY-MM-DD`.
#[derive(Clone, Copy, Debug)]
pub struct Date(Time);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fields { year, month, day, .. } = self.0.fields();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl fmt::Display for Time {
    /// `YYYY-MM-DD HH:MM:SS` and `fsp` digits of the fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fields { hour, minute, second, micros, .. } = self.fields();
        write!(f, "{} {hour:02}:{minute:02}:{second:02}", self.date())?;
        fraction(f, micros, self.fsp)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a date or time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a date or time")]
pub struct ParseTimeError(String);

fn fraction(f: &mut fmt::Formatter<'_>, micros: u32, fsp: u8) -> fmt::Result {
    match fsp {
        0 => Ok(()),
        fsp => {
            let fsp = usize::from(fsp.min(6));
            write!(f, ".{:0fsp$}", micros / 10u32.pow(6 - fsp as u32))
        }
    }
}

/// A plain decimal number of 1 to `max_len` digits.
fn digits(text: &str, max_len: usize) -> Option<u32> {
    (!text.is_empty() && text.len() <= max_len && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// `H…H:MM:SS[.f]`: hours, minutes, seconds and microseconds cut to `fsp` digits.
fn parse_clock(text: &str, fsp: u8) -> Option<(u32, u8, u8, u32)> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.split(':');
    let hour = digits(parts.next()?, 3)?;
    let minute = u8::try_from(digits(parts.next()?, 2)?).ok()?;
    let second = u8::try_from(digits(parts.next()?, 2)?).ok()?;
    if parts.next().is_some() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let kept = usize::from(fsp.min(6));
    let micros = (0..6).fold(0u32, |value, i| {
        let digit = if i < kept { fraction.as_bytes().get(i).map_or(0, |b| b - b'0') } else { 0 };
        value * 10 + u32::from(digit)
    });
    Some((hour, minute, second, micros))
}

/// A TIME: a signed span of up to 838 hours.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration {
    /// Nanoseconds, negative for a negative span.
    pub nanos: i64,
    /// Digits of fractional seconds shown.
    pub fsp: u8,
}

impl Duration {
    /// From nanoseconds and the digits of fractional seconds to show.
    pub const fn new(nanos: i64, fsp: u8) -> Self {
        Self { nanos, fsp }
    }

    /// From `[-]H…H:MM:SS[.f]`, cut to `fsp` digits.
    pub fn parse(text: &str, fsp: u8) -> Result<Self, ParseTimeError> {
        let error = || ParseTimeError(text.chars().take(64).collect());
        let trimmed = text.trim();
        let (sign, clock) = trimmed.strip_prefix('-').map_or((1, trimmed), |rest| (-1, rest));
        let (hour, minute, second, micros) = parse_clock(clock, fsp).ok_or_else(error)?;
        if hour > 838 || minute > 59 || second > 59 {
            return Err(error());
        }
        let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        Ok(Self { nanos: sign * (seconds * 1_000_000_000 + i64::from(micros) * 1000), fsp: fsp.min(6) })
    }
}

impl fmt::Display for Duration {
    /// `[-]HH:MM:SS` and `fsp` digits of the fraction; hours of at least two digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos.unsigned_abs();
        let seconds = nanos / 1_000_000_000;
        let micros = (nanos % 1_000_000_000 / 1000) as u32;
        let sign = if self.nanos < 0 { "-" } else { "" };
        write!(f, "{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
        fraction(f, micros, self.fsp)
    }
}

impl fmt::Debug for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Duration {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        Self::parse(text, 6)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vectors() {
        let time = Time::parse("2023-05-17 10:20:30.123456", 6).unwrap();
        assert_eq!(time.packed(), 0x19b0_22a5_1e01_e240);
        assert_eq!(time.core_time(), 0x1f9d_62a5_1e1e_2400);
        assert_eq!(Time::from_core_time(0x1f9d_62a5_1e1e_240f, 6), Ok(time));
        assert_eq!(time.to_string(), "2023-05-17 10:20:30.123456");
        assert_eq!(time.with_fsp(3).to_string(), "2023-05-17 10:20:30.123");
        let leap = Time::parse("2024-02-29", 0).unwrap();
        assert_eq!(leap.packed(), 0x19b2_ba00_0000_0000);
        assert_eq!(leap.date().to_string(), "2024-02-29");
        assert_eq!(leap.to_string(), "2024-02-29 00:00:00");
        assert_eq!(Time::ZERO.with_fsp(2).to_string(), "0000-00-00 00:00:00.00");
        assert_eq!(Time::parse("0000-00-00 00:00:00", 0), Ok(Time::ZERO));
        assert_eq!(Time::parse("2024-00-00", 0).unwrap().date().to_string(), "2024-00-00");
        assert_eq!(Time::parse("2023-02-31", 0).unwrap().date().to_string(), "2023-02-31");
    }

    #[test]
    fn refuses() {
        for text in [
            "",
            "2023",
            "2023-13-01",
            "2023-01-32",
            "2023-01-01 24:00:00",
            "2023-01-01 1:2",
            "x-1-1",
            "1-1-1-1",
        ] {
            assert!(Time::parse(text, 6).is_err(), "{text}");
        }
        // Second 60; year 10000.
        let second_60 = Time::parse("2023-01-01 00:00:59", 0).unwrap().packed() + (1 << 24);
        assert_eq!(Time::from_packed(second_60, 0), Err(DecodeError::Time(second_60)));
        let year_10000 = (10_000 * 13 + 1) << 46;
        assert_eq!(Time::from_packed(year_10000, 0), Err(DecodeError::Time(year_10000)));
        assert!(Time::from_core_time(u64::MAX, 0).is_err());
        for text in ["", "839:00:00", "1:60:00", "1:2", "--1:00:00", "1:00:00.x"] {
            assert!(Duration::parse(text, 6).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        let cases = [
            ("10:11:12.5", 1, 36_672_500_000_000),
            ("-10:11:12.5", 1, -36_672_500_000_000),
            ("838:59:59", 0, 3_020_399_000_000_000),
            ("-00:00:00.000001", 6, -1000),
            ("00:00:00", 0, 0),
        ];
        for (text, fsp, nanos) in cases {
            assert_eq!(Duration::parse(text, fsp).unwrap().nanos, nanos);
            assert_eq!(Duration::new(nanos, fsp).to_string(), text);
        }
        assert_eq!(Duration::new(i64::MIN, 6).to_string(), "-2562047:47:16.854775");
    }

    proptest! {
        #[test]
        fn any_number(packed: u64, fsp in 0u8..9) {
            if let Ok(time) = Time::from_packed(packed, fsp) {
                prop_assert_eq!(Time::from_fields(time.fields(), fsp).unwrap().packed(), packed);
                prop_assert_eq!(Time::from_core_time(time.core_time(), fsp).unwrap().packed(), packed);
                prop_assert_eq!(Time::parse(&time.with_fsp(6).to_string(), 6).unwrap().packed(), packed);
            }
            if let Ok(time) = Time::from_core_time(packed, fsp) {
                prop_assert_eq!(time.core_time(), packed & !0xf);
            }
        }

        #[test]
        fn valid_fields(year in 0u16..=9999, month in 0u8..=12, day in 0u8..=31, secs in 0u32..86400, micros in 0u32..1_000_000) {
            let fields = Fields {
                year, month, day,
                hour: (secs / 3600) as u8, minute: (secs / 60 % 60) as u8, second: (secs % 60) as u8, micros,
            };
            let time = Time::from_fields(fields, 6).unwrap();
            prop_assert_eq!(Time::from_packed(time.packed(), 6), Ok(time));
            prop_assert_eq!(time.fields(), fields);
        }

        #[test]
        fn any_duration(nanos in -3_020_399_999_999i64..3_020_399_999_999) {
            let micros = nanos * 1000;
            let duration = Duration::new(micros, 6);
            prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }
    }
}
