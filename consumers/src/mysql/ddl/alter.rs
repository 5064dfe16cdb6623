//! `ALTER TABLE` for MySQL and MariaDB.
//!
//! The statement says which columns, indexes and options change and where columns go; how a column, index or foreign key
//! looks is taken from the definition after the change, so that charsets, collations and defaults are TiDB's and no
//! server's default takes part. What only TiDB knows and what has no effect on rows is left out; what is not known is
//! refused.

use std::collections::HashSet;

use tidb::model::{ColumnInfo, PartitionDefinition, PartitionInfo, PartitionKind, TableInfo, tp};

use super::convert::{self, Surroundings};
use super::create::{
    Impossible, attributes, checks, default, definitions, foreign_keys, is_now, key, partition_by,
};
use super::token::Tokens;
use crate::mysql::charset;
use crate::mysql::literal::{quoted, string};
use crate::mysql::session::Target;

/// A part of the statement to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) text: String,
    /// Unix time, in microseconds, from which `CURRENT_TIMESTAMP` fills the rows that are there.
    pub(super) timestamp: Option<i64>,
    /// 0: before, 1: with the others, 2: after them.
    pub(super) turn: u8,
}

impl Spec {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), timestamp: None, turn: 1 }
    }
}

/// Options that TiDB ignores or that only TiDB has; none has an effect on rows.
const WITHOUT_EFFECT: [&str; 34] = [
    "SHARD_ROW_ID_BITS",
    "PRE_SPLIT_REGIONS",
    "AUTO_ID_CACHE",
    "AUTO_RANDOM_BASE",
    "TTL",
    "TTL_ENABLE",
    "TTL_JOB_INTERVAL",
    "PLACEMENT",
    "CACHE",
    "NOCACHE",
    "ATTRIBUTES",
    "STATS_OPTIONS",
    "STATS_BUCKETS",
    "STATS_TOPN",
    "STATS_SAMPLE_RATE",
    "STATS_COL_CHOICE",
    "STATS_COL_LIST",
    "STATS_AUTO_RECALC",
    "STATS_PERSISTENT",
    "STATS_SAMPLE_PAGES",
    "ALGORITHM",
    "LOCK",
    "ENGINE",
    "COMPRESSION",
    "ROW_FORMAT",
    "KEY_BLOCK_SIZE",
    "CONNECTION",
    "CHECKSUM",
    "DELAY_KEY_WRITE",
    "AVG_ROW_LENGTH",
    "MAX_ROWS",
    "MIN_ROWS",
    "PACK_KEYS",
    "ENCRYPTION",
];

/// What a statement changes, and where it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    /// The table before.
    pub(super) before: &'a TableInfo,
    /// The table after.
    pub(super) after: &'a TableInfo,
    /// Its database.
    pub(super) database: &'a str,
    /// Of an exchange: the plain table, qualified. The statement may name it by the user's current database.
    pub(super) partner: Option<&'a str>,
    /// Where it runs.
    pub(super) target: &'a Target,
    /// The upstream ran it in UTC, as it runs here.
    pub(super) in_utc: bool,
}

struct Alter<'a> {
    change: Change<'a>,
    before: &'a TableInfo,
    after: &'a TableInfo,
    target: &'a Target,
    out: Vec<Spec>,
}

/// What follows the table's name in an `ALTER TABLE` statement.
pub(super) fn body<'t>(all: &Tokens<'t>) -> Result<Tokens<'t>, Impossible> {
    let mut start = 0;
    while all.is(start, &["ALTER"]) || all.is(start, &["IGNORE"]) || all.is(start, &["TABLE"]) {
        start += 1;
    }
    if start < 2 {
        return Err(Impossible("the statement is no ALTER TABLE".to_owned()));
    }
    // The name: one part or two.
    start += if all.is(start + 1, &["."]) { 3 } else { 1 };
    let mut end = all.len();
    while end > start && all.is(end - 1, &[";"]) {
        end -= 1;
    }
    Ok(all.slice(start..end))
}

