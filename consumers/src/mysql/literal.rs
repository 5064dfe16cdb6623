//! Names and values as SQL text. Everything that goes into a statement passes through here.
//!
//! The session is pinned (utf8mb4, no ANSI_QUOTES, backslash escapes on), so a quoted string ends only where we end it.
//! Numbers are written from numbers; decimals, which come as text, are checked to be digits.

use std::fmt::Write as _;

use schemas::sluice::v1::Column;

use super::session::Target;
use crate::event::Value;

/// A value that cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("column {column} holds a decimal that is none")]
pub struct BadDecimal {
    /// The column.
    pub column: String,
}

/// MySQL's type numbers that matter here.
pub(crate) mod types {
    pub(crate) const VARCHAR: i32 = 15;
    pub(crate) const TINY_BLOB: i32 = 249;
    pub(crate) const BLOB: i32 = 252;
    pub(crate) const VAR_STRING: i32 = 253;
    pub(crate) const STRING: i32 = 254;

    /// CHAR, VARCHAR, TEXT and their binary kin.
    pub(crate) fn is_string(mysql_type: i32) -> bool {
        matches!(mysql_type, VARCHAR | VAR_STRING | STRING | TINY_BLOB..=BLOB)
    }
}

/// A name in back-ticks, those within doubled.
pub fn identifier(out: &mut String, name: &str) {
    out.push('`');
    for c in name.chars() {
        if c == '`' {
            out.push('`');
        }
        out.push(c);
    }
    out.push('`');
}

/// `` `database`.`table` ``.
pub fn table_name(database: &str, table: &str) -> String {
    let mut out = String::with_capacity(database.len() + table.len() + 5);
    identifier(&mut out, database);
    out.push('.');
    identifier(&mut out, table);
    out
}

/// `` `name` ``.
pub fn quoted(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    identifier(&mut out, name);
    out
}

/// A string in single quotes, escaped.
pub fn string(out: &mut String, text: &str) {
    out.push('\'');
    for c in text.chars() {
        match c {
            '\'' => out.push_str("\\'"),
            '\\' => out.push_str("\\\\"),
            '\0' => out.push_str("\\0"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\u{1a}' => out.push_str("\\Z"),
            c => out.push(c),
        }
    }
    out.push('\'');
}

fn hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(bytes.len() * 2 + 3);
    out.push_str("x'");
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    out.push('\'');
}

/// A value to be stored in `column`.
pub fn literal(out: &mut String, value: &Value, column: &Column) -> Result<(), BadDecimal> {
    // Writing to a String cannot fail.
    let _ = match value {
        Value::Null(_) => write!(out, "NULL"),
        Value::Int(v) => write!(out, "{v}"),
        Value::Uint(v) | Value::Enum(v) | Value::Set(v) | Value::Bit(v) => write!(out, "{v}"),
        // Widened: exactly the value that the server compares a FLOAT column as, and narrowed again when stored. With an
        // exponent, so that it is a double and no decimal.
        Value::Float(v) => write!(out, "{:e}", f64::from(*v)),
        Value::Double(v) => write!(out, "{v:e}"),
        Value::Decimal(text) => {
            if !is_decimal(text) {
                return Err(BadDecimal { column: column.name.clone() });
            }
            write!(out, "{text}")
        }
        Value::Bytes(bytes) => {
            hex(out, bytes);
            Ok(())
        }
        Value::Text(text)
        | Value::Date(text)
        | Value::Datetime(text)
        | Value::Timestamp(text)
        | Value::Time(text) => {
            string(out, text);
            Ok(())
        }
        Value::Json(json) => {
            string(out, &json.text);
            Ok(())
        }
    };
    Ok(())
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    [whole, fraction].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `column <=> value`, exactly: strings byte for byte, whatever the collation.
pub fn exactly(out: &mut String, value: &Value, column: &Column, target: &Target) -> Result<(), BadDecimal> {
    identifier(out, &column.name);
    out.push_str(" <=> ");
    match value {
        Value::Json(_) if !target.is_mariadb() => {
            out.push_str("CAST(");
            literal(out, value, column)?;
            out.push_str(" AS JSON)");
        }
        // The first comparison may find an index; the second tells apart what the collation does not.
        Value::Text(_) | Value::Json(_) => {
            literal(out, value, column)?;
            out.push_str(" AND CAST(CONVERT(");
            identifier(out, &column.name);
            out.push_str(" USING utf8mb4) AS BINARY) <=> CAST(");
            literal(out, value, column)?;
            out.push_str(" AS BINARY)");
        }
        _ => literal(out, value, column)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use schemas::sluice::v1::Null;

    use super::*;

    fn text(value: Value) -> String {
        let mut out = String::new();
        literal(&mut out, &value, &Column::default()).unwrap();
        out
    }

    #[test]
    fn names_cannot_end_early() {
        assert_eq!(table_name("we-ird.db", "t/../x"), "`we-ird.db`.`t/../x`");
        assert_eq!(quoted("weird `name"), "`weird ``name`");
        assert_eq!(quoted("`; DROP TABLE x; --"), "```; DROP TABLE x; --`");
    }

    #[test]
    fn values() {
        assert_eq!(text(Value::Null(Null {})), "NULL");
        assert_eq!(text(Value::Int(i64::MIN)), "-9223372036854775808");
        assert_eq!(text(Value::Uint(u64::MAX)), "18446744073709551615");
        assert_eq!(text(Value::Float(1.1)), "1.100000023841858e0");
        assert_eq!(text(Value::Float(f32::MIN_POSITIVE)), "1.1754943508222875e-38");
        assert_eq!(text(Value::Double(1e15)), "1e15");
        assert_eq!(text(Value::Double(-0.1)), "-1e-1");
        assert_eq!(text(Value::Decimal("-0.50".into())), "-0.50");
        assert_eq!(text(Value::Text("it's \\ a\0b\n\r\u{1a} 青".into())), r"'it\'s \\ a\0b\n\r\Z 青'");
        assert_eq!(text(Value::Bytes(Bytes::from_static(b"\0\xff'"))), "x'00ff27'");
        assert_eq!(text(Value::Bytes(Bytes::new())), "x''");
        assert_eq!(text(Value::Timestamp("0000-00-00 00:00:00".into())), "'0000-00-00 00:00:00'");
        assert_eq!(text(Value::Bit(5)), "5");
    }

    #[test]
    fn a_decimal_is_digits() {
        for bad in ["", "-", "1.", ".5", "1e5", "1 OR 1=1", "--1", "1.2.3", "NaN"] {
            let result = literal(&mut String::new(), &Value::Decimal(bad.into()), &Column::default());
            assert!(result.is_err(), "{bad}");
        }
    }
}
