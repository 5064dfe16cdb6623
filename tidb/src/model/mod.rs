//! TiDB's schema model, as its JSON has it: databases, tables, columns, indexes, partitions and DDL jobs.
//!
//! Reading tolerates unknown keys and missing ones (other TiDB versions); writing spells as Go does through
//! [`crate::gojson`], in the key order of TiDB 7.1, and gives back what was read byte for byte. Parts that nothing
//! here looks into are carried as [`Raw`]. Source: TiDB `parser/model`.

mod action;
mod column;
mod default_value;
mod field_type;
mod job;
mod partition;
mod state;
mod table;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::{
    action::ActionType,
    column::{ChangeStateInfo, ColumnInfo, Literal},
    default_value::{DefaultError, DefaultFault},
    field_type::{FieldType, flag, tp},
    job::{HistoryInfo, InvolvingSchema, Job, MultiSchemaInfo, SubJob},
    partition::{PartitionDefinition, PartitionInfo, PartitionKind},
    state::{JobState, SchemaState},
    table::{DbInfo, IndexColumn, IndexInfo, TableInfo},
};
pub use crate::gojson::{List, Raw};

/// An identifier as written and in lower case, by which TiDB compares it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Name {
    /// As the statement wrote it.
    #[serde(rename = "O")]
    pub original: String,
    /// In lower case.
    #[serde(rename = "L")]
    pub lower: String,
}

impl Name {
    /// From the name as written.
    pub fn new(original: impl Into<String>) -> Self {
        let original = original.into();
        Self { lower: original.to_lowercase(), original }
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.original
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.original.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Spelling {
            Pair {
                #[serde(rename = "O")]
                original: String,
                #[serde(rename = "L")]
                lower: String,
            },
            Bare(String),
        }
        Ok(match Spelling::deserialize(deserializer)? {
            Spelling::Pair { original, lower } => Self { original, lower },
            Spelling::Bare(name) => Self::new(name),
        })
    }
}
