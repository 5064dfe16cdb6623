//! Columns.

use serde::{Deserialize, Serialize};

use super::{FieldType, List, Name, Raw, SchemaState, flag};
use crate::gojson;

/// A column of a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ColumnInfo {
    /// Its id, which rows name; never used again. A lossy type change gives a column a new one.
    pub id: i64,
    /// Its name.
    pub name: Name,
    /// Place in the table's `cols`.
    pub offset: usize,
    /// The value of rows older than the column; see [`ColumnInfo::origin_default_value`].
    pub origin_default: Option<Literal>,
    /// The same for BIT columns, whose text form JSON has damaged.
    #[serde(with = "gojson::base64_bytes")]
    pub origin_default_bit: Option<Vec<u8>>,
    /// The default for new rows.
    pub default: Option<Literal>,
    /// The same for BIT columns.
    #[serde(with = "gojson::base64_bytes")]
    pub default_bit: Option<Vec<u8>>,
    /// The default is an expression.
    pub default_is_expr: bool,
    /// Not empty: a generated column.
    pub generated_expr_string: String,
    /// STORED rather than VIRTUAL.
    pub generated_stored: bool,
    /// Columns that a generated one is computed from.
    pub dependences: Raw,
    /// The type.
    #[serde(rename = "type")]
    pub field_type: FieldType,
    /// Whether it is visible.
    pub state: SchemaState,
    /// Comment.
    pub comment: String,
    /// A column that TiDB made for an expression index.
    pub hidden: bool,
    /// Set on the target of a type change while it runs.
    pub change_state_info: Option<ChangeStateInfo>,
    /// From 1 on, defaults of TIMESTAMP columns are in UTC.
    pub version: u64,
}

/// Points from the target of a type change to its source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeStateInfo {
    /// The source's place in `cols`.
    #[serde(rename = "relative_col_offset")]
    pub relative_column_offset: i64,
}

/// A default in TiDB's JSON: text, or in old definitions a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Literal {
    /// The value's text.
    Text(String),
    /// A number.
    Number(serde_json::Number),
}

impl Literal {
    /// The value's text.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Text(text) => text.into(),
            Self::Number(number) => number.to_string().into(),
        }
    }
}

impl ColumnInfo {
    /// The column's name as written.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// True if it is computed from others.
    pub fn is_generated(&self) -> bool {
        !self.generated_expr_string.is_empty()
    }

    /// True if it is computed when read: not in inserted and updated rows.
    pub fn is_virtual(&self) -> bool {
        self.is_generated() && !self.generated_stored
    }

    /// True if it is past all states of being added and before those of being dropped. Hidden columns are public too.
    pub fn is_public(&self) -> bool {
        self.state == SchemaState::Public
    }

    /// True for UNSIGNED.
    pub fn is_unsigned(&self) -> bool {
        self.field_type.has(flag::UNSIGNED)
    }

    /// True for NOT NULL.
    pub fn not_null(&self) -> bool {
        self.field_type.has(flag::NOT_NULL)
    }

    /// True for a column of the primary key.
    pub fn is_primary_key(&self) -> bool {
        self.field_type.has(flag::PRI_KEY)
    }

    /// The type as SQL writes it, such as `bigint unsigned` or `enum('a','b')`; see [`FieldType::sql_type`].
    pub fn sql_type(&self) -> String {
        self.field_type.sql_type()
    }

    /// The names that a generated column is computed from.
    pub fn generated_from(&self) -> List<String> {
        match self.dependences.parse::<std::collections::BTreeMap<String, serde::de::IgnoredAny>>() {
            Ok(names) => names.into_keys().collect::<Vec<_>>().into(),
            Err(_) => List::nil(),
        }
    }
}
