//! Row format v2, in which TiKV holds rows (TiDB `util/rowcodec`). Binlogs never do; needed to read or stand in for TiKV.
//!
//! ```text
//! 80 | flags | count of values u16 | count of NULLs u16 | ids of values | ids of NULLs | end offsets | data | [checksum]
//! ```
//! Little endian; ids ascending. Large rows (an id over 255, or more than 65535 bytes of data) have four-byte ids and
//! offsets instead of one- and two-byte ones.

use bytes::Bytes;

use crate::{
    DecodeError,
    datum::{float, read_float},
    decimal::Decimal,
    json::Json,
    model::{FieldType, flag, tp},
    time::{Duration, Time},
    value::{Value, ValueError},
};

/// First byte of every row in this format.
pub const VERSION: u8 = 0x80;
const LARGE: u8 = 1;
const CHECKSUM: u8 = 2;

/// A row, its values not yet typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Column id and bytes, by ascending id.
    pub values: Vec<(u32, Bytes)>,
    /// Ids of columns that are NULL, ascending.
    pub nulls: Vec<u32>,
    /// The checksum, carried but not verified: what it covers depends on TiDB's version.
    pub checksum: Option<Checksum>,
}

/// The checksum behind a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Bits 0 to 2: version. Bit 3: a second number follows.
    pub header: u8,
    /// CRC-32.
    pub first: u32,
    /// The one by the definition before a column type change.
    pub second: Option<u32>,
}

impl Row {
    /// Reads a row.
    pub fn decode(data: &Bytes) -> Result<Self, DecodeError> {
        let &[version, flags, v0, v1, n0, n1, ..] = &data[..] else {
            return Err(DecodeError::Truncated("a row"));
        };
        if version != VERSION {
            return Err(DecodeError::Malformed("row: not in format 2"));
        }
        let large = flags & LARGE != 0;
        let (id_width, offset_width) = if large { (4, 4) } else { (1, 2) };
        let count = usize::from(u16::from_le_bytes([v0, v1]));
        let null_count = usize::from(u16::from_le_bytes([n0, n1]));
        let ids_at = 6;
        let offsets_at = ids_at + (count + null_count) * id_width;
        let data_at = offsets_at + count * offset_width;
        if data_at > data.len() {
            return Err(DecodeError::Truncated("a row"));
        }
        let number = |at: usize, width: usize| match data[at..at + width] {
            [a] => u32::from(a),
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        };
        let id = |i: usize| number(ids_at + i * id_width, id_width);
        let mut start = data_at;
        let mut values = Vec::with_capacity(count);
        for i in 0..count {
            let end = data_at + number(offsets_at + i * offset_width, offset_width) as usize;
            if end < start || end > data.len() {
                return Err(DecodeError::Malformed("row: offsets out of order"));
            }
            values.push((id(i), data.slice(start..end)));
            start = end;
        }
        let nulls: Vec<u32> = (count..count + null_count).map(id).collect();
        if !values.is_sorted_by(|a, b| a.0 < b.0) || !nulls.is_sorted_by(|a, b| a < b) {
            return Err(DecodeError::Malformed("row: ids out of order"));
        }
        let rest = &data[start..];
        let checksum = match (flags & CHECKSUM != 0, rest) {
            (false, []) => None,
            (true, &[header, a, b, c, d]) if header & 8 == 0 => {
                Some(Checksum { header, first: u32::from_le_bytes([a, b, c, d]), second: None })
            }
            (true, &[header, a, b, c, d, e, f, g, h]) if header & 8 != 0 => Some(Checksum {
                header,
                first: u32::from_le_bytes([a, b, c, d]),
                second: Some(u32::from_le_bytes([e, f, g, h])),
            }),
            (true, _) => return Err(DecodeError::Malformed("row: checksum")),
            (false, rest) => return Err(DecodeError::Trailing(rest.len())),
        };
        Ok(Self { values, nulls, checksum })
    }

    /// Writes the row; ids must be ascending and at most 65535 of each kind, as decoded rows and [`Row::new`] have them.
    pub fn encode(&self) -> Vec<u8> {
        let data_len: usize = self.values.iter().map(|(_, v)| v.len()).sum();
        let max_id = self.values.last().map(|(id, _)| *id).max(self.nulls.last().copied()).unwrap_or(0);
        let large = max_id > 255 || data_len > 65535;
        let flags = (u8::from(large) * LARGE) | (u8::from(self.checksum.is_some()) * CHECKSUM);
        let mut out = vec![VERSION, flags];
        out.extend_from_slice(&(self.values.len() as u16).to_le_bytes());
        out.extend_from_slice(&(self.nulls.len() as u16).to_le_bytes());
        for id in self.values.iter().map(|(id, _)| id).chain(&self.nulls) {
            if large { out.extend_from_slice(&id.to_le_bytes()) } else { out.push(*id as u8) }
        }
        let mut end = 0u32;
        for (_, value) in &self.values {
            end += value.len() as u32;
            if large {
                out.extend_from_slice(&end.to_le_bytes());
            } else {
                out.extend_from_slice(&(end as u16).to_le_bytes());
            }
        }
        for (_, value) in &self.values {
            out.extend_from_slice(value);
        }
        if let Some(Checksum { header, first, second }) = self.checksum {
            out.push(header);
            out.extend_from_slice(&first.to_le_bytes());
            if let Some(second) = second {
                out.extend_from_slice(&second.to_le_bytes());
            }
        }
        out
    }

