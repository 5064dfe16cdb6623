//! A table's definition as the statement that makes it on MySQL or MariaDB.
//!
//! Everything is spelled out – charset and collation of each column, nullability, defaults – so that no default of the
//! server or the database takes part. What only TiDB knows and what has no effect on rows is left out: clustering,
//! AUTO_RANDOM, placement, TTL, TiFlash, caching.

use std::fmt::Write as _;

use serde::Deserialize;
use tidb::model::{
    ColumnInfo, IndexInfo, Name, PartitionDefinition, PartitionInfo, PartitionKind, TableInfo, flag, tp,
};

use super::token::Tokens;
use crate::mysql::charset;
use crate::mysql::literal::{identifier, quoted, string, table_name};
use crate::mysql::session::Target;

/// Something that the target cannot have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(super) struct Impossible(pub(super) String);

/// `CREATE TABLE` for a definition.
pub(super) fn create_table(database: &str, table: &TableInfo, target: &Target) -> Result<String, Impossible> {
    let mut parts: Vec<String> = Vec::new();
    for info in table.public_columns().filter(|column| !column.hidden) {
        parts.push(column(table, info, target)?);
    }
    if table.pk_is_handle
        && let Some(handle) = table.handle_column()
    {
        parts.push(format!("PRIMARY KEY ({})", quoted(handle.name())));
    }
    for index in table.index_info.iter().filter(|index| index.is_public()) {
        parts.extend(key(table, index, target)?);
    }
    for foreign in foreign_keys(table)? {
        parts.push(foreign.render(database));
    }
    for check in checks(table)? {
        parts.push(check.render());
    }
    let mut out = format!("CREATE TABLE {} ({})", table_name(database, table.name()), parts.join(", "));
    let (charset, collate) = charset::for_target(target, &table.charset, &table.collate);
    let _ = write!(out, " CHARACTER SET {charset} COLLATE {collate}");
    if table.auto_inc_id > 1 && table.cols.iter().any(|column| column.field_type.has(flag::AUTO_INCREMENT)) {
        let _ = write!(out, " AUTO_INCREMENT={}", table.auto_inc_id);
    }
    if !table.comment.is_empty() {
        out.push_str(" COMMENT=");
        string(&mut out, &table.comment);
    }
    if let Some(partitions) = table.partitions() {
        out.push(' ');
        partition_by(&mut out, partitions)?;
    }
    Ok(out)
}

/// A view as in TiDB's JSON.
#[derive(Debug, Deserialize)]
struct View {
    /// Its SELECT, in which TiDB names every table with its database. TiDB reads it as text in which backslashes escape.
    #[serde(rename = "view_select")]
    select: String,
}

/// `CREATE VIEW` for a definition. The statement says what a definition does not: whether it may replace another, whose
/// rights it has, whether it checks what is written through it. Its own SELECT may name tables by the user's current
/// database, which is not in the log.
pub(super) fn create_view(
    statement: &Tokens<'_>,
    database: &str,
    view: &TableInfo,
) -> Result<String, Impossible> {
    let select = view.view.parse::<View>();
    let View { select } =
        select.map_err(|error| Impossible(format!("the view's SELECT is not in its definition: {error}")))?;
    let head = (0..statement.len()).find(|at| statement.is(*at, &["VIEW"]));
    let head = head.ok_or_else(|| Impossible("the statement makes no view".to_owned()))?;
    let columns: Vec<String> = view.public_columns().map(|column| quoted(column.name())).collect();
    let mut out =
        format!("{} VIEW {} ", statement.slice(0..head).joined(), table_name(database, view.name()));
    if !columns.is_empty() {
        let _ = write!(out, "({}) ", columns.join(", "));
    }
    let _ = write!(out, "AS {select}");
    let end = statement.len();
    for words in [
        &["WITH", "CHECK", "OPTION"][..],
        &["WITH", "LOCAL", "CHECK", "OPTION"],
        &["WITH", "CASCADED", "CHECK", "OPTION"],
    ] {
        if statement.is(end.saturating_sub(words.len()), words) {
            let _ = write!(out, " {}", words.join(" "));
        }
    }
    Ok(out)
}

/// A column's definition, name included.
pub(super) fn column(table: &TableInfo, info: &ColumnInfo, target: &Target) -> Result<String, Impossible> {
    let mut out = quoted(info.name());
    out.push(' ');
    attributes(&mut out, table, info, target)?;
    Ok(out)
}

