//! Schema changes that are done at once.

use serde_json::json;
use tidb::binlog::MutationBuilder;

use crate::changes::HIGHEST;
use crate::partition::Partitioning;
use crate::statement::{Range, Statement};
use crate::steps::{Design, Keys, PartitionChange};
use crate::table::{Column, Generated, Handle, Index, Kind, Row, Table};
use crate::upstream::{Event, Upstream};

impl Upstream {
    pub(crate) fn create(&mut self, design: Design) -> Event {
        let name = self.name("t");
        let id = self.physical_id();
        let mut columns = vec![self.column(1), self.column(2), self.column(3)];
        let generated = if design.keys == Keys::UniqueGenerated { Some(true) } else { design.generated };
        if let Some(stored) = generated {
            let generated = Some(Generated { of: columns[1].logical, stored });
            columns.push(Column { generated, ..self.column(4) });
        }
        let (key, handle, primary, unique): (&[usize], _, _, _) = match design.keys {
            Keys::None => (&[], Handle::RowId, false, false),
            Keys::Integer => (&[], Handle::Integer, false, false),
            Keys::Common => (&[0, 1], Handle::Common, true, true),
            Keys::CommonChar => (&[0], Handle::Common, true, true),
            Keys::NonClustered => (&[0], Handle::RowId, true, true),
            Keys::NonClusteredPair => (&[0, 1], Handle::RowId, true, true),
            Keys::Unique => (&[0], Handle::RowId, false, true),
            Keys::UniquePair => (&[0, 1], Handle::RowId, false, true),
            Keys::UniqueNullable => (&[1], Handle::RowId, false, true),
            Keys::UniqueGenerated => (&[3], Handle::RowId, false, true),
        };
        columns[0].kind = match design.keys {
            Keys::Common | Keys::NonClusteredPair => Kind::Varchar,
            Keys::CommonChar => Kind::Char,
            _ => Kind::BigInt,
        };
        columns[0].not_null = handle == Handle::Integer;
        // Such a table may get a primary key.
        columns[2].not_null = handle == Handle::RowId && !primary;
        if !matches!(design.keys, Keys::UniqueNullable | Keys::UniqueGenerated) {
            key.iter().for_each(|at| columns[*at].not_null = true);
        }
        let index = (!key.is_empty()).then(|| Index {
            id: 1,
            name: if primary { "PRIMARY".into() } else { self.name("k") },
            columns: key.iter().map(|at| columns[*at].logical).collect(),
            unique,
            primary,
        });
        let by = match design.keys {
            Keys::Integer | Keys::NonClustered | Keys::Unique => Some(&columns[0]),
            Keys::CommonChar | Keys::UniqueGenerated => None,
            Keys::None | Keys::Common | Keys::NonClusteredPair | Keys::UniquePair | Keys::UniqueNullable => {
                Some(&columns[1])
            }
        };
        let by = by.filter(|_| design.partitioned).map(|column| column.logical);
        let table = Table {
            id,
            name,
            handle,
            next_column: 5,
            columns,
            indexes: index.into_iter().collect(),
            next_index: 2,
            partitioning: by.map(|by| self.partitions(by, &[10, 40, HIGHEST])),
            rows: Vec::new(),
            flight: None,
            earlier: None,
            earlier_id: None,
        };
        self.put(table)
    }

    fn put(&mut self, table: Table) -> Event {
        let generated = table.columns.iter().filter_map(|column| {
            let of = table.column(column.generated?.of);
            Some((column.name.clone(), of.name.clone()))
        });
        let statement = Statement::Create { table: table.name.clone(), generated: generated.collect() };
        self.tables.push(table);
        self.table_job("create", 3, self.tables.len() - 1, statement)
    }

    /// None of these jobs may be done while another is under way for the table.
    fn at_rest(&mut self, at: usize) -> Option<&mut Table> {
        let table = &mut self.tables[at];
        if table.flight.is_some() {
            return None;
        }
        (table.earlier, table.earlier_id) = (None, None);
        Some(table)
    }

