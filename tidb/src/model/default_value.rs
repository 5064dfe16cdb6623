//! The value a column has in rows that do not hold it (TiDB `table/column.go`).

use bytes::Bytes;

use super::{ColumnInfo, FieldType, Literal, flag, tp};
use crate::{
    decimal::Decimal,
    json::Json,
    time::{Duration, Time},
    value::Value,
};

/// A default that cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column} ({sql_type}): the default {literal:?} {fault}")]
pub struct DefaultError {
    /// The column.
    pub column: String,
    /// Its type.
    pub sql_type: String,
    /// The default as the definition has it.
    pub literal: String,
    /// What is wrong with it.
    pub fault: DefaultFault,
}

/// What is wrong with a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefaultFault {
    /// Not a literal of the type.
    #[error("is not a value of the type")]
    NotAValue,
    /// From a definition so old that TIMESTAMP defaults are in the time zone of the server that wrote it.
    #[error("is in the time zone of the TiDB server that made it, which is not recorded")]
    ServerTimeZone,
    /// BIT defaults whose bytes JSON has damaged.
    #[error("has lost its bytes")]
    Damaged,
    /// A type that has no values here.
    #[error("is of a type that is not supported")]
    UnsupportedType,
}

impl ColumnInfo {
    /// The value of rows that are older than the column: `origin_default`. None if there is none: such rows hold NULL or,
    /// in a NOT NULL column, [`ColumnInfo::zero_value`].
    pub fn origin_default_value(&self) -> Result<Option<Value>, DefaultError> {
        let text = match (&self.origin_default, &self.origin_default_bit) {
            (None, None) => return Ok(None),
            (Some(literal), _) => literal.text(),
            (None, Some(_)) => "".into(),
        };
        self.evaluate(&text, self.origin_default_bit.as_deref()).map(Some).map_err(|fault| DefaultError {
            column: self.name().to_owned(),
            sql_type: self.sql_type(),
            literal: text.chars().take(100).collect(),
            fault,
        })
    }

    /// What an inserted row that lacks the column holds: the origin default, else NULL if allowed, else zero.
    pub fn absent_value(&self) -> Result<Value, DefaultError> {
        Ok(match self.origin_default_value()? {
            Some(value) => value,
            None if self.not_null() => self.zero_value(),
            None => Value::Null,
        })
    }

    /// Those of the column's defaults that are in the time zone of the TiDB server that made them: of TIMESTAMP columns of
    /// `version` 0, other than zero and CURRENT_TIMESTAMP.
    pub fn server_times(&self) -> Vec<&Literal> {
        let defaults = [&self.default, &self.origin_default].into_iter().flatten();
        defaults.filter(|literal| self.is_server_time(literal)).collect()
    }

    /// True for a default of this column that is in the time zone of the TiDB server that made it.
    pub fn is_server_time(&self, default: &Literal) -> bool {
        const NOW: &str = "CURRENT_TIMESTAMP";
        let text = default.text();
        let is_now = text.get(..NOW.len()).is_some_and(|start| start.eq_ignore_ascii_case(NOW));
        let is_zero = || Time::parse(&text, self.field_type.fsp()).is_ok_and(|time| time.is_zero());
        self.field_type.tp == tp::TIMESTAMP && self.version == 0 && !is_now && !is_zero()
    }

    /// Puts such defaults into UTC, as `utc` reads them: all of them, or none if there is one that it cannot read.
    pub fn put_server_times(&mut self, utc: impl Fn(Time) -> Option<Time>) {
        let read = |literal: &Option<Literal>| match literal {
            Some(literal) if self.is_server_time(literal) => {
                let time = Time::parse(&literal.text(), self.field_type.fsp()).ok().and_then(&utc)?;
                Some(Some(Literal::Text(time.to_string())))
            }
            other => Some(other.clone()),
        };
        if self.server_times().is_empty() {
            return;
        }
        if let (Some(default), Some(origin)) = (read(&self.default), read(&self.origin_default)) {
            (self.default, self.origin_default, self.version) = (default, origin, 1);
        }
    }

    /// The type's zero: 0, the empty string, the zero date, the first ENUM element, the empty SET, JSON null;
    /// BINARY(n) is n zero bytes.
    pub fn zero_value(&self) -> Value {
        zero_value(&self.field_type)
    }