/// Everything of a column's definition but its name.
pub(super) fn attributes(
    out: &mut String,
    table: &TableInfo,
    info: &ColumnInfo,
    target: &Target,
) -> Result<(), Impossible> {
    let kind = &info.field_type;
    out.push_str(&info.sql_type());
    if kind.is_text() || matches!(kind.tp, tp::ENUM | tp::SET) {
        let (charset, collate) = charset::for_target(target, &kind.charset, &kind.collate);
        let _ = write!(out, " CHARACTER SET {charset} COLLATE {collate}");
    }
    if info.is_generated() {
        let stored = if info.generated_stored { "STORED" } else { "VIRTUAL" };
        let _ = write!(out, " GENERATED ALWAYS AS ({}) {stored}", info.generated_expr_string);
        // MariaDB takes no NOT NULL on a generated column.
        if info.not_null() && !target.is_mariadb() {
            out.push_str(" NOT NULL");
        }
    } else {
        out.push_str(if info.not_null() { " NOT NULL" } else { " NULL" });
        default(out, info, target)?;
        if kind.has(flag::ON_UPDATE_NOW) {
            out.push_str(" ON UPDATE CURRENT_TIMESTAMP");
            fraction(out, info);
        }
        if kind.has(flag::AUTO_INCREMENT) && leads_a_key(table, info) {
            out.push_str(" AUTO_INCREMENT");
        }
    }
    if !info.comment.is_empty() {
        out.push_str(" COMMENT ");
        string(out, &info.comment);
    }
    Ok(())
}

/// MySQL and MariaDB want an AUTO_INCREMENT column to be the first one of a key; TiDB does not. Without it rows stay the
/// same: their numbers are in the log.
fn leads_a_key(table: &TableInfo, info: &ColumnInfo) -> bool {
    let first = |index: &IndexInfo| {
        let offset = index.idx_cols.first().map(|part| part.offset);
        offset.and_then(|offset| table.cols.get(offset)).is_some_and(|column| column.id == info.id)
    };
    table.pk_is_handle && table.handle_column().is_some_and(|column| column.id == info.id)
        || table.index_info.iter().any(|index| index.is_public() && first(index))
}

fn fraction(out: &mut String, info: &ColumnInfo) {
    if info.field_type.fsp() > 0 {
        let _ = write!(out, "({})", info.field_type.fsp());
    }
}

/// True for a default that is taken from the clock.
pub(super) fn is_now(info: &ColumnInfo) -> bool {
    let upper = info.default.as_ref().map(|literal| literal.text().to_ascii_uppercase()).unwrap_or_default();
    matches!(info.field_type.tp, tp::TIMESTAMP | tp::DATETIME | tp::DATE)
        && upper.starts_with("CURRENT_TIMESTAMP")
}

pub(super) fn default(out: &mut String, info: &ColumnInfo, target: &Target) -> Result<(), Impossible> {
    let kind = &info.field_type;
    if kind.has(flag::AUTO_INCREMENT) {
        return Ok(());
    }
    if kind.tp == tp::BIT
        && let Some(bits) = &info.default_bit
    {
        out.push_str(" DEFAULT b'");
        let value = bits.iter().fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
        let _ = write!(out, "{value:b}'");
        return Ok(());
    }
    let Some(literal) = &info.default else {
        if !info.not_null() && !kind.has(flag::NO_DEFAULT) {
            out.push_str(" DEFAULT NULL");
        }
        return Ok(());
    };
    let text = literal.text();
    if is_now(info) {
        out.push_str(" DEFAULT CURRENT_TIMESTAMP");
        fraction(out, info);
    } else if info.default_is_expr {
        let lower = text.to_ascii_lowercase();
        if lower.contains("nextval(") && !target.is_mariadb() {
            return Err(Impossible(format!("column {} takes its default from a sequence", info.name())));
        }
        let _ = write!(out, " DEFAULT ({text})");
    } else {
        // MySQL takes a literal default of these types as an expression only.
        let large = matches!(kind.tp, tp::JSON | tp::TINY_BLOB | tp::MEDIUM_BLOB | tp::LONG_BLOB | tp::BLOB);
        out.push_str(if large && !target.is_mariadb() { " DEFAULT (" } else { " DEFAULT " });
        string(out, &text);
        out.push_str(if large && !target.is_mariadb() { ")" } else { "" });
    }
    Ok(())
}

