//! The tables that load writes to, as TiDB would define them, and the jobs that create them. Pure.

use tidb::model::{
    ActionType, ColumnInfo, DbInfo, FieldType, IndexColumn, IndexInfo, Job, JobState, List, Name,
    SchemaState, TableInfo, flag, tp,
};

/// Ids of what load creates; ids of a real TiDB's bootstrap are below.
const DATABASE_ID: i64 = 1000;
const FIRST_JOB_ID: i64 = 2000;
/// The schema version before the first job.
const SCHEMA_VERSION: i64 = 100;

const BIGINT: (u8, i64) = (tp::LONGLONG, 20);

/// A table to be: its name, its columns with their types, and how many of those, from the first, are the primary key.
type TableShape<'a> = (&'a str, &'a [(&'a str, (u8, i64))], usize);

/// A database with its tables.
#[derive(Clone, Debug)]
pub struct Schema {
    /// The database.
    pub database: DbInfo,
    /// Its tables, by the order in which a workload knows them.
    pub tables: Vec<TableInfo>,
    statements: Vec<String>,
}

impl Schema {
    /// `bank.account(id, balance, filler)`.
    pub fn bank(filler: i64) -> Self {
        let columns = [("id", BIGINT), ("balance", BIGINT), ("filler", (tp::VARCHAR, filler))];
        Self::new("bank", &[("account", &columns, 1)])
    }

    /// `orders.orders(id, customer, note)` and `orders.items(order_id, line, product, quantity)`.
    pub fn orders(note: i64) -> Self {
        let orders = [("id", BIGINT), ("customer", BIGINT), ("note", (tp::VARCHAR, note))];
        let items = [("order_id", BIGINT), ("line", BIGINT), ("product", BIGINT), ("quantity", BIGINT)];
        Self::new("orders", &[("orders", &orders, 1), ("items", &items, 2)])
    }

    /// Tables with their columns and how many of those, from the first, are the clustered primary key.
    fn new(name: &str, tables: &[TableShape<'_>]) -> Self {
        let database = DbInfo {
            id: DATABASE_ID,
            name: Name::new(name),
            charset: "utf8mb4".into(),
            collate: "utf8mb4_bin".into(),
            state: SchemaState::Public,
            ..DbInfo::default()
        };
        let mut statements = vec![format!("CREATE DATABASE `{name}`;")];
        let mut infos = Vec::new();
        for (index, (table, columns, key)) in tables.iter().enumerate() {
            let info = define(DATABASE_ID + 1 + index as i64, table, columns, *key);
            let column = |column: &ColumnInfo| format!("`{}` {} NOT NULL", column.name, column.sql_type());
            let columns: Vec<String> = info.cols.iter().map(column).collect();
            let key: Vec<String> =
                info.cols.iter().take(*key).map(|column| format!("`{}`", column.name)).collect();
            statements.push(format!(
                "CREATE TABLE `{name}`.`{table}` ({},PRIMARY KEY({}) /*T![clustered_index] CLUSTERED */);",
                columns.join(","),
                key.join(","),
            ));
            infos.push(info);
        }
        Self { database, tables: infos, statements }
    }

    /// The schema version that rows are written under.
    pub fn version(&self) -> i64 {
        SCHEMA_VERSION + self.statements.len() as i64
    }

    /// The jobs that create it, in order.
    pub fn jobs(&self) -> Vec<Job> {
        let of = |(index, statement): (usize, &String)| {
            let mut job = Job {
                id: FIRST_JOB_ID + index as i64,
                kind: if index == 0 { ActionType::CreateSchema } else { ActionType::CreateTable },
                schema_id: self.database.id,
                schema_name: self.database.name.to_string(),
                state: JobState::Synced,
                schema_state: SchemaState::Public,
                query: statement.clone(),
                charset: "utf8mb4".into(),
                collate: "utf8mb4_bin".into(),
                ..Job::default()
            };
            job.binlog.schema_version = SCHEMA_VERSION + 1 + index as i64;
            match index.checked_sub(1).and_then(|index| self.tables.get(index)) {
                None => job.binlog.db_info = Some(self.database.clone()),
                Some(table) => {
                    job.table_id = table.id;
                    job.table_name = table.name.to_string();
                    job.binlog.table_info = Some(table.clone());
                }
            }
            job
        };
        self.statements.iter().enumerate().map(of).collect()
    }
}

fn define(id: i64, name: &str, columns: &[(&str, (u8, i64))], key: usize) -> TableInfo {
    let mut cols: List<ColumnInfo> = List::nil();
    for (offset, (name, (kind, length))) in columns.iter().enumerate() {
        let text = *kind == tp::VARCHAR;
        let (charset, collate) = if text { ("utf8mb4", "utf8mb4_bin") } else { ("binary", "binary") };
        let in_key = if offset < key { flag::PRI_KEY } else { 0 };
        let binary = if text { 0 } else { flag::BINARY };
        cols.push(ColumnInfo {
            id: offset as i64 + 1,
            name: Name::new(*name),
            offset,
            field_type: FieldType {
                tp: *kind,
                flag: flag::NOT_NULL | flag::NO_DEFAULT | binary | in_key,
                flen: *length,
                decimal: 0,
                charset: charset.into(),
                collate: collate.into(),
                ..FieldType::default()
            },
            state: SchemaState::Public,
            version: 2,
            ..ColumnInfo::default()
        });
    }
    let mut table = TableInfo {
        id,
        name: Name::new(name),
        charset: "utf8mb4".into(),
        collate: "utf8mb4_bin".into(),
        max_col_id: columns.len() as i64,
        state: SchemaState::Public,
        pk_is_handle: key == 1,
        is_common_handle: key > 1,
        common_handle_version: u16::from(key > 1),
        version: 5,
        ..TableInfo::default()
    };
    if key > 1 {
        let mut primary = IndexInfo {
            id: 1,
            name: Name::new("PRIMARY"),
            state: SchemaState::Public,
            index_type: 1,
            is_unique: true,
            is_primary: true,
            ..IndexInfo::default()
        };
        for column in cols.iter().take(key) {
            primary.idx_cols.push(IndexColumn {
                name: column.name.clone(),
                offset: column.offset,
                length: -1,
            });
        }
        table.index_info.push(primary);
        table.max_idx_id = 1;
    }
    table.cols = cols;
    table
}
