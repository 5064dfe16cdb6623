//! Datums: one flag byte, then a value, as rows and keys hold them (TiDB `util/codec`).
//!
//! Rows use the *value form* (variable-length integers, compact bytes), keys the *key form* (fixed width, memcomparable).
//! The reader takes both everywhere.

use bytes::Bytes;

use crate::{DecodeError, decimal::Decimal, json::Json, memcomparable, varint};

const NULL: u8 = 0x00;
const BYTES: u8 = 0x01;
const COMPACT_BYTES: u8 = 0x02;
const INT: u8 = 0x03;
const UINT: u8 = 0x04;
const FLOAT: u8 = 0x05;
const DECIMAL: u8 = 0x06;
const DURATION: u8 = 0x07;
const VARINT: u8 = 0x08;
const UVARINT: u8 = 0x09;
const JSON: u8 = 0x0a;
const SIGN: u64 = 1 << 63;

/// A value with nothing but its own kind known.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    /// NULL.
    Null,
    /// A signed integer; also YEAR, and TIME in rows.
    Int(i64),
    /// An unsigned integer; also packed dates, ENUM, SET, BIT.
    Uint(u64),
    /// FLOAT (widened) and DOUBLE.
    Float(f64),
    /// DECIMAL.
    Decimal(Decimal),
    /// Strings, binary or not.
    Bytes(Bytes),
    /// TIME in handles and keys, in nanoseconds.
    Duration(i64),
    /// JSON.
    Json(Json),
}

impl Datum {
    /// The kind in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Int(_) => "signed integer",
            Self::Uint(_) => "unsigned integer",
            Self::Float(_) => "floating-point",
            Self::Decimal(_) => "decimal",
            Self::Bytes(_) => "byte string",
            Self::Duration(_) => "duration",
            Self::Json(_) => "JSON",
        }
    }

    /// Appends the value form, as rows hold it.
    pub fn encode_value(&self, out: &mut Vec<u8>) {
        match self {
            Self::Int(v) => {
                out.push(VARINT);
                varint::put_varint(out, *v);
            }
            Self::Uint(v) => {
                out.push(UVARINT);
                varint::put_uvarint(out, *v);
            }
            Self::Bytes(v) => {
                out.push(COMPACT_BYTES);
                varint::put_varint(out, v.len() as i64);
                out.extend_from_slice(v);
            }
            _ => self.encode_same(out),
        }
    }

    /// Appends the key form, whose bytes sort like the values. (JSON, which keys do not hold, is as in the value form.)
    pub fn encode_key(&self, out: &mut Vec<u8>) {
        match self {
            Self::Int(v) => {
                out.push(INT);
                out.extend_from_slice(&int8(*v));
            }
            Self::Uint(v) => {
                out.push(UINT);
                out.extend_from_slice(&v.to_be_bytes());
            }
            Self::Bytes(v) => {
                out.push(BYTES);
                memcomparable::encode(out, v);
            }
            _ => self.encode_same(out),
        }
    }

    /// What both forms have in common.
    fn encode_same(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null | Self::Int(_) | Self::Uint(_) | Self::Bytes(_) => out.push(NULL),
            Self::Float(v) => {
                out.push(FLOAT);
                out.extend_from_slice(&float(*v));
            }
            Self::Decimal(v) => {
                out.push(DECIMAL);
                v.encode(out);
            }
            Self::Duration(v) => {
                out.push(DURATION);
                out.extend_from_slice(&int8(*v));
            }
            Self::Json(v) => {
                out.push(JSON);
                v.encode(out);
            }
        }
    }
}

/// Eight big-endian bytes that sort like the signed number: the sign bit is flipped.
pub fn int8(v: i64) -> [u8; 8] {
    (v as u64 ^ SIGN).to_be_bytes()
}

/// Reads what [`int8`] writes.
pub fn read_int8(bytes: [u8; 8]) -> i64 {
    (u64::from_be_bytes(bytes) ^ SIGN) as i64
}

/// Eight big-endian bytes that sort like the double. Negative zero becomes zero when read back.
pub fn float(v: f64) -> [u8; 8] {
    let bits = v.to_bits();
    (if v >= 0.0 { bits | SIGN } else { !bits }).to_be_bytes()
}