    pub(crate) fn rename_table(&mut self, at: usize) -> Option<Event> {
        let to = self.name("t");
        let table = self.at_rest(at)?;
        let from = std::mem::replace(&mut table.name, to.clone());
        Some(self.table_job("rename table", 14, at, Statement::RenameTable { from, to }))
    }

    pub(crate) fn rename_column(&mut self, at: usize) -> Option<Event> {
        let to = self.name("c");
        let table = self.at_rest(at)?;
        let place = table.columns.iter().rposition(|column| !table.is_held(column))?;
        let from = std::mem::replace(&mut table.columns[place].name, to.clone());
        let statement = Statement::RenameColumn { table: table.name.clone(), from, to };
        Some(self.table_job("rename column", 12, at, statement))
    }

    /// Rows older than the column keep what they have.
    pub(crate) fn set_default(&mut self, at: usize, default: Option<i64>) -> Option<Event> {
        let table = self.at_rest(at)?;
        let plain = |column: &&mut Column| column.generated.is_none() && column.kind == Kind::BigInt;
        let column = table.columns.iter_mut().rfind(plain)?;
        if column.not_null && default.is_none() {
            return None;
        }
        column.default = default;
        let default = default.map_or("NULL".to_owned(), |default| default.to_string());
        let change = format!("ALTER COLUMN `{}` SET DEFAULT {default}", column.name);
        let statement = Statement::Rowless { table: table.name.clone(), change };
        Some(self.table_job("set default", 15, at, statement))
    }

    pub(crate) fn truncate(&mut self, at: usize) -> Option<Event> {
        let new_id = self.physical_id();
        self.at_rest(at)?;
        let fresh = self.renumbered(at);
        let table = &mut self.tables[at];
        table.rows.clear();
        table.partitioning = fresh;
        let old_id = std::mem::replace(&mut table.id, new_id);
        let (name, info) = (table.name.clone(), table.info());
        self.gone.push(old_id);
        let info = json!({"TableInfo": info});
        Some(self.job("truncate", 11, old_id, info, Statement::Truncate { table: name }))
    }

    /// The partitions of a table, with new ids.
    fn renumbered(&mut self, at: usize) -> Option<Partitioning> {
        let mut partitioning = self.tables[at].partitioning.clone()?;
        partitioning.partitions.iter_mut().for_each(|partition| partition.id = self.physical_id());
        Some(partitioning)
    }

    pub(crate) fn drop(&mut self, at: usize) -> Option<Event> {
        let (id, info) = {
            let table = self.at_rest(at)?;
            (table.id, table.info())
        };
        let table = self.tables.remove(at);
        self.gone.push(id);
        Some(self.job("drop", 4, id, json!({"TableInfo": info}), Statement::Drop { table: table.name }))
    }

    /// A change of one partition of one of the tables that have any.
    pub(crate) fn partition(&mut self, table: u8, partition: usize, what: PartitionChange) -> Vec<Event> {
        let ready = |table: &Table| table.partitioning.is_some() && table.flight.is_none();
        let tables: Vec<usize> = (0..self.tables.len()).filter(|at| ready(&self.tables[*at])).collect();
        let Some(at) = tables.get(usize::from(table) % tables.len().max(1)).copied() else {
            return Vec::new();
        };
        let count = self.tables[at].partitioning.as_ref().map_or(1, |by| by.partitions.len());
        let place = partition % count;
        match what {
            PartitionChange::Add => self.add_partition(at).into_iter().collect(),
            PartitionChange::Drop | PartitionChange::Truncate => {
                self.clear_partition(at, place, what).into_iter().collect()
            }
            PartitionChange::Exchange => self.exchange(at, place),
        }
    }

    fn add_partition(&mut self, at: usize) -> Option<Event> {
        let by = self.at_rest(at)?.partitioning.clone()?;
        let above = by.partitions.last()?.below + 100;
        let made = self.partitions(by.column, &[above]).partitions;
        let change = format!("ADD PARTITION ({})", Partitioning::sql(&made));
        let table = &mut self.tables[at];
        table.partitioning.as_mut()?.partitions.extend(made);
        let statement = Statement::Rowless { table: table.name.clone(), change };
        Some(self.table_job("add partition", 19, at, statement))
    }

