//! Column values, typed as SQL types them, and their place in a column of a certain type.

use std::fmt::{self, Write};

use bytes::Bytes;

use crate::{
    datum::Datum,
    decimal::Decimal,
    json::Json,
    model::{FieldType, tp},
    text,
    time::{Duration, Time},
};

/// The value of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// FLOAT.
    Float(f32),
    /// DOUBLE.
    Double(f64),
    /// DECIMAL.
    Decimal(Decimal),
    /// A binary string: BINARY, VARBINARY, BLOB.
    Bytes(Bytes),
    /// A character string: UTF-8 for most charsets (GBK too), any bytes for latin1.
    Text(Bytes),
    /// DATE.
    Date(Time),
    /// DATETIME, in no zone.
    Datetime(Time),
    /// TIMESTAMP, in UTC.
    Timestamp(Time),
    /// TIME.
    Duration(Duration),
    /// YEAR: 0, or 1901 to 2155.
    Year(u16),
    /// ENUM: elements count from 1; 0 is the empty error value.
    Enum(u64),
    /// SET: bit i stands for element i.
    Set(u64),
    /// BIT.
    Bit(u64),
    /// JSON.
    Json(Json),
}

/// A datum that a column of this type cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The column's type is another.
    #[error("a {found} datum in a column of type {column}")]
    WrongDatum {
        /// The column's type.
        column: String,
        /// What the row holds.
        found: &'static str,
    },
    /// A value out of the type's range.
    #[error("{value} is out of range for {column}")]
    OutOfRange {
        /// The column's type.
        column: String,
        /// The value.
        value: String,
    },
    /// A type this build does not know (geometry, vector).
    #[error("columns of type {0} (number {1}) are not supported")]
    UnsupportedType(&'static str, u8),
    /// A packed date or time that is none.
    #[error(transparent)]
    Decode(#[from] crate::DecodeError),
}

impl Value {
    /// True for NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Reads a datum of a row as a column of this type holds it.
    pub fn from_datum(datum: Datum, field: &FieldType) -> Result<Self, ValueError> {
        use crate::model::flag;
        let unsigned = field.has(flag::UNSIGNED);
        Ok(match (field.tp, datum) {
            (_, Datum::Null) => Self::Null,
            (_, Datum::Json(v)) if field.array || field.tp == tp::JSON => Self::Json(v),
            _ if field.array => return Err(wrong(field, "non-JSON")),
            (tp::TINY | tp::SHORT | tp::INT24 | tp::LONG | tp::LONGLONG, Datum::Int(v)) if !unsigned => {
                Self::Int(v)
            }
            (tp::TINY | tp::SHORT | tp::INT24 | tp::LONG | tp::LONGLONG, Datum::Uint(v)) if unsigned => {
                Self::Uint(v)
            }
            // FLOAT is widened when written, so nothing is lost here.
            (tp::FLOAT, Datum::Float(v)) if (v as f32).is_finite() => Self::Float(v as f32),
            (tp::FLOAT, Datum::Float(v)) => {
                return Err(ValueError::OutOfRange { column: field.sql_type(), value: v.to_string() });
            }
            (tp::DOUBLE, Datum::Float(v)) => Self::Double(v),
            (tp::NEW_DECIMAL, Datum::Decimal(v)) => Self::Decimal(v),
            (
                tp::VARCHAR
                | tp::TINY_BLOB
                | tp::MEDIUM_BLOB
                | tp::LONG_BLOB
                | tp::BLOB
                | tp::VAR_STRING
                | tp::STRING,
                Datum::Bytes(v),
            ) => {
                if field.is_binary_string() {
                    Self::Bytes(v)
                } else {
                    Self::Text(v)
                }
            }
            (tp::DATE | tp::NEW_DATE, Datum::Uint(v)) => Self::Date(Time::from_packed(v, 0)?),
            (tp::DATETIME, Datum::Uint(v)) => Self::Datetime(Time::from_packed(v, field.fsp())?),
            (tp::TIMESTAMP, Datum::Uint(v)) => Self::Timestamp(Time::from_packed(v, field.fsp())?),
            (tp::DURATION, Datum::Int(v) | Datum::Duration(v)) => {
                Self::Duration(Duration::new(v, field.fsp()))
            }
            (tp::YEAR, Datum::Int(v)) => match u16::try_from(v) {
                Ok(year @ (0 | 1901..=2155)) => Self::Year(year),
                _ => return Err(ValueError::OutOfRange { column: field.sql_type(), value: v.to_string() }),
            },
            (tp::ENUM, Datum::Uint(v)) => Self::Enum(v),
            (tp::SET, Datum::Uint(v)) => Self::Set(v),
            (tp::BIT, Datum::Uint(v)) => Self::Bit(v),
            (
                tp::TINY
                | tp::SHORT
                | tp::INT24
                | tp::LONG
                | tp::LONGLONG
                | tp::FLOAT
                | tp::DOUBLE
                | tp::NEW_DECIMAL
                | tp::VARCHAR
                | tp::TINY_BLOB
                | tp::MEDIUM_BLOB
                | tp::LONG_BLOB
                | tp::BLOB
                | tp::VAR_STRING
                | tp::STRING
                | tp::DATE
                | tp::NEW_DATE
                | tp::DATETIME
                | tp::TIMESTAMP
                | tp::DURATION
                | tp::YEAR
                | tp::ENUM
                | tp::SET
                | tp::BIT
                | tp::JSON
                | tp::NULL,
                datum,
            ) => return Err(wrong(field, datum.kind())),
            (other, _) => return Err(ValueError::UnsupportedType(field.base_name(), other)),
        })
    }

    /// The datum that a row holds for it (TIME as a plain integer, as rows have it).
    pub fn to_datum(&self) -> Datum {
        match self {
            Self::Null => Datum::Null,
            Self::Int(v) => Datum::Int(*v),
            Self::Uint(v) | Self::Enum(v) | Self::Set(v) | Self::Bit(v) => Datum::Uint(*v),
            Self::Float(v) => Datum::Float(f64::from(*v)),
            Self::Double(v) => Datum::Float(*v),
            Self::Decimal(v) => Datum::Decimal(*v),
            Self::Bytes(v) | Self::Text(v) => Datum::Bytes(v.clone()),
            Self::Date(v) | Self::Datetime(v) | Self::Timestamp(v) => Datum::Uint(v.packed()),
            Self::Duration(v) => Datum::Int(v.nanos),
            Self::Year(v) => Datum::Int(i64::from(*v)),
            Self::Json(v) => Datum::Json(v.clone()),
        }
    }

    /// The bytes that TiDB's text protocol returns for the value in a column of this type; None for NULL. ENUM and SET
    /// by name, BIT as big-endian bytes, YEAR zero as `0000`; FLOAT by its shortest exact text, where TiDB cuts the
    /// exponent form to six digits.
    pub fn to_text(&self, field: &FieldType) -> Result<Option<Bytes>, ValueError> {
        let out_of_range = || ValueError::OutOfRange { column: field.sql_type(), value: self.to_string() };
        Ok(Some(match self {
            Self::Null => return Ok(None),
            Self::Bytes(v) | Self::Text(v) => v.clone(),
            Self::Year(0) => Bytes::from_static(b"0000"),
            // Zero or out of range: TiDB shows the empty name.
            Self::Enum(v) => Bytes::copy_from_slice(enum_name(field, *v).unwrap_or_default().as_bytes()),
            Self::Set(v) => set_names(field, *v).ok_or_else(out_of_range)?.join(",").into(),
            Self::Bit(v) => {
                let width = (field.length().unwrap_or(64).clamp(1, 64) as usize).div_ceil(8);
                Bytes::copy_from_slice(&v.to_be_bytes()[8 - width..])
            }
            other => other.to_string().into(),
        }))
    }
}

/// The name of an ENUM's element; None for 0 and numbers past the last.
pub fn enum_name(field: &FieldType, index: u64) -> Option<&str> {
    let i = usize::try_from(index.checked_sub(1)?).ok()?;
    field.elems.get(i).map(String::as_str)
}

/// The names of a SET's elements, in order of definition; None if a bit has no element.
pub fn set_names(field: &FieldType, mask: u64) -> Option<Vec<&str>> {
    let known = field.elems.len();
    if known < 64 && mask >> known != 0 {
        return None;
    }
    Some(
        field.elems.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, e)| e.as_str()).collect(),
    )
}