/// Reads what [`float`] writes.
pub fn read_float(bytes: [u8; 8]) -> f64 {
    let bits = u64::from_be_bytes(bytes);
    f64::from_bits(if bits & SIGN == 0 { !bits } else { bits & !SIGN })
}

/// Reads datums one after the other; strings and JSON share the underlying buffer.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    data: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the start of `data`.
    pub fn new(data: &'a Bytes) -> Self {
        Self { data, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The bytes not yet read.
    pub fn rest(&self) -> &'a [u8] {
        &self.data[self.at..]
    }

    /// True at the end.
    pub fn is_empty(&self) -> bool {
        self.at >= self.data.len()
    }

    fn fixed(&mut self, what: &'static str) -> Result<[u8; 8], DecodeError> {
        let bytes = self.rest().first_chunk().ok_or(DecodeError::Truncated(what))?;
        self.at += 8;
        Ok(*bytes)
    }

    fn varint(&mut self) -> Result<i64, DecodeError> {
        let (v, len) = varint::varint(self.rest())?;
        self.at += len;
        Ok(v)
    }

    /// The next datum. On an error the position is somewhere inside it.
    pub fn datum(&mut self) -> Result<Datum, DecodeError> {
        let flag = *self.rest().first().ok_or(DecodeError::Truncated("a datum"))?;
        self.at += 1;
        Ok(match flag {
            NULL => Datum::Null,
            VARINT => Datum::Int(self.varint()?),
            UVARINT => {
                let (v, len) = varint::uvarint(self.rest())?;
                self.at += len;
                Datum::Uint(v)
            }
            COMPACT_BYTES => {
                let len = self.varint()?;
                let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
                let end = end.filter(|&end| end <= self.data.len()).ok_or(DecodeError::Length(len))?;
                let bytes = self.data.slice(self.at..end);
                self.at = end;
                Datum::Bytes(bytes)
            }
            FLOAT => {
                let v = read_float(self.fixed("a floating-point number")?);
                // MySQL has no infinities and no NaN.
                if !v.is_finite() {
                    return Err(DecodeError::Malformed("floating-point number: not finite"));
                }
                Datum::Float(v)
            }
            DECIMAL => {
                let (v, len) = Decimal::decode(self.rest())?;
                self.at += len;
                Datum::Decimal(v)
            }
            JSON => {
                let (v, len) = Json::decode(self.data, self.at)?;
                self.at += len;
                Datum::Json(v)
            }
            INT => Datum::Int(read_int8(self.fixed("an integer")?)),
            UINT => Datum::Uint(u64::from_be_bytes(self.fixed("an integer")?)),
            DURATION => Datum::Duration(read_int8(self.fixed("a duration")?)),
            BYTES => {
                let (v, len) = memcomparable::decode(self.rest())?;
                self.at += len;
                Datum::Bytes(v.into())
            }
            other => return Err(DecodeError::UnknownFlag(other)),
        })
    }

    /// The id in front of a column's datum.
    pub(crate) fn column_id(&mut self) -> Result<i64, DecodeError> {
        match self.datum()? {
            Datum::Int(id) => Ok(id),
            _ => Err(DecodeError::Malformed("column id")),
        }
    }
}