    fn evaluate(&self, text: &str, bits: Option<&[u8]>) -> Result<Value, DefaultFault> {
        let field = &self.field_type;
        if field.array {
            return Err(DefaultFault::UnsupportedType);
        }
        let fault = DefaultFault::NotAValue;
        let fsp = field.fsp();
        Ok(match field.tp {
            tp::TINY | tp::SHORT | tp::INT24 | tp::LONG | tp::LONGLONG => {
                integer(text, field.has(flag::UNSIGNED)).ok_or(fault)?
            }
            tp::FLOAT => {
                Value::Float(text.trim().parse::<f32>().ok().filter(|v| v.is_finite()).ok_or(fault)?)
            }
            tp::DOUBLE => {
                Value::Double(text.trim().parse::<f64>().ok().filter(|v| v.is_finite()).ok_or(fault)?)
            }
            tp::NEW_DECIMAL => {
                let (precision, frac) = field.decimal_shape();
                Value::Decimal(Decimal::parse(text, precision, frac).map_err(|_| fault)?)
            }
            tp::DATE | tp::NEW_DATE => {
                let time = Time::parse(text, 0).map_err(|_| fault)?.fields();
                let date = crate::time::Fields { hour: 0, minute: 0, second: 0, micros: 0, ..time };
                Value::Date(Time::from_fields(date, 0).ok_or(fault)?)
            }
            tp::DATETIME => Value::Datetime(Time::parse(text, fsp).map_err(|_| fault)?),
            tp::TIMESTAMP => {
                let time = Time::parse(text, fsp).map_err(|_| fault)?;
                if self.version == 0 && !time.is_zero() {
                    return Err(DefaultFault::ServerTimeZone);
                }
                Value::Timestamp(time)
            }
            tp::DURATION => Value::Duration(Duration::parse(text, fsp).map_err(|_| fault)?),
            tp::YEAR => Value::Year(year(text, self.origin_default.as_ref()).ok_or(fault)?),
            tp::BIT => Value::Bit(bit(text, bits)?),
            tp::ENUM => Value::Enum(element(field, text).ok_or(fault)?),
            tp::SET => {
                let names = text.split(',').filter(|name| !name.is_empty());
                let mask = names.map(|name| element(field, name)).try_fold(0u64, |mask, index| {
                    let shift = u32::try_from(index?.checked_sub(1)?).ok()?;
                    Some(mask | 1u64.checked_shl(shift)?)
                });
                Value::Set(mask.or_else(|| text.trim().parse().ok()).ok_or(fault)?)
            }
            tp::JSON => Value::Json(Json::parse(text).map_err(|_| fault)?),
            _ if field.is_binary_string() => {
                // Bytes that are no UTF-8 were lost to JSON in TiDB itself, which shows old rows the same way.
                let mut bytes = text.as_bytes().to_vec();
                bytes.resize(bytes.len().max(fixed_width(field)), 0);
                Value::Bytes(bytes.into())
            }
            _ if field.is_text() => Value::Text(Bytes::copy_from_slice(text.as_bytes())),
            _ => return Err(DefaultFault::UnsupportedType),
        })
    }
}

/// An integer literal; TiDB stores some as decimals, rounded half away from zero.
fn integer(text: &str, unsigned: bool) -> Option<Value> {
    let rounded = Decimal::parse(text, 20, 0).ok()?.to_string();
    if unsigned { rounded.parse().ok().map(Value::Uint) } else { rounded.parse().ok().map(Value::Int) }
}

/// TiDB keeps a YEAR default as it was typed and casts it when it reads an old row (`Datum.ConvertToMysqlYear` and
/// `AdjustYear` in its package `types`): 1 to 69 are 2001 to 2069, 70 to 99 are 1970 to 1999. Zero is 0 as a number and as
/// a text of four characters, and 2000 as any other text.
fn year(text: &str, literal: Option<&Literal>) -> Option<u16> {
    let is_text = matches!(literal, Some(Literal::Text(_)));
    match text.trim().parse::<u16>().ok()? {
        0 if is_text && text.len() != 4 => Some(2000),
        year @ (0 | 1901..=2155) => Some(year),
        short @ 1..=69 => Some(2000 + short),
        short @ 70..=99 => Some(1900 + short),
        _ => None,
    }
}

/// The bytes twin is exact; without it (old definitions) the text is, as long as it is ASCII.
fn bit(text: &str, bits: Option<&[u8]>) -> Result<u64, DefaultFault> {
    let bytes = match bits {
        Some(bytes) => bytes,
        None if text.is_ascii() => text.as_bytes(),
        None => return Err(DefaultFault::Damaged),
    };
    let significant = &bytes[bytes.iter().position(|&b| b != 0).unwrap_or(bytes.len())..];
    if significant.len() > 8 {
        return Err(DefaultFault::NotAValue);
    }
    Ok(significant.iter().fold(0, |v, &b| v << 8 | u64::from(b)))
}