/// The parts of an `ALTER TABLE` statement as the target can run them. None: nothing is left to do.
pub(super) fn specs(statement: &Tokens<'_>, change: Change<'_>) -> Result<Vec<Spec>, Impossible> {
    let rest = body(statement)?;
    let Change { before, after, target, .. } = change;
    let mut alter = Alter { change, before, after, target, out: Vec::new() };
    if is_partitioning(&rest) {
        alter.partitioning(&rest)?;
    } else if !rest.is_empty() {
        for part in rest.parts() {
            alter.spec(&part)?;
        }
        alter.checks()?;
        alter.new_keys()?;
    }
    Ok(alter.out)
}

/// Where the column is that a spec with this verb is about, if it is about one: the word COLUMN may be left out (before
/// 6.0 the statement is the user's own).
pub(super) fn column_at(part: &Tokens<'_>, verb: &str) -> Option<usize> {
    const OTHERS: [&str; 10] = [
        "INDEX",
        "KEY",
        "UNIQUE",
        "PRIMARY",
        "FULLTEXT",
        "SPATIAL",
        "CONSTRAINT",
        "FOREIGN",
        "CHECK",
        "PARTITION",
    ];
    if !part.starts(&[verb]) || part.len() < 2 || OTHERS.iter().any(|word| part.is(1, &[word])) {
        return None;
    }
    Some(if part.is(1, &["COLUMN"]) { 2 } else { 1 })
}

/// A column that a MODIFY or CHANGE is about.
pub(super) struct Modified {
    /// Its name before.
    pub(super) old: String,
    /// Its name after.
    pub(super) new: String,
    /// Where the name after stands.
    pub(super) at: usize,
    /// It need not be there.
    pub(super) if_exists: bool,
}

/// The column that a part changes, if it is MODIFY or CHANGE.
pub(super) fn modified(part: &Tokens<'_>) -> Result<Option<Modified>, Impossible> {
    let change = part.starts(&["CHANGE"]);
    if !change && !part.starts(&["MODIFY"]) {
        return Ok(None);
    }
    let mut at = 1 + usize::from(part.is(1, &["COLUMN"]));
    let if_exists = part.is(at, &["IF", "EXISTS"]);
    at += if if_exists { 2 } else { 0 };
    let unnamed = || Impossible(format!("`{}` names no column", part.joined()));
    let old = part.name(at).ok_or_else(unnamed)?;
    at += usize::from(change);
    let new = part.name(at).ok_or_else(unnamed)?;
    Ok(Some(Modified { old, new, at, if_exists }))
}

/// True for specs that name partitions: their commas do not end them.
pub(super) fn is_partitioning(rest: &Tokens<'_>) -> bool {
    const VERBS: [&str; 9] =
        ["ADD", "DROP", "TRUNCATE", "REORGANIZE", "EXCHANGE", "COALESCE", "FIRST", "LAST", "REBUILD"];
    VERBS.iter().any(|verb| rest.starts(&[verb, "PARTITION"]))
        || rest.starts(&["PARTITION", "BY"])
        || rest.starts(&["REMOVE", "PARTITIONING"])
        || rest.starts(&["MERGE", "FIRST", "PARTITION"])
        || rest.starts(&["SPLIT", "MAXVALUE", "PARTITION"])
        || rest.starts(&["PARTITION"])
}

