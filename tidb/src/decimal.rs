//! Exact decimals of up to 65 digits, in MySQL's binary form (TiDB `types/mydecimal.go`).
//!
//! A [`Decimal`] keeps the bytes TiDB wrote, checked once: reading copies at most 30 bytes, writing copies them back,
//! and text is made only when asked for. Digits stand in groups of nine in four big-endian bytes, a partial group
//! (first on the integer side, last on the fraction side) in as many bytes as it needs; the bytes of a negative number
//! are inverted; the first bit is flipped so that the bytes sort like the numbers.

use std::{fmt, str::FromStr};

use crate::DecodeError;

/// Most digits.
pub const MAX_PRECISION: u8 = 65;
/// Most digits after the point.
pub const MAX_FRAC: u8 = 30;

const GROUP_DIGITS: usize = 9;
const GROUP_BYTES: usize = 4;
/// Bytes that a partial group of n digits takes.
const PARTIAL: [usize; GROUP_DIGITS] = [0, 1, 1, 2, 2, 3, 3, 4, 4];
const POW10: [u32; GROUP_DIGITS + 1] =
    [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];
/// No shape within the limits needs more.
const MAX_BYTES: usize = 30;

/// A decimal number with a fixed number of digits after the point. Two are equal if value, precision and scale are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decimal {
    precision: u8,
    frac: u8,
    bytes: [u8; MAX_BYTES],
}

/// Why a text is not a decimal of the wanted shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDecimalError {
    /// Not a number in plain or exponent notation.
    #[error("{0:?} is not a decimal number")]
    Syntax(String),
    /// More digits than the limits allow.
    #[error("{text:?} does not fit decimal({precision},{frac})")]
    OutOfRange {
        /// The number.
        text: String,
        /// Digits in total.
        precision: u8,
        /// Digits after the point.
        frac: u8,
    },
}

/// How the digits of a shape are laid out in bytes.
struct Shape {
    lead: usize,
    int_groups: usize,
    frac_groups: usize,
    trail: usize,
}

impl Shape {
    fn new(precision: u8, frac: u8) -> Result<Self, DecodeError> {
        if precision == 0 || precision > MAX_PRECISION || frac > MAX_FRAC || frac > precision {
            return Err(DecodeError::DecimalShape { precision, frac });
        }
        let (int, frac) = (usize::from(precision - frac), usize::from(frac));
        Ok(Self {
            lead: int % GROUP_DIGITS,
            int_groups: int / GROUP_DIGITS,
            frac_groups: frac / GROUP_DIGITS,
            trail: frac % GROUP_DIGITS,
        })
    }

    fn bytes(&self) -> usize {
        PARTIAL[self.lead] + (self.int_groups + self.frac_groups) * GROUP_BYTES + PARTIAL[self.trail]
    }

    /// Digits of each group, in order; empty partial groups left out.
    fn groups(&self) -> impl Iterator<Item = usize> + use<> {
        let full = self.int_groups + self.frac_groups;
        let (lead, trail) = (self.lead, self.trail);
        std::iter::once(lead)
            .chain(std::iter::repeat_n(GROUP_DIGITS, full))
            .chain([trail])
            .filter(|&n| n != 0)
    }
}

fn group_bytes(digits: usize) -> usize {
    if digits == GROUP_DIGITS { GROUP_BYTES } else { PARTIAL[digits] }
}

impl Decimal {
    /// Zero with `frac` digits after the point, within `precision` digits.
    pub fn zero(precision: u8, frac: u8) -> Result<Self, DecodeError> {
        let _ = Shape::new(precision, frac)?;
        let mut bytes = [0; MAX_BYTES];
        bytes[0] = 0x80;
        Ok(Self { precision, frac, bytes })
    }

    /// Digits in total.
    pub fn precision(&self) -> u8 {
        self.precision
    }

    /// Digits after the point.
    pub fn frac(&self) -> u8 {
        self.frac
    }

    /// True below zero. A negative zero, which TiDB does not write, counts as negative.
    pub fn is_negative(&self) -> bool {
        self.bytes[0] & 0x80 == 0
    }

    /// The digit bytes, without precision and scale.
    pub fn digit_bytes(&self) -> &[u8] {
        let len = Shape::new(self.precision, self.frac).map_or(0, |shape| shape.bytes());
        &self.bytes[..len]
    }

