//! TiDB's binary JSON (TiDB `types/json_binary.go`).
//!
//! A [`Json`] keeps TiDB's bytes, checked once on the way in: reading copies nothing, writing gives the same bytes back,
//! text is made only when asked for. Documents are walked, never recursed into, so depth costs no stack; the check
//! demands that the parts of a container follow one another without overlap, as TiDB writes them, so that a walk never
//! visits more bytes than the document has.

mod build;
mod text;
mod walk;

use std::fmt;

use bytes::Bytes;

pub use self::{
    build::BuildJsonError,
    walk::{Event, Events, Scalar},
};
use crate::{DecodeError, varint};

/// Type bytes.
pub(crate) mod tp {
    pub(crate) const OBJECT: u8 = 0x01;
    pub(crate) const ARRAY: u8 = 0x03;
    pub(crate) const LITERAL: u8 = 0x04;
    pub(crate) const INT: u8 = 0x09;
    pub(crate) const UINT: u8 = 0x0a;
    pub(crate) const DOUBLE: u8 = 0x0b;
    pub(crate) const STRING: u8 = 0x0c;
    pub(crate) const OPAQUE: u8 = 0x0d;
    pub(crate) const DATE: u8 = 0x0e;
    pub(crate) const DATETIME: u8 = 0x0f;
    pub(crate) const TIMESTAMP: u8 = 0x10;
    pub(crate) const DURATION: u8 = 0x11;
}

/// Count and total size, in front of every container.
const HEADER: usize = 8;
/// Type byte and offset (or literal) of one value.
const VALUE_ENTRY: usize = 5;
/// Offset and length of one key.
const KEY_ENTRY: usize = 6;

/// A JSON document in TiDB's binary form; well-formed by construction. Equal if the bytes are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Json {
    tp: u8,
    value: Bytes,
}

impl Json {
    /// From a type byte and exactly the value's bytes.
    pub fn new(tp: u8, value: Bytes) -> Result<Self, DecodeError> {
        if extent(tp, &value)? != value.len() {
            return Err(DecodeError::Json("bytes follow the document"));
        }
        for event in Events::new(tp, &value) {
            event?;
        }
        Ok(Self { tp, value })
    }

    /// Reads a type byte and a value from `data` at `at`; returns also how many bytes they took.
    pub fn decode(data: &Bytes, at: usize) -> Result<(Self, usize), DecodeError> {
        let Some((&tp, rest)) = data.get(at..).and_then(<[u8]>::split_first) else {
            return Err(DecodeError::Truncated("JSON"));
        };
        let len = extent(tp, rest)?;
        Ok((Self::new(tp, data.slice(at + 1..at + 1 + len))?, len + 1))
    }