impl Alter<'_> {
    fn push(&mut self, text: impl Into<String>) {
        self.out.push(Spec::new(text));
    }

    fn partitioning(&mut self, rest: &Tokens<'_>) -> Result<(), Impossible> {
        let without_effect = |index: usize| WITHOUT_EFFECT.iter().any(|word| rest.is(index, &[word]));
        if rest.starts(&["PARTITION", "BY"]) {
            let info = self.after.partitions();
            let info =
                info.ok_or_else(|| Impossible("its partitions are not in the definition".to_owned()))?;
            let mut text = String::new();
            partition_by(&mut text, info)?;
            self.push(text);
            return Ok(());
        }
        if rest.starts(&["PARTITION"]) {
            // PARTITION p PLACEMENT POLICY …, PARTITION p ATTRIBUTES …
            if without_effect(2) {
                return Ok(());
            }
            return Err(Impossible(format!("`{}` is not known", rest.joined())));
        }
        const BY_DEFINITION: [&str; 7] = ["ADD", "DROP", "REORGANIZE", "FIRST", "LAST", "MERGE", "SPLIT"];
        if let (Some(before), Some(after)) = (self.before.partitions(), self.after.partitions())
            && matches!(after.kind, PartitionKind::Range | PartitionKind::List)
            && BY_DEFINITION.iter().any(|word| rest.starts(&[word]))
        {
            self.new_partitions(before, after);
            return Ok(());
        }
        let one_of_several = rest.starts(&["TRUNCATE"]) || rest.starts(&["EXCHANGE"]);
        if one_of_several && self.before.partitions().is_some_and(|info| info.kind == PartitionKind::Key) {
            return Err(Impossible(
                "it is about one partition of a table partitioned by KEY, and which rows are in it is decided by another hash \
                 upstream than here: change those rows by hand as the upstream shows them"
                    .to_owned(),
            ));
        }
        if rest.starts(&["EXCHANGE"]) {
            return self.exchange(rest);
        }
        self.push(rest.joined());
        Ok(())
    }

    fn exchange(&mut self, rest: &Tokens<'_>) -> Result<(), Impossible> {
        let partition =
            rest.name(2).ok_or_else(|| Impossible(format!("`{}` names no partition", rest.joined())))?;
        let partner = self.change.partner.ok_or_else(|| {
            Impossible("the table with which the partition was exchanged is not in the log".to_owned())
        })?;
        // MariaDB validates always and has no word for it.
        let without = rest.is(rest.len().saturating_sub(2), &["WITHOUT", "VALIDATION"]);
        let validation = if without && !self.target.is_mariadb() { " WITHOUT VALIDATION" } else { "" };
        self.push(format!("EXCHANGE PARTITION {} WITH TABLE {partner}{validation}", quoted(&partition)));
        Ok(())
    }

    /// Ranges and lists from what the definitions say: their bounds are values there, whatever expression, time zone or
    /// interval the statement gave them in.
    fn new_partitions(&mut self, before: &PartitionInfo, after: &PartitionInfo) {
        let had =
            |info: &PartitionInfo, id: i64| info.definitions.iter().any(|definition| definition.id == id);
        let gone: Vec<String> = before
            .definitions
            .iter()
            .filter(|definition| !had(after, definition.id))
            .map(|definition| quoted(definition.name.as_str()))
            .collect();
        let made: Vec<&PartitionDefinition> =
            after.definitions.iter().filter(|definition| !had(before, definition.id)).collect();
        let text = definitions(after, made.iter().copied());
        match (gone.is_empty(), made.is_empty()) {
            (true, true) => {}
            (true, false) => self.push(format!("ADD PARTITION ({text})")),
            (false, true) => self.push(format!("DROP PARTITION {}", gone.join(", "))),
            (false, false) => self.push(format!("REORGANIZE PARTITION {} INTO ({text})", gone.join(", "))),
        }
    }

    fn spec(&mut self, part: &Tokens<'_>) -> Result<(), Impossible> {
        if let Some(at) = column_at(part, "ADD") {
            return self.add_column(part, at);
        }
        if let Some(modified) = modified(part)? {
            return self.modify_column(part, &modified);
        }
        if let Some(at) = column_at(part, "DROP") {
            return self.drop_column(part, at);
        }
        if part.starts(&["ADD"]) {
            // Indexes, foreign keys and CHECK constraints are taken from the definition.
            return Ok(());
        }
        const CHECKS: [&[&str]; 4] =
            [&["DROP", "CHECK"], &["DROP", "CONSTRAINT"], &["ALTER", "CHECK"], &["ALTER", "CONSTRAINT"]];
        if CHECKS.iter().any(|words| part.starts(words)) {
            return Ok(());
        }
        if part.starts(&["ALTER"]) && !part.starts(&["ALTER", "INDEX"]) {
            return self.column_default(part);
        }
        if part.starts(&["DROP", "INDEX"]) || part.starts(&["DROP", "KEY"]) {
            return self.on_index(part, 2, |_, name| format!("DROP INDEX {name}"));
        }
        if part.starts(&["RENAME", "INDEX"]) || part.starts(&["RENAME", "KEY"]) {
            let to = part.name(4).unwrap_or_default();
            return self.on_index(part, 2, |_, name| format!("RENAME INDEX {name} TO {}", quoted(&to)));
        }
        if part.starts(&["ALTER", "INDEX"]) {
            let visible = part.is(3, &["VISIBLE"]);
            return self.on_index(part, 2, |mariadb, name| {
                let state = match (mariadb, visible) {
                    (true, true) => "NOT IGNORED",
                    (true, false) => "IGNORED",
                    (false, true) => "VISIBLE",
                    (false, false) => "INVISIBLE",
                };
                format!("ALTER INDEX {name} {state}")
            });
        }
        if part.starts(&["CONVERT", "TO"]) {
            return self.convert();
        }
        let at = usize::from(part.starts(&["DEFAULT"]));
        if ["CHARACTER", "CHARSET", "COLLATE"].iter().any(|word| part.is(at, &[word])) {
            self.table_charset();
            return Ok(());
        }
        let force = usize::from(part.starts(&["FORCE", "AUTO_INCREMENT"]));
        if part.is(force, &["AUTO_INCREMENT"]) {
            self.push(part.from(force).joined());
            return Ok(());
        }
        if part.starts(&["COMMENT"]) {
            let mut text = "COMMENT = ".to_owned();
            string(&mut text, &self.after.comment);
            self.push(text);
            // Options may follow without a comma.
            return self.spec(&part.from(if part.is(1, &["="]) { 3 } else { 2 }));
        }
        if part.starts(&["DROP", "FOREIGN", "KEY"]) {
            return self.drop_foreign_key(part);
        }
        let passes: [&[&str]; 2] = [&["RENAME", "COLUMN"], &["DROP", "PRIMARY", "KEY"]];
        if passes.iter().any(|words| part.starts(words)) {
            self.push(part.joined());
            return Ok(());
        }
        let without_effect = WITHOUT_EFFECT.iter().any(|word| part.starts(&[word]))
            || part.starts(&["REMOVE", "TTL"])
            || part.starts(&["SET", "TIFLASH"])
            || part.starts(&["ORDER", "BY"])
            || part.starts(&["FORCE"]) && part.len() == 1
            || part.is_empty();
        if without_effect {
            return Ok(());
        }
        Err(Impossible(format!("`{}` is not known", part.joined())))
    }

    fn column<'a>(&self, table: &'a TableInfo, name: &str) -> Option<&'a ColumnInfo> {
        table.column_by_name(name).filter(|column| column.is_public() && !column.hidden)
    }

    fn rendered(&self, column: &ColumnInfo) -> Result<String, Impossible> {
        super::create::column(self.after, column, self.target)
    }

    fn add_column(&mut self, part: &Tokens<'_>, at: usize) -> Result<(), Impossible> {
        if part.is(at, &["("]) {
            let close = part.closing(at).ok_or_else(|| Impossible("a bracket does not close".to_owned()))?;
            for inner in part.slice(at + 1..close).parts() {
                if let Some(name) = inner.name(0) {
                    self.add_one(&name, "")?;
                }
            }
            return Ok(());
        }
        let exists = part.is(at, &["IF", "NOT", "EXISTS"]);
        let at = if exists { at + 3 } else { at };
        let name = part.name(at).ok_or_else(|| Impossible(format!("`{}` names no column", part.joined())))?;
        if exists && self.column(self.before, &name).is_some() {
            return Ok(());
        }
        self.add_one(&name, &place(part))
    }

    fn add_one(&mut self, name: &str, place: &str) -> Result<(), Impossible> {
        let column = self
            .column(self.after, name)
            .ok_or_else(|| Impossible(format!("column {name} is not in the definition after the change")))?;
        let add = |definition: &str| format!("ADD COLUMN {definition}{place}");
        let origin = column.origin_default.as_ref().map(|literal| literal.text().into_owned());
        match origin {
            // Rows that are there have the value of the moment at which the upstream added the column.
            Some(origin) if is_now(column) => {
                let definition = self.rendered(column)?;
                match micros(&origin) {
                    Some(timestamp) => {
                        self.out.push(Spec { timestamp: Some(timestamp), ..Spec::new(add(&definition)) });
                    }
                    None => self.add_with_default(column, &origin, &add)?,
                }
            }
            Some(origin) if column.default_is_expr => self.add_with_default(column, &origin, &add)?,
            _ => {
                let definition = self.rendered(column)?;
                self.push(add(&definition));
            }
        }
        Ok(())
    }

    /// Adds the column with the value that rows have as its default, then gives it the default for new rows.
    fn add_with_default(
        &mut self,
        column: &ColumnInfo,
        origin: &str,
        add: &dyn Fn(&str) -> String,
    ) -> Result<(), Impossible> {
        let mut bare = column.clone();
        (bare.default, bare.default_bit, bare.default_is_expr) = (None, None, false);
        bare.field_type.flag |= tidb::model::flag::NO_DEFAULT;
        let mut definition = self.rendered(&bare)?;
        definition.push_str(" DEFAULT ");
        string(&mut definition, origin);
        self.push(add(&definition));
        let full = self.rendered(column)?;
        self.out.push(Spec { turn: 2, ..Spec::new(format!("MODIFY COLUMN {full}")) });
        Ok(())
    }

    fn modify_column(&mut self, part: &Tokens<'_>, modified: &Modified) -> Result<(), Impossible> {
        let Modified { old, new, if_exists, .. } = modified;
        let before = self.column(self.before, old);
        if *if_exists && before.is_none() {
            return Ok(());
        }
        let column = self
            .column(self.after, new)
            .ok_or_else(|| Impossible(format!("column {new} is not in the definition after the change")))?;
        if let Some(before) = before {
            let keyless = convert::is_keyless(self.after);
            let around = Surroundings { target: self.target, in_utc: self.change.in_utc, keyless };
            convert::refuse(before, column, around)?;
            if let Some(between) = convert::between(before, column) {
                self.out.push(Spec {
                    turn: 0,
                    ..Spec::new(format!("MODIFY COLUMN {} {between} NULL", quoted(before.name())))
                });
            }
        }
        let definition = self.rendered(column)?;
        let verb = if part.starts(&["CHANGE"]) {
            format!("CHANGE COLUMN {}", quoted(old))
        } else {
            "MODIFY COLUMN".to_owned()
        };
        self.push(format!("{verb} {definition}{}", place(part)));
        Ok(())
    }

    /// From the definition: a TIMESTAMP's default was given in the session's time zone.
    fn column_default(&mut self, part: &Tokens<'_>) -> Result<(), Impossible> {
        let at = 1 + usize::from(part.is(1, &["COLUMN"]));
        let name = part.name(at).ok_or_else(|| Impossible(format!("`{}` names no column", part.joined())))?;
        let column = self
            .column(self.after, &name)
            .ok_or_else(|| Impossible(format!("column {name} is not in the definition after the change")))?;
        if part.is(at + 1, &["DROP", "DEFAULT"]) {
            self.push(format!("ALTER COLUMN {} DROP DEFAULT", quoted(column.name())));
        } else if is_now(column) {
            let definition = self.rendered(column)?;
            self.push(format!("MODIFY COLUMN {definition}"));
        } else {
            let mut text = format!("ALTER COLUMN {} SET", quoted(column.name()));
            default(&mut text, column, self.target)?;
            self.push(text);
        }
        Ok(())
    }

    /// CHECK constraints that came or went, or were put in or out of force.
    fn checks(&mut self) -> Result<(), Impossible> {
        let (before, after) = (checks(self.before)?, checks(self.after)?);
        let word = if self.target.is_mariadb() { "CONSTRAINT" } else { "CHECK" };
        for check in before.iter().filter(|check| after.iter().all(|other| other.id != check.id)) {
            self.push(format!("DROP {word} {}", quoted(check.name.as_str())));
        }
        for check in after.iter().filter(|check| before.iter().all(|other| other.id != check.id)) {
            self.push(format!("ADD {}", check.render()));
        }
        Ok(())
    }

    fn drop_column(&mut self, part: &Tokens<'_>, at: usize) -> Result<(), Impossible> {
        let exists = part.is(at, &["IF", "EXISTS"]);
        let name = part.name(if exists { at + 2 } else { at });
        let name = name.ok_or_else(|| Impossible(format!("`{}` names no column", part.joined())))?;
        if !exists || self.column(self.before, &name).is_some() {
            self.push(format!("DROP COLUMN {}", quoted(&name)));
        }
        Ok(())
    }

    /// A spec about an index that was there: left out if the target never got the index.
    fn on_index(
        &mut self,
        part: &Tokens<'_>,
        at: usize,
        text: impl Fn(bool, &str) -> String,
    ) -> Result<(), Impossible> {
        let exists = part.is(at, &["IF", "EXISTS"]);
        let name = part.name(if exists { at + 2 } else { at });
        let name = name.ok_or_else(|| Impossible(format!("`{}` names no index", part.joined())))?;
        let index = self.before.index_info.iter().find(|index| index.name.lower == name.to_lowercase());
        let there = match index {
            Some(index) => key(self.before, index, self.target)?.is_some(),
            None => !exists,
        };
        if there {
            self.push(text(self.target.is_mariadb(), &quoted(&name)));
        }
        Ok(())
    }

    /// MySQL has no IF EXISTS here: one that is not there is left out.
    fn drop_foreign_key(&mut self, part: &Tokens<'_>) -> Result<(), Impossible> {
        let exists = part.is(3, &["IF", "EXISTS"]);
        let name = part.name(if exists { 5 } else { 3 });
        let name = name.ok_or_else(|| Impossible(format!("`{}` names no foreign key", part.joined())))?;
        let lower = name.to_lowercase();
        if !exists || foreign_keys(self.before)?.iter().any(|foreign| foreign.name.lower == lower) {
            self.push(format!("DROP FOREIGN KEY {}", quoted(&name)));
        }
        Ok(())
    }

    fn table_charset(&mut self) {
        let (charset, collate) = charset::for_target(self.target, &self.after.charset, &self.after.collate);
        self.push(format!("CHARACTER SET {charset} COLLATE {collate}"));
    }

    /// The columns one by one: the server's own conversion may choose larger types.
    fn convert(&mut self) -> Result<(), Impossible> {
        self.table_charset();
        for column in self.after.public_columns().filter(|column| !column.hidden && !column.is_generated()) {
            let kind = &column.field_type;
            if kind.is_text() || matches!(kind.tp, tp::ENUM | tp::SET) {
                let mut text = format!("MODIFY COLUMN {} ", quoted(column.name()));
                attributes(&mut text, self.after, column, self.target)?;
                self.push(text);
            }
        }
        Ok(())
    }

    /// Indexes and foreign keys that the definition after the change has in addition.
    fn new_keys(&mut self) -> Result<(), Impossible> {
        let ids: HashSet<i64> = self.before.index_info.iter().map(|index| index.id).collect();
        let names: HashSet<&str> =
            self.before.index_info.iter().map(|index| index.name.lower.as_str()).collect();
        for index in self.after.index_info.iter().filter(|index| index.is_public()) {
            // A lossy type change makes the column's indexes anew, under the same names.
            if ids.contains(&index.id) || names.contains(index.name.lower.as_str()) {
                continue;
            }
            if let Some(text) = key(self.after, index, self.target)? {
                self.push(format!("ADD {text}"));
            }
        }
        let known: HashSet<i64> = foreign_keys(self.before)?.iter().map(|foreign| foreign.id).collect();
        for foreign in foreign_keys(self.after)?.into_iter().filter(|foreign| !known.contains(&foreign.id)) {
            let text = format!("ADD {}", foreign.render(self.change.database));
            self.push(text);
        }
        Ok(())
    }
}

/// ` FIRST` or `` AFTER `x` ``, as the spec ends.
fn place(part: &Tokens<'_>) -> String {
    let last = part.len().saturating_sub(1);
    if part.is(last, &["FIRST"]) {
        return " FIRST".to_owned();
    }
    if last > 0 && part.is(last - 1, &["AFTER"]) {
        return part.name(last).map(|name| format!(" AFTER {}", quoted(&name))).unwrap_or_default();
    }
    String::new()
}

/// A date and time in UTC as Unix time, in microseconds.
pub(super) fn micros(text: &str) -> Option<i64> {
    let time: jiff::civil::DateTime = text.parse().ok()?;
    let instant = jiff::tz::TimeZone::UTC.to_timestamp(time).ok()?;
    Some(instant.as_microsecond()).filter(|micros| *micros > 0)
}

#[cfg(test)]
mod tests;