/// An index, unless it is one that MariaDB cannot have and that has no effect on rows.
pub(super) fn key(
    table: &TableInfo,
    index: &IndexInfo,
    target: &Target,
) -> Result<Option<String>, Impossible> {
    let mut parts = Vec::new();
    for part in &*index.idx_cols {
        let info = table.cols.get(part.offset).ok_or_else(|| {
            Impossible(format!("index {} names column {} that is not there", index.name, part.offset))
        })?;
        if info.hidden {
            if target.is_mariadb() {
                if index.is_unique {
                    return Err(Impossible(format!(
                        "MariaDB has no unique index on an expression ({})",
                        index.name
                    )));
                }
                return Ok(None);
            }
            parts.push(format!("({})", info.generated_expr_string));
        } else if part.length > 0 {
            parts.push(format!("{}({})", quoted(info.name()), part.length));
        } else {
            parts.push(quoted(info.name()));
        }
    }
    let parts = parts.join(", ");
    let mut out = match (index.is_primary, index.is_unique) {
        (true, _) => format!("PRIMARY KEY ({parts})"),
        (false, true) => format!("UNIQUE KEY {} ({parts})", quoted(index.name.as_str())),
        (false, false) => format!("KEY {} ({parts})", quoted(index.name.as_str())),
    };
    if !index.comment.is_empty() {
        out.push_str(" COMMENT ");
        string(&mut out, &index.comment);
    }
    if index.is_invisible {
        out.push_str(if target.is_mariadb() { " IGNORED" } else { " INVISIBLE" });
    }
    Ok(Some(out))
}

/// A foreign key as in TiDB's JSON.
#[derive(Debug, Deserialize)]
pub(super) struct ForeignKey {
    pub(super) id: i64,
    #[serde(rename = "fk_name")]
    pub(super) name: Name,
    #[serde(default)]
    ref_schema: Name,
    ref_table: Name,
    ref_cols: Vec<Name>,
    cols: Vec<Name>,
    #[serde(default)]
    on_delete: u8,
    #[serde(default)]
    on_update: u8,
}

impl ForeignKey {
    pub(super) fn render(&self, database: &str) -> String {
        let names =
            |names: &[Name]| names.iter().map(|name| quoted(name.as_str())).collect::<Vec<_>>().join(", ");
        let schema = self.ref_schema.as_str();
        let mut out = format!(
            "CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({})",
            quoted(self.name.as_str()),
            names(&self.cols),
            table_name(if schema.is_empty() { database } else { schema }, self.ref_table.as_str()),
            names(&self.ref_cols)
        );
        for (event, action) in [("DELETE", self.on_delete), ("UPDATE", self.on_update)] {
            let action = match action {
                1 => "RESTRICT",
                2 => "CASCADE",
                3 => "SET NULL",
                4 => "NO ACTION",
                5 => "SET DEFAULT",
                _ => continue,
            };
            let _ = write!(out, " ON {event} {action}");
        }
        out
    }
}

pub(super) fn foreign_keys(table: &TableInfo) -> Result<Vec<ForeignKey>, Impossible> {
    let parsed = table.fk_info.parse::<Option<Vec<ForeignKey>>>();
    Ok(parsed
        .map_err(|error| Impossible(format!("its foreign keys cannot be read: {error}")))?
        .unwrap_or_default())
}

/// A CHECK constraint as in TiDB's JSON.
#[derive(Debug, Deserialize)]
pub(super) struct Check {
    pub(super) id: i64,
    #[serde(rename = "constraint_name")]
    pub(super) name: Name,
    #[serde(rename = "expr_string")]
    expression: String,
    #[serde(default)]
    enforced: bool,
    #[serde(default)]
    state: u8,
}

impl Check {
    pub(super) fn render(&self) -> String {
        format!("CONSTRAINT {} CHECK ({})", quoted(self.name.as_str()), self.expression)
    }
}

/// Those that are in force: one that is not has no effect.
pub(super) fn checks(table: &TableInfo) -> Result<Vec<Check>, Impossible> {
    const PUBLIC: u8 = 5;
    let parsed = table.constraint_info.parse::<Option<Vec<Check>>>();
    let mut checks = parsed
        .map_err(|error| Impossible(format!("its CHECK constraints cannot be read: {error}")))?
        .unwrap_or_default();
    checks.retain(|check| check.enforced && check.state == PUBLIC);
    Ok(checks)
}

