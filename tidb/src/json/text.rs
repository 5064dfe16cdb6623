//! A document as TiDB prints it (TiDB `types/json_binary.go`): stored key order, `, ` and `: `, integral doubles
//! without point.

use std::fmt::{self, Write};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Event, Json, Scalar};
use crate::text::json_double;

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What to write before the next key or element, and whether a key was just written.
        let (mut first, mut after_key) = (true, false);
        for event in self.events() {
            // A `Json` is checked when it is made.
            let event = event.map_err(|_| fmt::Error)?;
            if !first && !after_key && !matches!(event, Event::EndObject | Event::EndArray) {
                f.write_str(", ")?;
            }
            (first, after_key) = (false, false);
            match event {
                Event::BeginObject(_) => {
                    f.write_char('{')?;
                    first = true;
                }
                Event::BeginArray(_) => {
                    f.write_char('[')?;
                    first = true;
                }
                Event::EndObject => f.write_char('}')?,
                Event::EndArray => f.write_char(']')?,
                Event::Key(key) => {
                    string(f, key)?;
                    f.write_str(": ")?;
                    after_key = true;
                }
                Event::Scalar(value) => scalar(f, value)?,
            }
        }
        Ok(())
    }
}

fn scalar(f: &mut fmt::Formatter<'_>, value: Scalar<'_>) -> fmt::Result {
    match value {
        Scalar::Null => f.write_str("null"),
        Scalar::Bool(v) => write!(f, "{v}"),
        Scalar::Int(v) => write!(f, "{v}"),
        Scalar::Uint(v) => write!(f, "{v}"),
        Scalar::Double(v) => json_double(f, v),
        Scalar::String(v) => string(f, v),
        Scalar::Opaque { tp, bytes } => write!(f, "\"base64:type{tp}:{}\"", STANDARD.encode(bytes)),
        Scalar::Date(v) => write!(f, "\"{}\"", v.date()),
        Scalar::Datetime(v) | Scalar::Timestamp(v) => write!(f, "\"{}\"", v.with_fsp(6)),
        Scalar::Duration(v) => write!(f, "\"{}\"", crate::time::Duration::new(v.nanos, 6)),
    }
}

fn string(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    f.write_char('"')?;
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        let special = |c: char| matches!(c, '"' | '\\' | '\u{0}'..='\u{1f}' | '\u{2028}' | '\u{2029}');
        while let Some(at) = rest.find(special) {
            f.write_str(&rest[..at])?;
            let mut chars = rest[at..].chars();
            match chars.next() {
                Some('"') => f.write_str("\\\"")?,
                Some('\\') => f.write_str("\\\\")?,
                Some('\n') => f.write_str("\\n")?,
                Some('\r') => f.write_str("\\r")?,
                Some('\t') => f.write_str("\\t")?,
                Some(c) => write!(f, "\\u{:04x}", u32::from(c))?,
                None => {}
            }
            rest = chars.as_str();
        }
        f.write_str(rest)?;
        for _ in chunk.invalid() {
            f.write_str("\\ufffd")?;
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{Json, tp};
    use crate::time::Time;

    #[test]
    fn prints_as_tidb() {
        // Texts and spellings as the recorded TiDB showed them.
        let cases = [
            (
                r#"{"a":2,"b":[1,2,{"c":null}],"d":"str","e":true,"f":false,"g":1.5,"h":-0.0,"i":1e100,"n":-9223372036854775808,"u":18446744073709551615}"#,
                r#"{"a": 2, "b": [1, 2, {"c": null}], "d": "str", "e": true, "f": false, "g": 1.5, "h": -0, "i": 1e+100, "n": -9223372036854775808, "u": 18446744073709551615}"#,
            ),
            ("{}", "{}"),
            ("[]", "[]"),
            ("[[],{}]", "[[], {}]"),
            ("1.0", "1"),
            ("[1.1,2,true,\"x\"]", "[1.1, 2, true, \"x\"]"),
            ("100000000000000000000", "100000000000000000000"),
            (
                "[18446744073709551615, 1.0, 0.1, 1e15, 1e16, 1e21, 1e-7, 123456789.123]",
                "[18446744073709551615, 1, 0.1, 1000000000000000, 10000000000000000, 1e+21, 1e-7, 123456789.123]",
            ),
            (r#"{"z":1,"aa":2,"b":3,"":"empty key"}"#, r#"{"": "empty key", "aa": 2, "b": 3, "z": 1}"#),
            (
                "\"a\\/<>&\\u0001\\u2028\\n\\t\\\"\\\\ \u{7f}\"",
                "\"a/<>&\\u0001\\u2028\\n\\t\\\"\\\\ \u{7f}\"",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(Json::parse(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn values_that_json_lacks() {
        let opaque = Json::new(tp::OPAQUE, Bytes::from_static(b"\xfd\x03abc")).unwrap();
        assert_eq!(opaque.to_string(), "\"base64:type253:YWJj\"");
        let time = Time::parse("2024-02-29 12:34:56.123456", 6).unwrap();
        let core = Bytes::copy_from_slice(&time.core_time().to_le_bytes());
        assert_eq!(Json::new(tp::DATE, core.clone()).unwrap().to_string(), "\"2024-02-29\"");
        assert_eq!(
            Json::new(tp::DATETIME, core.clone()).unwrap().to_string(),
            "\"2024-02-29 12:34:56.123456\""
        );
        assert_eq!(Json::new(tp::TIMESTAMP, core).unwrap().to_string(), "\"2024-02-29 12:34:56.123456\"");
        let mut duration = 45_296_789_000_000i64.to_le_bytes().to_vec();
        duration.extend_from_slice(&3u32.to_le_bytes());
        assert_eq!(Json::new(tp::DURATION, duration.into()).unwrap().to_string(), "\"12:34:56.789000\"");
        let invalid = Json::new(tp::STRING, Bytes::from_static(b"\x03a\xe4\xb8")).unwrap();
        assert_eq!(invalid.to_string(), "\"a\\ufffd\\ufffd\"");
    }
}
