//! What the configuration says of tables: which topic and partition their rows go to, and the time zone in which old
//! definitions are read. Pure.

use schemas::partition;

use crate::filter::Filter;
use crate::schema::zone::UpstreamZone;
use crate::sequence::{RowLayout, RowPartition};

/// Filter rules, layout and the upstream's time zone, as one epoch has them.
#[derive(Clone, Debug)]
pub struct Routing {
    filter: Filter,
    layout: RowLayout,
    upstream_zone: Option<UpstreamZone>,
}

impl Routing {
    /// From the rules and the layout of the row topics.
    pub fn new(filter: Filter, layout: RowLayout) -> Self {
        Self { filter, layout, upstream_zone: None }
    }

    /// With the time zone in which old definitions are read.
    pub fn in_zone(self, upstream_zone: Option<UpstreamZone>) -> Self {
        Self { upstream_zone, ..self }
    }

    /// The time zone in which old definitions are read, if it is configured.
    pub fn upstream_zone(&self) -> Option<&UpstreamZone> {
        self.upstream_zone.as_ref()
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