/// `PARTITION BY …` for a definition.
pub(super) fn partition_by(out: &mut String, info: &PartitionInfo) -> Result<(), Impossible> {
    let columns = || info.columns.iter().map(|name| quoted(name.as_str())).collect::<Vec<_>>().join(", ");
    let by_columns = !info.columns.is_empty();
    let rule = match info.kind {
        PartitionKind::Range if by_columns => format!("RANGE COLUMNS({})", columns()),
        PartitionKind::Range => format!("RANGE ({})", info.expr),
        PartitionKind::List if by_columns => format!("LIST COLUMNS({})", columns()),
        PartitionKind::List => format!("LIST ({})", info.expr),
        PartitionKind::Hash => format!("HASH ({})", info.expr),
        PartitionKind::Key => format!("KEY ({})", columns()),
        PartitionKind::None | PartitionKind::SystemTime | PartitionKind::Other(_) => {
            return Err(Impossible(format!("partitions of kind {} are not known", u32::from(info.kind))));
        }
    };
    let _ = write!(out, "PARTITION BY {rule}");
    if matches!(info.kind, PartitionKind::Hash | PartitionKind::Key) {
        // Names tell later statements (TRUNCATE PARTITION p1) which one they mean.
        let names: Vec<String> = info
            .definitions
            .iter()
            .map(|definition| format!("PARTITION {}", quoted(definition.name.as_str())))
            .collect();
        let _ = write!(out, " ({})", names.join(", "));
        return Ok(());
    }
    let _ = write!(out, " ({})", definitions(info, info.definitions.iter()));
    Ok(())
}

/// `PARTITION p VALUES …, …` for partitions of a range or list.
pub(super) fn definitions<'d>(
    info: &PartitionInfo,
    definitions: impl Iterator<Item = &'d PartitionDefinition>,
) -> String {
    let mut out = String::new();
    for definition in definitions {
        out.push_str(if out.is_empty() { "PARTITION " } else { ", PARTITION " });
        identifier(&mut out, definition.name.as_str());
        if info.kind == PartitionKind::Range {
            let _ = write!(out, " VALUES LESS THAN ({})", definition.less_than.join(", "));
        } else {
            let tuples: Vec<_> = definition.in_values.iter().map(|tuple| tuple.to_vec()).collect();
            list_values(&mut out, &tuples);
        }
        if !definition.comment.is_empty() {
            out.push_str(" COMMENT ");
            string(&mut out, &definition.comment);
        }
    }
    out
}

fn list_values(out: &mut String, tuples: &[Vec<String>]) {
    // TiDB keeps the default partition of a list as the word or as no value at all.
    if tuples.is_empty()
        || tuples.iter().any(|tuple| tuple.len() == 1 && tuple[0].eq_ignore_ascii_case("default"))
    {
        out.push_str(" DEFAULT");
        return;
    }
    let values: Vec<String> =
        tuples
            .iter()
            .map(|tuple| {
                if let [value] = tuple.as_slice() { value.clone() } else { format!("({})", tuple.join(", ")) }
            })
            .collect();
    let _ = write!(out, " VALUES IN ({})", values.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mysql::ddl::token::{Backslash, tokenize};

    /// The user was in another database than the view's.
    #[test]
    fn a_view_names_its_tables_with_their_database() {
        let view = |rest: &str| -> TableInfo {
            let column = |name: &str| format!(r#"{{"id":1,"name":{{"O":"{name}","L":"{name}"}},"state":5}}"#);
            let json = format!(
                r#"{{"id":1,"name":{{"O":"v","L":"v"}},"cols":[{},{}]{rest}}}"#,
                column("id"),
                column("x`y")
            );
            serde_json::from_str(&json).unwrap()
        };
        let selected =
            view(r#","view":{"view_select":"SELECT `id` AS `id`,'C:\\\\' AS `x``y` FROM `a`.`t`"}"#);
        for (head, tail) in [
            ("CREATE ALGORITHM = UNDEFINED DEFINER = CURRENT_USER SQL SECURITY DEFINER", ""),
            (
                "CREATE OR REPLACE ALGORITHM = MERGE DEFINER = `r`@`%` SQL SECURITY INVOKER",
                " WITH LOCAL CHECK OPTION",
            ),
        ] {
            let statement = format!("{head} VIEW `b`.`v` (`id`,`x``y`) AS SELECT `id`,'C:\\' FROM `t`{tail}");
            let tokens = tokenize(&statement, Backslash::Plain);
            let tokens = Tokens::new(&statement, &tokens, Backslash::Plain);
            let expected = format!(
                r"{head} VIEW `b`.`v` (`id`, `x``y`) AS SELECT `id` AS `id`,'C:\\' AS `x``y` FROM `a`.`t`{tail}"
            );
            assert_eq!(create_view(&tokens, "b", &selected).unwrap(), expected);
            assert!(create_view(&tokens, "b", &view("")).is_err());
        }
    }
}
