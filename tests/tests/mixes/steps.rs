//! The steps of a mix; numbers pick modulo what there is.

use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Transaction {
        rows: Vec<RowStep>,
        lagging: bool,
        version: i64,
    },
    Create {
        design: Design,
    },
    Begin {
        table: u8,
        what: Change,
        default: Option<i64>,
    },
    Advance {
        table: u8,
    },
    /// The change that is under way is given up.
    Undo {
        table: u8,
    },
    RenameTable {
        table: u8,
    },
    RenameColumn {
        table: u8,
    },
    SetDefault {
        table: u8,
        default: Option<i64>,
    },
    Truncate {
        table: u8,
    },
    Drop {
        table: u8,
    },
    /// A change of one partition that is done at once.
    Partition {
        table: u8,
        partition: u8,
        what: PartitionChange,
    },
    /// A write to a table that is gone, or to a partition by the id that it had as a table.
    Gone {
        table: u8,
    },
    Restart,
}

/// How a table tells its rows apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Keys {
    #[default]
    None,
    /// An integer as clustered primary key.
    Integer,
    /// A text and an integer as clustered primary key.
    Common,
    /// One text as clustered primary key, its sort key its value.
    CommonChar,
    NonClustered,
    /// A text and an integer as primary key that is not clustered.
    NonClusteredPair,
    /// A unique key over a column that is NOT NULL.
    Unique,
    UniquePair,
    /// Several rows may be NULL in it.
    UniqueNullable,
    /// A unique key over a column that is generated and stored.
    UniqueGenerated,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Design {
    pub(crate) keys: Keys,
    /// A generated column: stored or virtual.
    pub(crate) generated: Option<bool>,
    pub(crate) partitioned: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Add {
        not_null: bool,
    },
    AddGenerated,
    AddSeveral,
    /// Gives a column another type and adds others; perhaps another name, perhaps a column dropped.
    TypeAndAdd {
        renamed: bool,
        dropping: bool,
    },
    /// Drops an index and adds a column.
    UnkeyAndAdd {
        index: u8,
    },
    Drop,
    Type,
    AddIndex {
        column: u8,
        unique: bool,
    },
    AddPrimary {
        column: u8,
    },
    DropIndex {
        index: u8,
    },
    Repartition(Repartition),
}

/// Puts rows into other partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Repartition {
    /// Two neighbours become one.
    Merge {
        first: u8,
    },
    Split {
        partition: u8,
    },
    By {
        column: u8,
    },
    Remove,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum PartitionChange {
    Add,
    Drop,
    Truncate,
    Exchange,
}

#[derive(Clone, Debug)]
pub(crate) struct RowStep {
    pub(crate) table: u8,
    pub(crate) row: u8,
    pub(crate) column: u8,
    pub(crate) what: u8,
    pub(crate) value: Option<i64>,
}

fn design() -> impl Strategy<Value = Design> {
    let keys = prop::sample::select(vec![
        Keys::None,
        Keys::None,
        Keys::Integer,
        Keys::Integer,
        Keys::Common,
        Keys::CommonChar,
        Keys::NonClustered,
        Keys::NonClusteredPair,
        Keys::Unique,
        Keys::UniquePair,
        Keys::UniqueNullable,
        Keys::UniqueGenerated,
    ]);
    (keys, proptest::option::weighted(0.4, any::<bool>()), any::<bool>())
        .prop_map(|(keys, generated, partitioned)| Design { keys, generated, partitioned })
}

fn change() -> impl Strategy<Value = Change> {
    let number = any::<u8>;
    prop_oneof![
        2 => any::<bool>().prop_map(|not_null| Change::Add { not_null }),
        1 => Just(Change::AddGenerated),
        2 => Just(Change::AddSeveral),
        2 => any::<(bool, bool)>().prop_map(|(renamed, dropping)| Change::TypeAndAdd { renamed, dropping }),
        2 => number().prop_map(|index| Change::UnkeyAndAdd { index }),
        2 => Just(Change::Drop),
        2 => Just(Change::Type),
        3 => any::<(u8, bool)>().prop_map(|(column, unique)| Change::AddIndex { column, unique }),
        3 => number().prop_map(|column| Change::AddPrimary { column }),
        4 => number().prop_map(|index| Change::DropIndex { index }),
        2 => number().prop_map(|first| Change::Repartition(Repartition::Merge { first })),
        2 => number().prop_map(|partition| Change::Repartition(Repartition::Split { partition })),
        2 => number().prop_map(|column| Change::Repartition(Repartition::By { column })),
        2 => Just(Change::Repartition(Repartition::Remove)),
    ]
}

impl Step {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        let value = || proptest::option::weighted(0.8, -2_i64..100);
        let row = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), value())
            .prop_map(|(table, row, column, what, value)| RowStep { table, row, column, what, value });
        let table = any::<u8>;
        let partition_change = prop::sample::select(vec![
            PartitionChange::Add,
            PartitionChange::Drop,
            PartitionChange::Truncate,
            PartitionChange::Exchange,
            PartitionChange::Exchange,
            PartitionChange::Exchange,
        ]);
        prop_oneof![
            9 => (proptest::collection::vec(row, 1..8), any::<bool>(), 0..99_i64)
                .prop_map(|(rows, lagging, version)| Self::Transaction { rows, lagging, version }),
            1 => design().prop_map(|design| Self::Create { design }),
            5 => (table(), change(), value()).prop_map(|(table, what, default)| Self::Begin { table, what, default }),
            15 => table().prop_map(|table| Self::Advance { table }),
            1 => table().prop_map(|table| Self::Undo { table }),
            1 => table().prop_map(|table| Self::RenameTable { table }),
            1 => table().prop_map(|table| Self::RenameColumn { table }),
            1 => (table(), value()).prop_map(|(table, default)| Self::SetDefault { table, default }),
            1 => table().prop_map(|table| Self::Truncate { table }),
            1 => table().prop_map(|table| Self::Drop { table }),
            3 => (table(), any::<u8>(), partition_change)
                .prop_map(|(table, partition, what)| Self::Partition { table, partition, what }),
            2 => table().prop_map(|table| Self::Gone { table }),
            1 => Just(Self::Restart),
        ]
    }
}
