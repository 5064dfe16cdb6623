//! Rows of every type, made, written and read back.

use bytes::Bytes;
use proptest::prelude::*;
use tidb::{
    decimal::Decimal,
    json::Json,
    model::{FieldType, IndexColumn, IndexInfo, Literal, Name, TableInfo, flag, tp},
    row::{
        Collation, RowImage, decode_delete, decode_insert, decode_update, encode_delete, encode_insert,
        encode_update, v2,
    },
    time::{Duration, Fields, Time},
    value::Value,
};

use crate::vectors::{column, field, text};

fn time(fsp: u8) -> impl Strategy<Value = Time> {
    (0u16..=9999, 0u8..=12, 0u8..=31, 0u32..86_400, 0u32..1_000_000).prop_map(
        move |(year, month, day, s, micros)| {
            let (hour, minute, second) = ((s / 3600) as u8, (s / 60 % 60) as u8, (s % 60) as u8);
            Time::from_fields(Fields { year, month, day, hour, minute, second, micros }, fsp).unwrap()
        },
    )
}

/// A type and values of it.
fn typed() -> impl Strategy<Value = (FieldType, BoxedStrategy<Value>)> {
    let cases: Vec<(FieldType, BoxedStrategy<Value>)> = vec![
        (field(tp::TINY, 0, 4, 0), any::<i64>().prop_map(Value::Int).boxed()),
        (field(tp::LONGLONG, flag::UNSIGNED, 20, 0), any::<u64>().prop_map(Value::Uint).boxed()),
        (
            field(tp::FLOAT, 0, 12, -1),
            any::<f32>().prop_filter("zero", |v| *v != 0.0 && v.is_finite()).prop_map(Value::Float).boxed(),
        ),
        (
            field(tp::DOUBLE, 0, 22, -1),
            any::<f64>().prop_filter("zero", |v| *v != 0.0 && v.is_finite()).prop_map(Value::Double).boxed(),
        ),
        (
            field(tp::NEW_DECIMAL, 0, 30, 9),
            any::<i64>()
                .prop_map(|v| Value::Decimal(Decimal::parse(&format!("{v}e-9"), 30, 9).unwrap()))
                .boxed(),
        ),
        (field(tp::BLOB, 0, 65535, 0), any::<Vec<u8>>().prop_map(|v| Value::Bytes(v.into())).boxed()),
        (
            text(tp::VARCHAR, 0, 100, "utf8mb4_bin"),
            any::<String>().prop_map(|v| Value::Text(v.into())).boxed(),
        ),
        (
            text(tp::STRING, 0, 100, "utf8mb4_bin"),
            "[a-c ]{0,4}[a-c]".prop_map(|v| Value::Text(v.into())).boxed(),
        ),
        (
            field(tp::DATE, 0, 10, 0),
            time(0)
                .prop_map(|v| {
                    Value::Date(
                        Time::from_fields(
                            Fields { hour: 0, minute: 0, second: 0, micros: 0, ..v.fields() },
                            0,
                        )
                        .unwrap(),
                    )
                })
                .boxed(),
        ),
        (field(tp::DATETIME, 0, 26, 6), time(6).prop_map(Value::Datetime).boxed()),
        (field(tp::TIMESTAMP, 0, 23, 3), time(3).prop_map(Value::Timestamp).boxed()),
        (
            field(tp::DURATION, 0, 13, 2),
            any::<i64>().prop_map(|v| Value::Duration(Duration::new(v, 2))).boxed(),
        ),
        (field(tp::YEAR, 0, 4, 0), prop_oneof![Just(0u16), 1901u16..=2155].prop_map(Value::Year).boxed()),
        (text(tp::ENUM, 0, 1, "utf8mb4_bin"), any::<u64>().prop_map(Value::Enum).boxed()),
        (text(tp::SET, 0, 1, "utf8mb4_bin"), any::<u64>().prop_map(Value::Set).boxed()),
        (field(tp::BIT, flag::UNSIGNED, 64, 0), any::<u64>().prop_map(Value::Bit).boxed()),
        (
            field(tp::JSON, 0, -1, 0),
            prop::sample::select(vec!["null", "[]", "{\"a\": [1.5, \"x\"]}", "-1"])
                .prop_map(|v| Value::Json(Json::parse(v).unwrap()))
                .boxed(),
        ),
    ];
    prop::sample::select((0..cases.len()).collect::<Vec<_>>()).prop_map(move |i| cases[i].clone())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Clustering {
    RowId,
    Integer,
    Common(usize),
}

type Columns = Vec<(i64, Value)>;

/// A table with a row in it, and a second row with the same key.
fn table() -> impl Strategy<Value = (TableInfo, Columns, Columns)> {
    let columns = prop::collection::vec((typed(), any::<bool>(), any::<bool>()), 1..8);
    (columns, 0usize..4).prop_flat_map(|(types, shape)| {
        let clustering = match shape {
            0 => Clustering::RowId,
            1 => Clustering::Integer,
            n => Clustering::Common((n - 1).min(types.len())),
        };
        let (mut cols, mut pairs) = (Vec::new(), Vec::new());
        for (i, ((mut field_type, values), nullable, defaulted)) in types.into_iter().enumerate() {
            let id = i as i64 + 1;
            let values = match clustering {
                Clustering::Integer if i == 0 => {
                    field_type = field(tp::LONGLONG, flag::NOT_NULL | flag::PRI_KEY, 20, 0);
                    any::<i64>().prop_map(Value::Int).boxed()
                }
                // JSON cannot be part of a key.
                Clustering::Common(n) if i < n && field_type.tp == tp::JSON => {
                    field_type = field(tp::LONG, 0, 11, 0);
                    any::<i64>().prop_map(Value::Int).boxed()
                }
                Clustering::Common(n) if i < n => values,
                _ if nullable => prop_oneof![Just(Value::Null), values].boxed(),
                _ => values,
            };
            let mut info = column(id, &format!("c{id}"), field_type);
            if defaulted {
                info.default = Some(Literal::from_text("1"));
            }
            let in_key = match clustering {
                Clustering::RowId => false,
                Clustering::Integer => i == 0,
                Clustering::Common(n) => i < n,
            };
            // The second row keeps the key.
            let pair = if in_key {
                values.prop_map(|v| (v.clone(), v)).boxed()
            } else {
                (values.clone(), values).boxed()
            };
            cols.push(info);
            pairs.push(pair.prop_map(move |(a, b)| ((id, a), (id, b))).boxed());
        }
        let mut table = TableInfo { id: 1, name: Name::new("t"), ..TableInfo::default() };
        match clustering {
            Clustering::RowId => {}
            Clustering::Integer => table.pk_is_handle = true,
            Clustering::Common(n) => {
                table.is_common_handle = true;
                let parts =
                    (0..n).map(|offset| IndexColumn { name: cols[offset].name.clone(), offset, length: -1 });
                table.index_info = vec![IndexInfo {
                    idx_cols: parts.collect::<Vec<_>>().into(),
                    is_primary: true,
                    ..IndexInfo::default()
                }]
                .into();
            }
        }
        table.cols = cols.into();
        pairs.prop_map(move |pairs| {
            let (before, after) = pairs.into_iter().unzip();
            (table.clone(), before, after)
        })
    })
}

fn sorted(mut columns: Columns) -> Columns {
    columns.sort_by_key(|(id, _)| *id);
    columns
}

proptest! {
    #[test]
    fn inserts((table, values, _) in table(), row_id: i64, new: bool) {
        let collation = if new { Collation::New } else { Collation::Old };
        let image = RowImage::for_insert(&table, &values, Some(row_id), collation).unwrap();
        let blob = Bytes::from(encode_insert(&image));
        let read = decode_insert(&table, &blob).unwrap();
        prop_assert_eq!(encode_insert(&read), blob);
        prop_assert_eq!(&read, &image);
        prop_assert_eq!(read.row_id.is_some(), table.has_row_id());
        // What is missing is NULL without a default.
        let expected: Vec<_> = values
            .iter()
            .filter(|(id, value)| !value.is_null() || table.column(*id).unwrap().default.is_some())
            .cloned()
            .collect();
        prop_assert_eq!(sorted(read.columns), expected);
    }

    #[test]
    fn updates_and_deletes((table, old, new) in table(), row_id: i64) {
        let before = RowImage::for_change(&table, &old, Some(row_id), false).unwrap();
        let after = RowImage::for_change(&table, &new, Some(row_id), false).unwrap();
        let blob = Bytes::from(encode_update(&before, &after));
        prop_assert_eq!(decode_update(&table, &blob).unwrap(), (before.clone(), after));
        prop_assert_eq!(&before.columns, &old);
        let blob = Bytes::from(encode_delete(&before));
        prop_assert_eq!(decode_delete(&table, &blob).unwrap(), before);
    }

    #[test]
    fn format_2((table, values, _) in table()) {
        let columns: Vec<_> = values.iter().map(|(id, v)| (*id as u32, v.clone())).collect();
        let row = v2::Row::decode(&v2::Row::new(&columns).encode().into()).unwrap();
        for (id, value) in &values {
            let column = table.column(*id).unwrap();
            prop_assert_eq!(row.get(*id as u32, &column.field_type).unwrap(), Some(value.clone()));
        }
    }
}