/// All datums of `data`.
pub fn decode_all(data: &Bytes) -> Result<Vec<Datum>, DecodeError> {
    let mut reader = Reader::new(data);
    let mut datums = Vec::new();
    while !reader.is_empty() {
        datums.push(reader.datum()?);
    }
    Ok(datums)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    fn value(datum: &Datum) -> Vec<u8> {
        let mut out = Vec::new();
        datum.encode_value(&mut out);
        out
    }

    fn key(datum: &Datum) -> Vec<u8> {
        let mut out = Vec::new();
        datum.encode_key(&mut out);
        out
    }

    #[test]
    fn vectors() {
        assert_eq!(int8(1), [0x80, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(int8(-1), [0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(float(1.0), [0xbf, 0xf0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(float(-1.0), [0x40, 0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        // FLOAT 3.14
        assert_eq!(value(&Datum::Float(f64::from(f32::from_bits(0x4048_f5c3)))), hex("05c0091eb860000000"));
        // 2023-05-17 10:20:30.123456, 2024-02-29
        assert_eq!(value(&Datum::Uint(0x19b0_22a5_1e01_e240)), hex("09c0c487f0d1d488d819"));
        assert_eq!(key(&Datum::Uint(0x19b0_22a5_1e01_e240)), hex("0419b022a51e01e240"));
        assert_eq!(value(&Datum::Uint(0x19b2_ba00_0000_0000)), hex("098080808080c0aed919"));
        // TIME 10:11:12.5
        assert_eq!(value(&Datum::Int(36_672_500_000_000)), hex("088094afb5cfd610"));
        assert_eq!(value(&Datum::Duration(36_672_500_000_000)), hex("078000215a7b55e500"));
        assert_eq!(value(&Datum::Int(-36_672_500_000_000)), hex("08ff93afb5cfd610"));
        // YEAR 2023; BIT b'1010100101'
        assert_eq!(value(&Datum::Int(2023)), hex("08ce1f"));
        assert_eq!(value(&Datum::Uint(0b10_1010_0101)), hex("09a505"));
        assert_eq!(value(&Datum::Bytes(Bytes::from_static(b"bob"))), hex("0206626f62"));
        assert_eq!(key(&Datum::Bytes(Bytes::from_static(b"bob"))), hex("01626f620000000000fa"));
        assert_eq!(value(&Datum::Json(Json::parse("1.5").unwrap())), hex("0a0b000000000000f83f"));
        assert_eq!(value(&Datum::Null), [0]);
    }

    #[test]
    fn refuses() {
        let read = |bytes: &str| Reader::new(&Bytes::from(hex(bytes))).datum();
        assert_eq!(read(""), Err(DecodeError::Truncated("a datum")));
        assert_eq!(read("0b"), Err(DecodeError::UnknownFlag(0x0b)));
        assert_eq!(read("fa"), Err(DecodeError::UnknownFlag(0xfa)));
        assert_eq!(read("020661"), Err(DecodeError::Length(3)));
        assert_eq!(read("0201"), Err(DecodeError::Length(-1)));
        assert_eq!(read("0300"), Err(DecodeError::Truncated("an integer")));
        // NaN; infinity.
        let not_finite = Err(DecodeError::Malformed("floating-point number: not finite"));
        assert_eq!(read("05fff8000000000000"), not_finite);
        assert_eq!(read("05fff0000000000000"), not_finite);
        assert_eq!(read("01"), Err(DecodeError::Truncated("a memcomparable string")));
    }

    #[test]
    fn negative_zero_loses_its_sign() {
        assert!(read_float(float(-0.0)).is_sign_positive());
    }

    fn datum() -> impl Strategy<Value = Datum> {
        prop_oneof![
            Just(Datum::Null),
            any::<i64>().prop_map(Datum::Int),
            any::<u64>().prop_map(Datum::Uint),
            any::<f64>().prop_filter("sign of zero", |v| *v != 0.0 && v.is_finite()).prop_map(Datum::Float),
            (any::<i64>(), 0u8..=20).prop_map(|(v, frac)| {
                Datum::Decimal(Decimal::parse(&format!("{v}e-{frac}"), 45, 20).unwrap())
            }),
            any::<Vec<u8>>().prop_map(|v| Datum::Bytes(v.into())),
            any::<i64>().prop_map(Datum::Duration),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(datums in prop::collection::vec(datum(), 0..10)) {
            for encode in [Datum::encode_value, Datum::encode_key] {
                let mut out = Vec::new();
                datums.iter().for_each(|d| encode(d, &mut out));
                prop_assert_eq!(&decode_all(&out.into()).unwrap(), &datums);
            }
        }

        #[test]
        fn keys_sort_like_values(a: i64, b: i64, x: f64, y: f64) {
            prop_assert_eq!(a.cmp(&b), int8(a).cmp(&int8(b)));
            if let Some(order) = x.partial_cmp(&y) {
                prop_assert_eq!(order, float(x).cmp(&float(y)));
            }
        }

        #[test]
        fn any_bytes(data: Vec<u8>) {
            // Each datum takes at least a byte.
            let data = Bytes::from(data);
            if let Ok(datums) = decode_all(&data) {
                prop_assert!(datums.len() <= data.len());
            }
        }
    }
}