    /// Its rows go without a trace in the binlog.
    fn clear_partition(&mut self, at: usize, place: usize, what: PartitionChange) -> Option<Event> {
        let new_id = self.physical_id();
        let table = self.at_rest(at)?;
        let by = table.partitioning.clone()?;
        let range = range(table, place);
        let name = &by.partitions[place].name;
        let rest = table.partitioning.as_mut()?;
        let (what, kind, change) = match what {
            PartitionChange::Drop => {
                // All that is written has to have its place.
                if by.partitions.last()?.below > HIGHEST || place + 1 < by.partitions.len() {
                    rest.partitions.remove(place);
                } else {
                    return None;
                }
                ("drop partition", 20, format!("DROP PARTITION `{name}`"))
            }
            _ => {
                rest.partitions[place].id = new_id;
                ("truncate partition", 23, format!("TRUNCATE PARTITION `{name}`"))
            }
        };
        table.rows.retain(|row| !by.holds(place, row));
        let statement = Statement::Clear { table: table.name.clone(), change, range };
        Some(self.table_job(what, kind, at, statement))
    }

    /// With a table like this one but without partitions: the first time it is made, later it is exchanged for one of
    /// them. Its rows have to belong there, so those that do not are deleted before.
    fn exchange(&mut self, at: usize, place: usize) -> Vec<Event> {
        let Some(table) = self.at_rest(at).cloned() else { return Vec::new() };
        let like = |other: &Table| {
            other.partitioning.is_none()
                && other.flight.is_none()
                && other.handle == table.handle
                && other.columns == table.columns
                && other.indexes == table.indexes
        };
        let Some(plain_at) = self.tables.iter().position(like) else {
            let (id, name) = (self.physical_id(), self.name("t"));
            return vec![self.put(Table { id, name, partitioning: None, rows: Vec::new(), ..table })];
        };
        let by = table.partitioning.clone().unwrap();
        let mut events = self.delete_others(plain_at, |row| by.holds(place, row));
        self.at_rest(plain_at);
        let range = range(&table, place);
        let (leave, stay): (Vec<Row>, Vec<Row>) =
            table.rows.into_iter().partition(|row| by.holds(place, row));
        let plain = &mut self.tables[plain_at];
        let come = std::mem::replace(&mut plain.rows, leave);
        let plain_id = std::mem::replace(&mut plain.id, by.partitions[place].id);
        let with = plain.name.clone();
        let table = &mut self.tables[at];
        table.rows = stay;
        table.rows.extend(come);
        table.partitioning.as_mut().unwrap().partitions[place].id = plain_id;
        let partition = by.partitions[place].name.clone();
        let statement = Statement::Exchange { table: table.name.clone(), partition, range, with };
        let info = table.info();
        self.exchanged.push(plain_id);
        events.push(self.job("exchange partition", 42, plain_id, json!({"TableInfo": info}), statement));
        events
    }

    fn delete_others(&mut self, at: usize, stay: impl Fn(&Row) -> bool) -> Vec<Event> {
        let table = &mut self.tables[at];
        let (stay, go): (Vec<Row>, Vec<Row>) = std::mem::take(&mut table.rows).into_iter().partition(stay);
        table.rows = stay;
        if go.is_empty() {
            return Vec::new();
        }
        let mut mutation = MutationBuilder::new(table.id);
        let roles = table.roles(None);
        for row in &go {
            mutation.delete(table.encode_delete(row, &roles));
        }
        vec![self.send(self.version, vec![mutation.build()])]
    }
}

fn range(table: &Table, place: usize) -> Range {
    let by = table.partitioning.as_ref().unwrap();
    let (from, below) = by.range(place);
    Range { column: table.column(by.column).name.clone(), from, below }
}