fn wrong(field: &FieldType, found: &'static str) -> ValueError {
    ValueError::WrongDatum { column: field.sql_type(), found }
}

impl fmt::Display for Value {
    /// As TiDB prints it, as far as the value alone tells: ENUM, SET and BIT as numbers, binary strings as hexadecimal,
    /// text that is not UTF-8 with replacement characters. For the exact bytes see [`Value::to_text`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Int(v) => write!(f, "{v}"),
            Self::Uint(v) | Self::Enum(v) | Self::Set(v) | Self::Bit(v) => write!(f, "{v}"),
            Self::Float(v) => text::float(f, *v),
            Self::Double(v) => text::double(f, *v),
            Self::Decimal(v) => write!(f, "{v}"),
            Self::Bytes(v) => {
                f.write_str("0x")?;
                v.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
            Self::Text(v) => v.utf8_chunks().try_for_each(|chunk| {
                f.write_str(chunk.valid())?;
                if chunk.invalid().is_empty() { Ok(()) } else { f.write_char('\u{fffd}') }
            }),
            Self::Date(v) => write!(f, "{}", v.date()),
            Self::Datetime(v) | Self::Timestamp(v) => write!(f, "{v}"),
            Self::Duration(v) => write!(f, "{v}"),
            Self::Year(v) => write!(f, "{v}"),
            Self::Json(v) => write!(f, "{v}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flag;

    fn field(tp: u8) -> FieldType {
        FieldType { tp, ..FieldType::default() }
    }

    #[test]
    fn text_protocol() {
        let elems = FieldType { elems: vec!["a".to_owned(), "b".to_owned()].into(), ..field(tp::SET) };
        let cases = [
            (Value::Null, field(tp::LONG), None),
            (Value::Year(0), field(tp::YEAR), Some(&b"0000"[..])),
            (Value::Year(1999), field(tp::YEAR), Some(b"1999")),
            (Value::Enum(2), elems.clone(), Some(b"b")),
            (Value::Enum(0), elems.clone(), Some(b"")),
            (Value::Set(3), elems.clone(), Some(b"a,b")),
            (Value::Set(0), elems.clone(), Some(b"")),
            (Value::Bit(0x2a5), FieldType { flen: 10, ..field(tp::BIT) }, Some(b"\x02\xa5")),
            (Value::Bit(1), FieldType { flen: 1, ..field(tp::BIT) }, Some(b"\x01")),
            (Value::Bit(u64::MAX), FieldType { flen: 64, ..field(tp::BIT) }, Some(&[0xff; 8])),
            (Value::Float(0.1), field(tp::FLOAT), Some(b"0.1")),
            (Value::Text(Bytes::from_static(b"\xff")), field(tp::VARCHAR), Some(b"\xff")),
        ];
        for (value, field, expected) in cases {
            assert_eq!(value.to_text(&field).unwrap().as_deref(), expected, "{value:?}");
        }
        assert!(matches!(Value::Set(4).to_text(&elems), Err(ValueError::OutOfRange { .. })));
    }

    #[test]
    fn refuses_other_types() {
        assert!(matches!(
            Value::from_datum(Datum::Uint(1), &field(tp::LONG)),
            Err(ValueError::WrongDatum { found: "unsigned integer", .. })
        ));
        assert!(Value::from_datum(Datum::Int(1900), &field(tp::YEAR)).is_err());
        assert!(Value::from_datum(Datum::Float(1e39), &field(tp::FLOAT)).is_err());
        assert_eq!(
            Value::from_datum(Datum::Int(1), &field(225)),
            Err(ValueError::UnsupportedType("unknown", 225))
        );
        let unsigned = FieldType { flag: flag::UNSIGNED, ..field(tp::LONGLONG) };
        assert_eq!(Value::from_datum(Datum::Uint(u64::MAX), &unsigned), Ok(Value::Uint(u64::MAX)));
        let array = FieldType { array: true, ..field(tp::LONGLONG) };
        assert_eq!(Value::from_datum(Datum::Json(Json::null()), &array), Ok(Value::Json(Json::null())));
        assert!(Value::from_datum(Datum::Int(1), &array).is_err());
    }
}