    /// Appends type byte and value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.tp);
        out.extend_from_slice(&self.value);
    }

    /// The type byte.
    pub fn type_byte(&self) -> u8 {
        self.tp
    }

    /// The value, without its type byte.
    pub fn value_bytes(&self) -> &Bytes {
        &self.value
    }

    /// The JSON `null`.
    pub fn null() -> Self {
        Self { tp: tp::LITERAL, value: Bytes::from_static(&[0]) }
    }

    /// The document as a flat sequence of events.
    pub fn events(&self) -> Events<'_> {
        Events::new(self.tp, &self.value)
    }

    /// True if reading the text gives the same document: false where it holds integral doubles (`1.0` prints `1`),
    /// opaque or time values (they print as strings), small unsigned integers, or strings that are not UTF-8.
    pub fn text_is_lossless(&self) -> bool {
        self.events().all(|event| match event {
            Ok(Event::Scalar(scalar)) => match scalar {
                Scalar::Null | Scalar::Bool(_) | Scalar::Int(_) => true,
                Scalar::Uint(v) => v > i64::MAX as u64,
                Scalar::Double(v) => v.abs() >= 1e21 || v.fract() != 0.0,
                Scalar::String(s) => std::str::from_utf8(s).is_ok(),
                Scalar::Opaque { .. }
                | Scalar::Date(_)
                | Scalar::Datetime(_)
                | Scalar::Timestamp(_)
                | Scalar::Duration(_) => false,
            },
            Ok(Event::Key(key)) => std::str::from_utf8(key).is_ok(),
            Ok(Event::BeginObject(_) | Event::EndObject | Event::BeginArray(_) | Event::EndArray) => true,
            Err(_) => false,
        })
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How many bytes of `data` the value of this type takes. Containers are taken at their word, within `data`.
fn extent(tp: u8, data: &[u8]) -> Result<usize, DecodeError> {
    let len = match tp {
        tp::OBJECT | tp::ARRAY => {
            let total = u32_at(data, 4)? as usize;
            if total < HEADER {
                return Err(DecodeError::Json("a container smaller than its header"));
            }
            total
        }
        tp::LITERAL => 1,
        tp::INT | tp::UINT | tp::DOUBLE | tp::DATE | tp::DATETIME | tp::TIMESTAMP => 8,
        tp::DURATION => 12,
        tp::STRING => sized(data, 0)?,
        tp::OPAQUE => sized(data, 1)?,
        other => return Err(DecodeError::JsonType(other)),
    };
    if len > data.len() { Err(DecodeError::Truncated("JSON")) } else { Ok(len) }
}

/// Length of `skip` bytes, a length and that many bytes.
fn sized(data: &[u8], skip: usize) -> Result<usize, DecodeError> {
    let (len, width) = varint::uvarint(data.get(skip..).ok_or(DecodeError::Truncated("JSON"))?)?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    Ok(len.saturating_add(width + skip))
}

fn u32_at(data: &[u8], at: usize) -> Result<u32, DecodeError> {
    let bytes = data.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or(DecodeError::Truncated("JSON"))?;
    Ok(u32::from_le_bytes(bytes))
}

fn u16_at(data: &[u8], at: usize) -> Result<u16, DecodeError> {
    let bytes = data.get(at..at + 2).and_then(|b| b.try_into().ok()).ok_or(DecodeError::Truncated("JSON"))?;
    Ok(u16::from_le_bytes(bytes))
}

fn u64_at(data: &[u8], at: usize) -> Result<u64, DecodeError> {
    let bytes = data.get(at..at + 8).and_then(|b| b.try_into().ok()).ok_or(DecodeError::Truncated("JSON"))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Bytes {
        let text: String = text.split_whitespace().collect();
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn vectors() {
        let cases = [
            (
                r#"{"a": 1, "b": [true, "x"]}"#,
                "01 02000000 3c000000 1e0000000100 1f0000000100 0920000000 0328000000 6162 0100000000000000 \
                 02000000 14000000 0401000000 0c12000000 0178",
            ),
            ("1.5", "0b000000000000f83f"),
            ("null", "0400"),
            (r#""hi""#, "0c026869"),
        ];
        for (text, bytes) in cases {
            let bytes = hex(bytes);
            let json = Json::parse(text).unwrap();
            let mut out = Vec::new();
            json.encode(&mut out);
            assert_eq!(out, bytes, "{text}");
            assert_eq!(Json::decode(&bytes, 0), Ok((json, bytes.len())));
            assert_eq!(Json::decode(&bytes, 0).unwrap().0.to_string(), text);
        }
    }

    #[test]
    fn refuses_overlap() {
        // Two entries of an array that point at the same string.
        let shared = hex("03 02000000 14000000 0c12000000 0c12000000 0178");
        assert_eq!(Json::decode(&shared, 0), Err(DecodeError::Json("parts of a container overlap")));
        let twice = hex("03 02000000 16000000 0c12000000 0c14000000 0178 0179");
        assert_eq!(Json::decode(&twice, 0).unwrap().0.to_string(), r#"["x", "y"]"#);
    }

    #[test]
    fn refuses() {
        for (bytes, error) in [
            ("", DecodeError::Truncated("JSON")),
            ("05", DecodeError::JsonType(5)),
            ("0403", DecodeError::Json("an unknown literal")),
            ("0c0561", DecodeError::Truncated("JSON")),
            ("01 00000000 07000000", DecodeError::Json("a container smaller than its header")),
            ("03 ffffffff 08000000", DecodeError::Json("a container smaller than its entries")),
            ("03 01000000 0d000000 0c0e000000", DecodeError::Json("an offset outside its container")),
            ("03 01000000 0d000000 0c08000000", DecodeError::Json("parts of a container overlap")),
        ] {
            assert_eq!(Json::decode(&hex(bytes), 0), Err(error), "{bytes}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let levels = 100_000u32;
        let mut bytes = vec![tp::ARRAY];
        for inner in (0..levels).rev() {
            bytes.extend_from_slice(&u32::from(inner > 0).to_le_bytes());
            bytes.extend_from_slice(&(8 + 13 * inner).to_le_bytes());
            if inner > 0 {
                bytes.push(tp::ARRAY);
                bytes.extend_from_slice(&13u32.to_le_bytes());
            }
        }
        let (json, _) = Json::decode(&bytes.into(), 0).unwrap();
        let text = json.to_string();
        assert_eq!(text.len(), 2 * levels as usize);
        assert!(text.starts_with("[[[") && text.ends_with("]]]"));
    }

    #[test]
    fn lossless() {
        for (text, lossless) in
            [("1", true), ("1.5", true), ("1.0", false), ("1e30", true), ("{\"a\": [-0.0]}", false)]
        {
            assert_eq!(Json::parse(text).unwrap().text_is_lossless(), lossless, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(data: Vec<u8>, tp in prop::sample::select(vec![1u8, 3, 4, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18])) {
            let mut bytes = vec![tp];
            bytes.extend_from_slice(&data);
            let bytes = Bytes::from(bytes);
            if let Ok((json, len)) = Json::decode(&bytes, 0) {
                let mut out = Vec::new();
                json.encode(&mut out);
                prop_assert_eq!(&out, &bytes[..len]);
                prop_assert!(json.to_string().len() <= 64 + 8 * len);
            }
        }
    }
}
