//! Column values in the native format: `sluice.v1.Field`. Pure.

use schemas::sluice::v1::{self as proto, field};
use tidb::value::Value;

/// A column's value as a field. Text that is not UTF-8 becomes bytes; JSON carries its binary form where the text does
/// not determine it.
pub fn field(column_id: i64, value: &Value) -> proto::Field {
    use field::Value as V;
    let value = match value {
        Value::Null => V::Null(proto::Null {}),
        Value::Int(v) => V::Int(*v),
        Value::Year(v) => V::Int(i64::from(*v)),
        Value::Uint(v) => V::Uint(*v),
        Value::Float(v) => V::Float(*v),
        Value::Double(v) => V::Double(*v),
        Value::Decimal(v) => V::Decimal(v.to_string()),
        Value::Bytes(v) => V::Bytes(v.clone()),
        Value::Text(v) => match std::str::from_utf8(v) {
            Ok(text) => V::Text(text.to_owned()),
            Err(_) => V::Bytes(v.clone()),
        },
        Value::Date(v) => V::Date(v.date().to_string()),
        Value::Datetime(v) => V::Datetime(v.to_string()),
        Value::Timestamp(v) => V::Timestamp(v.to_string()),
        Value::Duration(v) => V::Time(v.to_string()),
        Value::Enum(v) => V::Enum(*v),
        Value::Set(v) => V::Set(*v),
        Value::Bit(v) => V::Bit(*v),
        Value::Json(json) => {
            let mut binary = Vec::new();
            if !json.text_is_lossless() {
                binary.push(json.type_byte());
                binary.extend_from_slice(json.value_bytes());
            }
            V::Json(proto::Json { text: json.to_string(), binary: binary.into() })
        }
    };
    proto::Field { column_id, value: Some(value) }
}