/// The number of an ENUM or SET element, from 1: by exact name, by name in another case, or by number.
fn element(field: &FieldType, name: &str) -> Option<u64> {
    let elems = &field.elems;
    let exact = elems.iter().position(|e| e == name);
    let place = exact.or_else(|| elems.iter().position(|e| e.to_lowercase() == name.to_lowercase()));
    match place {
        Some(i) => Some(i as u64 + 1),
        None => name.trim().parse().ok().filter(|&n| n >= 1 && n <= elems.len() as u64),
    }
}

/// BINARY(n) is padded with zeros to n bytes, 255 at most; other types are not padded.
fn fixed_width(field: &FieldType) -> usize {
    if field.tp == tp::STRING { field.length().map_or(1, |n| n.min(255) as usize) } else { 0 }
}

fn zero_value(field: &FieldType) -> Value {
    let fsp = field.fsp();
    if field.array {
        return Value::Json(Json::null());
    }
    match field.tp {
        tp::TINY | tp::SHORT | tp::INT24 | tp::LONG | tp::LONGLONG => {
            if field.has(flag::UNSIGNED) {
                Value::Uint(0)
            } else {
                Value::Int(0)
            }
        }
        tp::FLOAT => Value::Float(0.0),
        tp::DOUBLE => Value::Double(0.0),
        tp::NEW_DECIMAL => {
            let (precision, frac) = field.decimal_shape();
            Decimal::zero(precision, frac).map_or(Value::Null, Value::Decimal)
        }
        tp::DATE | tp::NEW_DATE => Value::Date(Time::ZERO),
        tp::DATETIME => Value::Datetime(Time::ZERO.with_fsp(fsp)),
        tp::TIMESTAMP => Value::Timestamp(Time::ZERO.with_fsp(fsp)),
        tp::DURATION => Value::Duration(Duration::new(0, fsp)),
        tp::YEAR => Value::Year(0),
        tp::BIT => Value::Bit(0),
        tp::ENUM => Value::Enum(1),
        tp::SET => Value::Set(0),
        tp::JSON => Value::Json(Json::null()),
        _ if field.is_binary_string() => Value::Bytes(vec![0; fixed_width(field)].into()),
        _ if field.is_text() => Value::Text(Bytes::new()),
        _ => Value::Null,
    }
}