    /// Appends precision, scale and digit bytes: the body of a decimal datum.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.precision, self.frac]);
        out.extend_from_slice(self.digit_bytes());
    }

    /// Reads precision, scale and digit bytes from the front of `data`; returns also how many bytes they took.
    pub fn decode(data: &[u8]) -> Result<(Self, usize), DecodeError> {
        let &[precision, frac, ref rest @ ..] = data else { return Err(DecodeError::Truncated("a decimal")) };
        let shape = Shape::new(precision, frac)?;
        let len = shape.bytes();
        let digits = rest.get(..len).ok_or(DecodeError::Truncated("a decimal"))?;
        let mut bytes = [0; MAX_BYTES];
        bytes[..len].copy_from_slice(digits);
        let decimal = Self { precision, frac, bytes };
        if decimal.group_values(&shape).zip(shape.groups()).any(|(value, digits)| value >= POW10[digits]) {
            return Err(DecodeError::DecimalDigits);
        }
        Ok((decimal, len + 2))
    }

    fn group_values(&self, shape: &Shape) -> impl Iterator<Item = u32> + use<'_> {
        let invert = if self.is_negative() { 0xff } else { 0 };
        let mut at = 0;
        shape.groups().map(move |digits| {
            let len = group_bytes(digits);
            let value = self.bytes[at..at + len].iter().enumerate().fold(0, |value, (i, &byte)| {
                let byte = if at + i == 0 { byte ^ 0x80 } else { byte };
                value << 8 | u32::from(byte ^ invert)
            });
            at += len;
            value
        })
    }

    /// All digits as text, most significant first, `precision` of them.
    fn digits(&self) -> ([u8; MAX_PRECISION as usize], usize) {
        let mut digits = [b'0'; MAX_PRECISION as usize];
        let mut at = 0;
        if let Ok(shape) = Shape::new(self.precision, self.frac) {
            for (mut value, len) in self.group_values(&shape).zip(shape.groups()) {
                for place in digits[at..at + len].iter_mut().rev() {
                    *place = b'0' + (value % 10) as u8;
                    value /= 10;
                }
                at += len;
            }
        }
        (digits, at)
    }

    /// From a number in plain or exponent notation, rounded half away from zero to `frac` digits.
    pub fn parse(text: &str, precision: u8, frac: u8) -> Result<Self, ParseDecimalError> {
        let number = Parsed::read(text)?;
        let out_of_range = || ParseDecimalError::OutOfRange { text: shorten(text), precision, frac };
        let mut decimal = Self::zero(precision, frac).map_err(|_| out_of_range())?;
        let (digits, carry) = number.rounded(usize::from(frac));
        // `digits` has frac digits after the point; leading zeros beyond the integer places are dropped.
        let mut all = [0u8; MAX_PRECISION as usize];
        let mut significant = digits.as_slice();
        if carry {
            // A carry out of the first digit: one more leading 1.
            if significant.len() >= usize::from(precision) {
                return Err(out_of_range());
            }
            let place = usize::from(precision) - significant.len() - 1;
            all[place] = 1;
        } else {
            while significant.len() > usize::from(precision) {
                let Some((0, rest)) = significant.split_first() else { return Err(out_of_range()) };
                significant = rest;
            }
        }
        let start = usize::from(precision) - significant.len();
        all[start..usize::from(precision)].copy_from_slice(significant);
        decimal.fill(&all[..usize::from(precision)], number.negative);
        Ok(decimal)
    }

    /// Writes digits (values, not characters) in the shape's bytes. Zero has no sign.
    fn fill(&mut self, digits: &[u8], negative: bool) {
        let Ok(shape) = Shape::new(self.precision, self.frac) else { return };
        let negative = negative && digits.iter().any(|&d| d != 0);
        let (mut at, mut from) = (0, 0);
        for len in shape.groups() {
            let value = digits[from..from + len].iter().fold(0u32, |value, &d| value * 10 + u32::from(d));
            from += len;
            let bytes = group_bytes(len);
            self.bytes[at..at + bytes].copy_from_slice(&value.to_be_bytes()[GROUP_BYTES - bytes..]);
            at += bytes;
        }
        if negative {
            for byte in &mut self.bytes[..at] {
                *byte = !*byte;
            }
        }
        self.bytes[0] ^= 0x80;
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Digits of a number text and where its point is.
struct Parsed {
    negative: bool,
    /// Digit values, without point.
    digits: Vec<u8>,
    /// How many of them stand before the point; may be negative or past the end.
    point: i64,
}

impl Parsed {
    fn read(text: &str) -> Result<Self, ParseDecimalError> {
        let syntax = || ParseDecimalError::Syntax(shorten(text));
        let trimmed = text.trim();
        let (negative, rest) = match trimmed.as_bytes() {
            [b'-', ..] => (true, &trimmed[1..]),
            [b'+', ..] => (false, &trimmed[1..]),
            _ => (false, trimmed),
        };
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], rest[at + 1..].parse::<i32>().map_err(|_| syntax())?),
            None => (rest, 0),
        };
        let (int, frac) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if int.len() + frac.len() == 0 || !int.bytes().chain(frac.bytes()).all(|b| b.is_ascii_digit()) {
            return Err(syntax());
        }
        let int = int.trim_start_matches('0');
        let digits = int.bytes().chain(frac.bytes()).map(|b| b - b'0').collect();
        Ok(Self { negative, digits, point: int.len() as i64 + i64::from(exponent) })
    }

    /// The digits up to `frac` places after the point, rounded; the flag says that rounding carried out of the first.
    fn rounded(&self, frac: usize) -> (Vec<u8>, bool) {
        // A number with hundreds of integer digits does not fit anyway; a limit keeps the memory bounded.
        let int = self.point.clamp(0, 2 * i64::from(MAX_PRECISION)) as usize;
        let digit = |i: i64| usize::try_from(i).ok().and_then(|i| self.digits.get(i)).copied().unwrap_or(0);
        let first = self.point - int as i64;
        let first = if self.point > int as i64 { 0 } else { first };
        let mut out: Vec<u8> = (0..(int + frac) as i64).map(|i| digit(first + i)).collect();
        if digit(first + (int + frac) as i64) < 5 {
            return (out, false);
        }
        for place in out.iter_mut().rev() {
            if *place < 9 {
                *place += 1;
                return (out, false);
            }
            *place = 0;
        }
        (out, true)
    }
}

