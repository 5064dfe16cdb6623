//! Making documents, from text or parts, laid out as TiDB lays them out.

use bytes::Bytes;
use serde_json::Value;

use super::{HEADER, Json, KEY_ENTRY, VALUE_ENTRY, tp};
use crate::varint;

/// Why a document cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildJsonError {
    /// Not JSON, or nested more than 127 levels.
    #[error("not a JSON text: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A key of more than 65535 bytes.
    #[error("a JSON key of {0} bytes is longer than 65535")]
    KeyTooLong(usize),
    /// A container of 4 GiB or more.
    #[error("a JSON document of 4 GiB or more")]
    TooLarge,
}

impl Json {
    /// From JSON text, as TiDB reads it: integral numbers become signed or unsigned 64-bit integers, all others doubles;
    /// of equal keys the last counts.
    pub fn parse(text: &str) -> Result<Self, BuildJsonError> {
        Self::from_value(&serde_json::from_str(text)?)
    }

    /// From a parsed document.
    pub fn from_value(value: &Value) -> Result<Self, BuildJsonError> {
        let mut out = Vec::new();
        let tp = put(&mut out, value)?;
        Ok(Self { tp, value: Bytes::from(out) })
    }
}

/// Appends a value and returns its type.
fn put(out: &mut Vec<u8>, value: &Value) -> Result<u8, BuildJsonError> {
    Ok(match value {
        Value::Null => literal(out, 0),
        Value::Bool(true) => literal(out, 1),
        Value::Bool(false) => literal(out, 2),
        Value::Number(number) => {
            let (tp, bytes) = if let Some(v) = number.as_i64() {
                (tp::INT, v.to_le_bytes())
            } else if let Some(v) = number.as_u64() {
                (tp::UINT, v.to_le_bytes())
            } else {
                (tp::DOUBLE, number.as_f64().unwrap_or_default().to_le_bytes())
            };
            out.extend_from_slice(&bytes);
            tp
        }
        Value::String(text) => {
            varint::put_uvarint(out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
            tp::STRING
        }
        Value::Array(items) => {
            let start = begin(out, items.len(), VALUE_ENTRY)?;
            fill(out, start, start + HEADER, items.iter())?;
            tp::ARRAY
        }
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            let start = begin(out, members.len(), KEY_ENTRY + VALUE_ENTRY)?;
            for (i, (key, _)) in members.iter().enumerate() {
                let entry = start + HEADER + i * KEY_ENTRY;
                let len = u16::try_from(key.len()).map_err(|_| BuildJsonError::KeyTooLong(key.len()))?;
                let offset = offset(out, start)?;
                out[entry..entry + 4].copy_from_slice(&offset);
                out[entry + 4..entry + 6].copy_from_slice(&len.to_le_bytes());
                out.extend_from_slice(key.as_bytes());
            }
            let entries = start + HEADER + members.len() * KEY_ENTRY;
            fill(out, start, entries, members.iter().map(|(_, value)| *value))?;
            tp::OBJECT
        }
    })
}

fn literal(out: &mut Vec<u8>, code: u8) -> u8 {
    out.push(code);
    tp::LITERAL
}

/// Appends header and empty entries; returns where the container starts.
fn begin(out: &mut Vec<u8>, count: usize, entry: usize) -> Result<usize, BuildJsonError> {
    let start = out.len();
    out.extend_from_slice(&u32::try_from(count).map_err(|_| BuildJsonError::TooLarge)?.to_le_bytes());
    out.resize(start + HEADER + count * entry, 0);
    Ok(start)
}

/// Appends the values, fills in their entries and the total size.
fn fill<'a>(
    out: &mut Vec<u8>,
    start: usize,
    entries: usize,
    values: impl Iterator<Item = &'a Value>,
) -> Result<(), BuildJsonError> {
    for (i, value) in values.enumerate() {
        let entry = entries + i * VALUE_ENTRY;
        let at = out.len();
        let offset = offset(out, start)?;
        let tp = put(out, value)?;
        out[entry] = tp;
        if tp == tp::LITERAL {
            out[entry + 1] = out[at];
            out.truncate(at);
        } else {
            out[entry + 1..entry + VALUE_ENTRY].copy_from_slice(&offset);
        }
    }
    let total = offset(out, start)?;
    out[start + 4..start + HEADER].copy_from_slice(&total);
    Ok(())
}

/// The end of `out`, relative to the container's start.
fn offset(out: &[u8], start: usize) -> Result<[u8; 4], BuildJsonError> {
    u32::try_from(out.len() - start).map(u32::to_le_bytes).map_err(|_| BuildJsonError::TooLarge)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            // Fractions only: an integral double prints as an integer.
            (-1e9f64..1e9).prop_filter("integral", |v| v.fract() != 0.0).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..8)
                    .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn text_reads_back(value in document()) {
            let json = Json::from_value(&value).unwrap();
            let checked = Json::new(json.type_byte(), json.value_bytes().clone()).unwrap();
            prop_assert_eq!(&checked, &json);
            prop_assert_eq!(serde_json::from_str::<Value>(&json.to_string()).unwrap(), value);
            prop_assert!(json.text_is_lossless());
            prop_assert_eq!(Json::parse(&json.to_string()).unwrap(), json);
        }

        #[test]
        fn mutated_documents_do_not_panic(value in document(), at: prop::sample::Index, byte: u8) {
            let json = Json::from_value(&value).unwrap();
            let mut bytes = json.value_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(mutated) = Json::new(json.type_byte(), bytes.into()) {
                let _ = mutated.to_string();
            }
        }
    }

    #[test]
    fn key_too_long() {
        let value = json!({ "k".repeat(65536): 1 });
        assert!(matches!(Json::from_value(&value), Err(BuildJsonError::KeyTooLong(65536))));
    }
}