    /// From typed values; NULLs among them go to the NULL ids.
    pub fn new(columns: &[(u32, Value)]) -> Self {
        let mut row = Self { values: Vec::new(), nulls: Vec::new(), checksum: None };
        for (id, value) in columns {
            match encode_value(value) {
                Some(bytes) => row.values.push((*id, bytes)),
                None => row.nulls.push(*id),
            }
        }
        row.values.sort_by_key(|(id, _)| *id);
        row.nulls.sort_unstable();
        row
    }

    /// The value of a column of this type; None if the row lacks it.
    pub fn get(&self, id: u32, field: &FieldType) -> Result<Option<Value>, ValueError> {
        if self.nulls.contains(&id) {
            return Ok(Some(Value::Null));
        }
        match self.values.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(i) => decode_value(&self.values[i].1, field).map(Some),
            Err(_) => Ok(None),
        }
    }
}

fn encode_value(value: &Value) -> Option<Bytes> {
    let mut out = Vec::new();
    match value {
        Value::Null => return None,
        Value::Int(v) => put_int(&mut out, *v),
        Value::Year(v) => put_int(&mut out, i64::from(*v)),
        Value::Duration(v) => put_int(&mut out, v.nanos),
        Value::Uint(v) | Value::Enum(v) | Value::Set(v) | Value::Bit(v) => put_uint(&mut out, *v),
        Value::Date(v) | Value::Datetime(v) | Value::Timestamp(v) => put_uint(&mut out, v.packed()),
        Value::Float(v) => out.extend_from_slice(&float(f64::from(*v))),
        Value::Double(v) => out.extend_from_slice(&float(*v)),
        Value::Decimal(v) => v.encode(&mut out),
        Value::Bytes(v) | Value::Text(v) => return Some(v.clone()),
        Value::Json(v) => v.encode(&mut out),
    }
    Some(out.into())
}

fn put_int(out: &mut Vec<u8>, v: i64) {
    if let Ok(v) = i8::try_from(v) {
        out.extend_from_slice(&v.to_le_bytes());
    } else if let Ok(v) = i16::try_from(v) {
        out.extend_from_slice(&v.to_le_bytes());
    } else if let Ok(v) = i32::try_from(v) {
        out.extend_from_slice(&v.to_le_bytes());
    } else {
        out.extend_from_slice(&v.to_le_bytes());
    }
}

fn put_uint(out: &mut Vec<u8>, v: u64) {
    if let Ok(v) = u8::try_from(v) {
        out.push(v);
    } else if let Ok(v) = u16::try_from(v) {
        out.extend_from_slice(&v.to_le_bytes());
    } else if let Ok(v) = u32::try_from(v) {
        out.extend_from_slice(&v.to_le_bytes());
    } else {
        out.extend_from_slice(&v.to_le_bytes());
    }
}