impl fmt::Display for Decimal {
    /// Exactly `frac` digits after the point, `0` before it where there is nothing else.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (digits, len) = self.digits();
        let point = len - usize::from(self.frac);
        let first = digits[..point].iter().position(|&d| d != b'0').unwrap_or(point);
        let mut text = [0u8; MAX_PRECISION as usize + 3];
        let mut at = 0;
        let mut push = |bytes: &[u8]| {
            text[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        if self.is_negative() {
            push(b"-");
        }
        push(if first == point { b"0" } else { &digits[first..point] });
        if self.frac > 0 {
            push(b".");
            push(&digits[point..len]);
        }
        f.write_str(std::str::from_utf8(&text[..at]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({},{})", self.precision, self.frac)
    }
}

impl FromStr for Decimal {
    type Err = ParseDecimalError;

    /// With just the digits that the text has.
    fn from_str(text: &str) -> Result<Self, ParseDecimalError> {
        let number = Parsed::read(text)?;
        let frac = (number.digits.len() as i64 - number.point).max(0);
        let frac = u8::try_from(frac).unwrap_or(u8::MAX);
        let int = u8::try_from(number.point.max(0)).unwrap_or(u8::MAX);
        Self::parse(text, int.saturating_add(frac).max(1), frac)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn vectors() {
        let cases = [
            ("-10.55", 4, 2, "040275c8"),
            ("12.50", 10, 2, "0a028000000c32"),
            ("123.450", 10, 3, "0a038000007b01c2"),
            ("0.00", 10, 2, "0a028000000000"),
            ("0.1", 1, 1, "010181"),
            ("1234567890.1234", 14, 4, "0e04810dfb38d204d2"),
            ("-1234567890.1234", 14, 4, "0e047ef204c72dfb2d"),
        ];
        for (text, precision, frac, bytes) in cases {
            let decimal = Decimal::parse(text, precision, frac).unwrap();
            let mut out = Vec::new();
            decimal.encode(&mut out);
            assert_eq!(out, hex(bytes), "{text}");
            assert_eq!(decimal.to_string(), text);
            assert_eq!(Decimal::decode(&hex(bytes)), Ok((decimal, bytes.len() / 2)));
        }
    }

    #[test]
    fn every_shape_fits() {
        for precision in 1..=MAX_PRECISION {
            for frac in 0..=precision.min(MAX_FRAC) {
                assert!(Shape::new(precision, frac).unwrap().bytes() <= MAX_BYTES, "({precision},{frac})");
                let nines = format!(
                    "-{}.{}",
                    "9".repeat(usize::from(precision - frac)),
                    "9".repeat(usize::from(frac))
                );
                let decimal = Decimal::parse(&nines, precision, frac).unwrap();
                let mut out = Vec::new();
                decimal.encode(&mut out);
                assert_eq!(Decimal::decode(&out).unwrap(), (decimal, out.len()));
                let shown = decimal.to_string();
                assert_eq!(shown.trim_start_matches("-0.").trim_start_matches('-'), {
                    let n = nines.trim_end_matches('.');
                    n.trim_start_matches("-.").trim_start_matches('-')
                });
            }
        }
    }

    #[test]
    fn rounds_half_away_from_zero() {
        let cases = [
            ("0.005", 3, 2, "0.01"),
            ("-0.005", 3, 2, "-0.01"),
            ("0.0049999", 3, 2, "0.00"),
            ("9.995", 4, 2, "10.00"),
            ("1e3", 6, 2, "1000.00"),
            ("12.5e-1", 3, 2, "1.25"),
            ("-0.001", 3, 2, "0.00"),
            (".5", 1, 0, "1"),
            ("5.", 1, 0, "5"),
            ("0000000000123", 3, 0, "123"),
            ("1e-400", 3, 2, "0.00"),
        ];
        for (text, precision, frac, expected) in cases {
            assert_eq!(Decimal::parse(text, precision, frac).unwrap().to_string(), expected, "{text}");
        }
        for (text, precision, frac) in
            [("9.995", 3, 2), ("1000", 3, 0), ("1e400", 65, 0), ("1e2000000000", 65, 0)]
        {
            assert!(
                matches!(Decimal::parse(text, precision, frac), Err(ParseDecimalError::OutOfRange { .. })),
                "{text}"
            );
        }
        for text in ["", "-", ".", "1x", "1e", "0x10", "1.2.3"] {
            assert!(matches!(Decimal::from_str(text), Err(ParseDecimalError::Syntax(_))), "{text}");
        }
    }

    #[test]
    fn refuses() {
        assert_eq!(Decimal::decode(&[5]), Err(DecodeError::Truncated("a decimal")));
        assert_eq!(Decimal::decode(&[66, 0]), Err(DecodeError::DecimalShape { precision: 66, frac: 0 }));
        assert_eq!(Decimal::decode(&[0, 0]), Err(DecodeError::DecimalShape { precision: 0, frac: 0 }));
        assert_eq!(Decimal::decode(&[2, 3]), Err(DecodeError::DecimalShape { precision: 2, frac: 3 }));
        assert_eq!(Decimal::decode(&[40, 31]), Err(DecodeError::DecimalShape { precision: 40, frac: 31 }));
        // One digit place holding 10.
        assert_eq!(Decimal::decode(&[1, 0, 0x8a]), Err(DecodeError::DecimalDigits));
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>) {
            if let Ok((decimal, len)) = Decimal::decode(&data) {
                let mut out = Vec::new();
                decimal.encode(&mut out);
                prop_assert_eq!(&out, &data[..len]);
            }
        }

        #[test]
        fn text_round_trip(int in "[1-9][0-9]{0,34}", frac in "[0-9]{1,30}", negative: bool) {
            let text = format!("{}{int}.{frac}", if negative { "-" } else { "" });
            let decimal: Decimal = text.parse().unwrap();
            prop_assert_eq!(decimal.to_string(), text);
            prop_assert_eq!(usize::from(decimal.precision()), int.len() + frac.len());
        }

        #[test]
        fn bytes_sort_like_numbers(a in -99_999_999i64..=99_999_999, b in -99_999_999i64..=99_999_999) {
            let parse = |v: i64| Decimal::parse(&format!("{v}e-3"), 10, 3).unwrap();
            prop_assert_eq!(a.cmp(&b), parse(a).digit_bytes().cmp(parse(b).digit_bytes()));
        }
    }
}
