//! Which topic and partition a table's rows go to. Pure.

use schemas::partition;

use crate::filter::Filter;
use crate::sequence::{RowLayout, RowPartition};

/// Filter rules and layout, as one epoch has them.
#[derive(Clone, Debug)]
pub struct Routing {
    filter: Filter,
    layout: RowLayout,
}

impl Routing {
    /// From the rules and the layout of the row topics.
    pub fn new(filter: Filter, layout: RowLayout) -> Self {
        Self { filter, layout }
    }

    /// The filter rules.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The row topics.
    pub fn layout(&self) -> &RowLayout {
        &self.layout
    }

    /// Where rows of this table go; `None` if the rules leave it out.
    pub fn place(&self, database: &str, table: &str) -> Option<RowPartition> {
        let (_, partitions) = self.layout.topics.first()?;
        self.filter.table(database, table).then(|| RowPartition {
            topic: 0,
            partition: partition::by_table(database, table, *partitions) as i32,
        })
    }

    /// CRC-32C of the filter and partition rules in canonical form: what must not change while a transaction is
    /// half written.
    pub fn rules_hash(&self) -> u32 {
        let topics: Vec<String> =
            self.layout.topics.iter().map(|(topic, n)| format!("{topic:?}:{n}")).collect();
        crc32c::crc32c(format!("{};table/murmur2;{}", self.filter.canonical(), topics.join(",")).as_bytes())
    }
}
