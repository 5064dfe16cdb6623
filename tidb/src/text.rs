//! Numbers as TiDB prints them (TiDB `server`, dump of text rows).

use std::fmt::{self, Write};

/// A DOUBLE as SELECT shows it: the shortest text that reads back the same; plain from 1e-15 up to below 1e15, else
/// with an exponent (`1.5e20`, `9e-16`).
pub fn double(f: &mut impl Write, v: f64) -> fmt::Result {
    let magnitude = v.abs();
    if magnitude == 0.0 || (1e-15..1e15).contains(&magnitude) || !v.is_finite() {
        write!(f, "{v}")
    } else {
        write!(f, "{v:e}")
    }
}

/// A FLOAT in the same notation, by the shortest text that reads back the same single-precision number. (TiDB itself
/// cuts the exponent form to six digits, which loses information.)
pub fn float(f: &mut impl Write, v: f32) -> fmt::Result {
    let magnitude = v.abs();
    if magnitude == 0.0 || (1e-15..1e15).contains(&magnitude) || !v.is_finite() {
        write!(f, "{v}")
    } else {
        write!(f, "{v:e}")
    }
}

/// A double inside JSON: the shortest text, with an exponent below 1e-6 and from 1e21 (`1e-7`, `1e+100`); integral ones
/// have no point.
pub fn json_double(f: &mut impl Write, v: f64) -> fmt::Result {
    let magnitude = v.abs();
    if magnitude == 0.0 || (1e-6..1e21).contains(&magnitude) || !v.is_finite() {
        write!(f, "{v}")
    } else if magnitude < 1.0 {
        write!(f, "{v:e}")
    } else {
        let text = format!("{v:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        write!(f, "{mantissa}e+{exponent}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(write: impl FnOnce(&mut String) -> fmt::Result) -> String {
        let mut out = String::new();
        write(&mut out).unwrap();
        out
    }

    #[test]
    fn doubles() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (0.00001, "0.00001"),
            (1e14, "100000000000000"),
            (1e15, "1e15"),
            (999_999_999_999_999.9, "999999999999999.9"),
            (f64::MAX, "1.7976931348623157e308"),
            (-f64::MAX, "-1.7976931348623157e308"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (9e-16, "9e-16"),
            (1e-15, "0.000000000000001"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e21, "1e21"),
        ];
        for (v, expected) in cases {
            assert_eq!(show(|f| double(f, v)), expected);
        }
    }

    #[test]
    fn floats() {
        let cases = [
            (123_456_790.0, "123456790"),
            (1e10, "10000000000"),
            (1e15, "1e15"),
            (1e20, "1e20"),
            (123_456.79, "123456.79"),
            (1e-7, "0.0000001"),
            (3.402_823_5e38, "3.4028235e38"),
            (1.175_494_4e-38, "1.1754944e-38"),
            (16_777_216.0, "16777216"),
        ];
        for (v, expected) in cases {
            assert_eq!(show(|f| float(f, v)), expected);
        }
    }

    #[test]
    fn doubles_in_json() {
        let cases = [
            (1.0, "1"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (1e100, "1e+100"),
            (1.234_567_890_123_456_8e29, "1.2345678901234568e+29"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (-1.5e-10, "-1.5e-10"),
            (123_456_789.123, "123456789.123"),
        ];
        for (v, expected) in cases {
            assert_eq!(show(|f| json_double(f, v)), expected);
        }
    }
}