fn int(data: &[u8]) -> Result<i64, DecodeError> {
    Ok(match *data {
        [a] => i64::from(a as i8),
        [a, b] => i64::from(i16::from_le_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => return Err(DecodeError::Malformed("integer width")),
    })
}

fn uint(data: &[u8]) -> Result<u64, DecodeError> {
    Ok(match *data {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => return Err(DecodeError::Malformed("integer width")),
    })
}

fn whole<T>((value, len): (T, usize), data: &Bytes) -> Result<T, DecodeError> {
    if len == data.len() { Ok(value) } else { Err(DecodeError::Trailing(data.len() - len)) }
}

fn decode_value(data: &Bytes, field: &FieldType) -> Result<Value, ValueError> {
    let double = || {
        let v = data[..].try_into().map(read_float).ok().filter(|v| v.is_finite());
        v.ok_or(DecodeError::Malformed("floating-point number"))
    };
    Ok(match field.tp {
        _ if field.array => Value::Json(whole(Json::decode(data, 0)?, data)?),
        tp::JSON => Value::Json(whole(Json::decode(data, 0)?, data)?),
        tp::TINY | tp::SHORT | tp::INT24 | tp::LONG | tp::LONGLONG if field.has(flag::UNSIGNED) => {
            Value::Uint(uint(data)?)
        }
        tp::TINY | tp::SHORT | tp::INT24 | tp::LONG | tp::LONGLONG => Value::Int(int(data)?),
        tp::YEAR => Value::from_datum(crate::datum::Datum::Int(int(data)?), field)?,
        tp::DURATION => Value::Duration(Duration::new(int(data)?, field.fsp())),
        tp::FLOAT => Value::from_datum(crate::datum::Datum::Float(double()?), field)?,
        tp::DOUBLE => Value::Double(double()?),
        tp::NEW_DECIMAL => Value::Decimal(whole(Decimal::decode(data)?, data)?),
        tp::DATE | tp::NEW_DATE => Value::Date(Time::from_packed(uint(data)?, 0)?),
        tp::DATETIME => Value::Datetime(Time::from_packed(uint(data)?, field.fsp())?),
        tp::TIMESTAMP => Value::Timestamp(Time::from_packed(uint(data)?, field.fsp())?),
        tp::ENUM => Value::Enum(uint(data)?),
        tp::SET => Value::Set(uint(data)?),
        tp::BIT => Value::Bit(uint(data)?),
        _ if field.is_binary_string() => Value::Bytes(data.clone()),
        _ if field.is_text() => Value::Text(data.clone()),
        other => return Err(ValueError::UnsupportedType(field.base_name(), other)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Bytes {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    fn field(tp: u8, decimal: i64) -> FieldType {
        FieldType { tp, decimal, charset: "utf8mb4".into(), ..FieldType::default() }
    }

    #[test]
    fn vector() {
        let timestamp = Time::parse("2023-05-17 10:20:30.123", 3).unwrap();
        let columns = [
            (2, Value::Text(Bytes::from_static(b"bob"))),
            (3, Value::Decimal(Decimal::parse("12.50", 10, 2).unwrap())),
            (4, Value::Timestamp(timestamp)),
            (5, Value::Set(5)),
            (6, Value::Null),
        ];
        let mut row = Row::new(&columns);
        let plain = hex("800004000100020304050603000a0012001300626f620a028000000c3278e0011ea522b01905");
        assert_eq!(row.encode(), plain);
        assert_eq!(Row::decode(&plain), Ok(row.clone()));
        let fields = [field(15, -1), field(246, 2), field(7, 3), field(248, -1), field(245, -1)];
        for ((id, value), field) in columns.iter().zip(&fields) {
            assert_eq!(row.get(*id, field), Ok(Some(value.clone())));
        }
        assert_eq!(row.get(7, &fields[0]), Ok(None));
        row.checksum = Some(Checksum { header: 0, first: 1, second: None });
        let with_checksum =
            hex("800204000100020304050603000a0012001300626f620a028000000c3278e0011ea522b019050001000000");
        assert_eq!(row.encode(), with_checksum);
        assert_eq!(Row::decode(&with_checksum), Ok(row));
    }

    #[test]
    fn large() {
        let text = |len| Value::Text(Bytes::from(vec![b'x'; len]));
        let cases = [
            (vec![(1, Value::Int(-1)), (255, text(65_534))], 0),
            (vec![(1, Value::Int(-1)), (255, text(65_535))], LARGE),
            (vec![(1, Value::Int(-1)), (256, text(1))], LARGE),
            (vec![(1, Value::Int(-1)), (256, Value::Null)], LARGE),
        ];
        for (columns, flags) in cases {
            let row = Row::new(&columns);
            let bytes = Bytes::from(row.encode());
            assert_eq!(bytes[1], flags);
            assert_eq!(Row::decode(&bytes), Ok(row));
        }
    }

    proptest! {
        #[test]
        fn any_bytes(mut data: Vec<u8>, flags in 0u8..4) {
            if let [first, second, ..] = &mut data[..] {
                (*first, *second) = (VERSION, flags);
            }
            let data = Bytes::from(data);
            if let Ok(row) = Row::decode(&data) {
                // A row that need not be large is written small.
                prop_assert_eq!(Row::decode(&row.encode().into()), Ok(row.clone()));
                for (id, _) in &row.values {
                    for tp in [1, 4, 7, 11, 13, 15, 16, 245, 246, 247] {
                        let _ = row.get(*id, &field(tp, 2));
                    }
                }
            }
        }

        #[test]
        fn integers(v: i64, u: u64) {
            let mut out = Vec::new();
            put_int(&mut out, v);
            prop_assert_eq!(int(&out), Ok(v));
            let mut out = Vec::new();
            put_uint(&mut out, u);
            prop_assert_eq!(uint(&out), Ok(u));
        }
    }
}