impl Literal {
    /// From text.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    fn column(
        tp: u8,
        flags: u64,
        flen: i64,
        decimal: i64,
        charset: &str,
        default: Option<&str>,
    ) -> ColumnInfo {
        ColumnInfo {
            name: Name::new("c"),
            origin_default: default.map(Literal::from_text),
            version: 2,
            field_type: FieldType {
                tp,
                flag: flags,
                flen,
                decimal,
                charset: charset.into(),
                elems: vec!["a".to_owned(), "B".to_owned(), "3x".to_owned()].into(),
                ..FieldType::default()
            },
            ..ColumnInfo::default()
        }
    }

    fn value(tp: u8, flags: u64, flen: i64, decimal: i64, charset: &str, default: &str) -> Value {
        column(tp, flags, flen, decimal, charset, Some(default)).origin_default_value().unwrap().unwrap()
    }

    #[test]
    fn evaluates() {
        let utf8 = "utf8mb4";
        assert_eq!(value(tp::LONG, 0, 11, 0, "binary", "-5"), Value::Int(-5));
        assert_eq!(value(tp::LONG, 0, 11, 0, "binary", "1.5"), Value::Int(2));
        assert_eq!(
            value(tp::LONGLONG, flag::UNSIGNED, 20, 0, "binary", "18446744073709551615"),
            Value::Uint(u64::MAX)
        );
        assert_eq!(value(tp::FLOAT, 0, 12, -1, "binary", "0.1"), Value::Float(0.1));
        assert_eq!(value(tp::DOUBLE, 0, 22, -1, "binary", "1e15"), Value::Double(1e15));
        assert_eq!(value(tp::NEW_DECIMAL, 0, 10, 2, "binary", "1.5").to_string(), "1.50");
        assert_eq!(value(tp::VARCHAR, 0, 10, 0, utf8, "web"), Value::Text(Bytes::from_static(b"web")));
        assert_eq!(value(tp::STRING, 0, 4, 0, "binary", "ab"), Value::Bytes(Bytes::from_static(b"ab\0\0")));
        assert_eq!(value(tp::DATE, 0, 10, 0, "binary", "2024-02-29").to_string(), "2024-02-29");
        assert_eq!(
            value(tp::TIMESTAMP, 0, 23, 3, "binary", "2026-11-23 13:25:00.837").to_string(),
            "2026-11-23 13:25:00.837"
        );
        assert_eq!(value(tp::DURATION, 0, 12, 1, "binary", "-10:11:12.5").to_string(), "-10:11:12.5");
        assert_eq!(value(tp::YEAR, 0, 4, 0, "binary", "2023"), Value::Year(2023));
        assert_eq!(value(tp::ENUM, 0, 1, 0, utf8, "b"), Value::Enum(2));
        assert_eq!(value(tp::ENUM, 0, 1, 0, utf8, "3"), Value::Enum(3));
        assert_eq!(value(tp::SET, 0, 1, 0, utf8, "a,3x"), Value::Set(5));
        assert_eq!(value(tp::SET, 0, 1, 0, utf8, ""), Value::Set(0));
        assert_eq!(value(tp::JSON, 0, -1, -1, "binary", "{\"a\": 1}").to_string(), "{\"a\": 1}");
    }

    /// As TiDB casts them (`types.Datum.ConvertToMysqlYear`): two digits, and the two kinds of zero.
    #[test]
    fn years_as_they_were_typed() {
        for (text, expected) in [
            ("12", 2012),
            ("1", 2001),
            ("69", 2069),
            ("70", 1970),
            ("99", 1999),
            ("0", 2000),
            ("00", 2000),
            ("000", 2000),
            ("0000", 0),
            ("1901", 1901),
            ("2155", 2155),
        ] {
            assert_eq!(value(tp::YEAR, 0, 4, 0, "binary", text), Value::Year(expected), "{text}");
        }
        for (number, expected) in [(0, 0), (12, 2012), (2023, 2023)] {
            let mut column = column(tp::YEAR, 0, 4, 0, "binary", None);
            column.origin_default = Some(Literal::Number(number.into()));
            assert_eq!(column.origin_default_value(), Ok(Some(Value::Year(expected))), "{number}");
        }
        for text in ["100", "1900", "2156", "-1", ""] {
            let column = column(tp::YEAR, 0, 4, 0, "binary", Some(text));
            assert_eq!(column.origin_default_value().unwrap_err().fault, DefaultFault::NotAValue, "{text}");
        }
    }

    #[test]
    fn bits_come_from_the_twin() {
        let mut bits = column(tp::BIT, flag::UNSIGNED, 16, 0, "binary", Some("\u{fffd}"));
        assert_eq!(bits.origin_default_value().unwrap_err().fault, DefaultFault::Damaged);
        bits.origin_default_bit = Some(vec![0xaa, 0x01]);
        assert_eq!(bits.origin_default_value(), Ok(Some(Value::Bit(0xaa01))));
        bits.origin_default = Some(Literal::from_text("\n"));
        bits.origin_default_bit = None;
        assert_eq!(bits.origin_default_value(), Ok(Some(Value::Bit(10))));
    }

    #[test]
    fn refuses() {
        let mut old = column(tp::TIMESTAMP, 0, 19, 0, "binary", Some("2020-01-01 00:00:00"));
        old.version = 0;
        assert_eq!(old.origin_default_value().unwrap_err().fault, DefaultFault::ServerTimeZone);
        for (tp, text) in [
            (tp::LONG, "x"),
            (tp::DATE, "CURRENT_DATE"),
            (tp::ENUM, "zz"),
            (tp::YEAR, "1900"),
            (tp::JSON, "{"),
        ] {
            let column = column(tp, 0, 10, 0, "binary", Some(text));
            assert_eq!(column.origin_default_value().unwrap_err().fault, DefaultFault::NotAValue, "{text}");
        }
    }

    #[test]
    fn absent_values() {
        let absent = |column: ColumnInfo| column.absent_value().unwrap();
        assert_eq!(absent(column(tp::LONG, 0, 11, 0, "binary", None)), Value::Null);
        let not_null = flag::NOT_NULL;
        assert_eq!(absent(column(tp::LONG, not_null, 11, 0, "binary", None)), Value::Int(0));
        assert_eq!(
            absent(column(tp::LONGLONG, not_null | flag::UNSIGNED, 20, 0, "binary", None)),
            Value::Uint(0)
        );
        assert_eq!(absent(column(tp::NEW_DECIMAL, not_null, 5, 2, "binary", None)).to_string(), "0.00");
        assert_eq!(absent(column(tp::ENUM, not_null, 5, 2, "utf8mb4", None)), Value::Enum(1));
        assert_eq!(
            absent(column(tp::STRING, not_null, 3, 0, "binary", None)),
            Value::Bytes(Bytes::from_static(&[0, 0, 0]))
        );
        assert_eq!(
            absent(column(tp::DATETIME, not_null, 19, 2, "binary", None)).to_string(),
            "0000-00-00 00:00:00.00"
        );
        assert_eq!(absent(column(tp::LONG, not_null, 11, 0, "binary", Some("7"))), Value::Int(7));
    }
}
