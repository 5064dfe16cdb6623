//! What a TiDB target runs: the statement as it stands, unless that would mean something else there. Pure.
//!
//! - Where data lies – TiFlash replicas, placement, resource groups – is each cluster's own: left out.
//! - `CURRENT_TIMESTAMP` fills the rows that are there with what it was upstream.
//! - A literal default of a TIMESTAMP was given in the time zone of the user's session, which few jobs tell: it is taken
//!   from the definition, which has it in UTC. What goes by that zone otherwise (a conversion, UNIX_TIMESTAMP of a text)
//!   runs in it, or is refused if it is not known.
//! - A table named without its database is looked for in the table's own; the user may have been in another one.

use std::ops::Range;

use tidb::model::{ActionType, ColumnInfo, TableInfo, tp};

use super::alter::{body, column_at, is_partitioning, micros, modified};
use super::convert::{by_zone, refuse_by_day};
use super::create::{Impossible, is_now};
use super::plan::{Plan, Step, info, partner};
use super::statement::Statement;
use super::token::{Kind, Tokens};
use super::zone::Zone;
use crate::event::Ddl;
use crate::mysql::literal::string;

/// Other text for some places of a statement.
type Edits = Vec<(Range<usize>, String)>;

/// The plan for a schema change whose statement runs as it stands.
pub(super) fn plan(ddl: &Ddl, statement: &Statement) -> Result<Plan, Impossible> {
    let action = ActionType::from(ddl.entry.action.unsigned_abs());
    if is_of_its_cluster(action) {
        return Ok(Plan::Nothing("where data lies and what it may use is each cluster's own"));
    }
    let infos = |tables: &[std::sync::Arc<crate::schema::Table>]| {
        tables.iter().map(|table| info(table)).collect::<Result<Vec<_>, _>>()
    };
    let (before, after) = (infos(&ddl.before)?, infos(&ddl.after)?);
    let all = statement.tokens();
    let mut edits: Edits =
        statement.comments("/*T![placement]").into_iter().map(|range| (range, String::new())).collect();
    references(ddl, &all, &mut edits)?;
    let (old, new) = (before.first(), after.first());
    let bounds = new.map(|table| bounds(&all, table)).unwrap_or_default();
    let clock = match (old, new) {
        (Some(before), Some(after)) => clock(before, after)?,
        _ => None,
    };
    let zone = if goes_by_zone(&all, old, new, bounds.len())? {
        Some(zone(ddl)?)
    } else {
        edits.extend(bounds);
        let parts = all.statements();
        // Statements that make several tables are one for each.
        let several = action == ActionType::CreateTables;
        for (number, part) in parts.iter().enumerate() {
            if let Some(table) = after.get(if several { number } else { 0 }) {
                defaults(part, table, &mut edits)?;
            }
        }
        if several && parts.len() != after.len() {
            return Err(Impossible(format!("it makes {} tables in {} statements", after.len(), parts.len())));
        }
        None
    };
    if clock.is_some() && zone.as_ref().is_some_and(|zone| !zone.is_utc()) {
        return Err(Impossible(
            "it fills a column from the clock and goes by the session's time zone as well: run it in two statements".to_owned(),
        ));
    }
    let time_zone = zone.filter(|zone| !zone.is_utc()).map(|zone| zone.name().to_owned());
    let step = |text| Step { timestamp: clock, time_zone: time_zone.clone(), ..Step::in_current(ddl, text) };
    Ok(Plan::Run(statement.split(edits).into_iter().map(step).collect()))
}

/// True for what is about a cluster's own nodes and resources.
fn is_of_its_cluster(action: ActionType) -> bool {
    matches!(
        action,
        ActionType::SetTiFlashReplica
            | ActionType::UpdateTiFlashStatus
            | ActionType::CreatePlacementPolicy
            | ActionType::AlterPlacementPolicy
            | ActionType::DropPlacementPolicy
            | ActionType::AlterTablePartitionPlacement
            | ActionType::ModifySchemaPlacement
            | ActionType::AlterTablePlacement
            | ActionType::CreateResourceGroup
            | ActionType::AlterResourceGroup
            | ActionType::DropResourceGroup
    )
}

/// When the rows that are there got their `CURRENT_TIMESTAMP`, as Unix time in microseconds.
fn clock(before: &TableInfo, after: &TableInfo) -> Result<Option<i64>, Impossible> {
    let new = |column: &&ColumnInfo| before.column_by_name(column.name()).is_none() && is_now(column);
    let moments = after.public_columns().filter(new).filter_map(|column| {
        let origin = column.origin_default.as_ref()?;
        micros(&origin.text())
    });
    let moments: Vec<i64> = moments.collect();
    if moments.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(Impossible(
            "it fills columns from the clock, some in UTC and some in the time zone of the upstream's session: run it in two \
             statements"
                .to_owned(),
        ));
    }
    Ok(moments.first().copied())
}

fn zone(ddl: &Ddl) -> Result<Zone, Impossible> {
    Zone::of(ddl).ok_or_else(|| {
        Impossible(
            "it depends on the time zone of the upstream's session (a conversion between TIMESTAMP and another type, or \
             UNIX_TIMESTAMP of a text), which its job does not tell; here that is UTC"
                .to_owned(),
        )
    })
}

/// True if there is UNIX_TIMESTAMP of a text here.
fn is_text_as_time(all: &Tokens<'_>, at: usize) -> bool {
    all.is(at, &["UNIX_TIMESTAMP", "("]) && all.kind(at + 2) == Some(Kind::String)
}

/// Bounds of ranges that are UNIX_TIMESTAMP of a text, as the definition has them: numbers.
fn bounds(all: &Tokens<'_>, table: &TableInfo) -> Edits {
    let Some(partitions) = table.partitions() else { return Edits::new() };
    let bound = |at: usize| {
        let head = ["VALUES", "LESS", "THAN", "("];
        let found = all.is(at, &["PARTITION"]) && all.is(at + 2, &head) && is_text_as_time(all, at + 6);
        let name = all.name(at + 1).filter(|_| found && all.is(at + 9, &[")"]))?;
        let made =
            partitions.definitions.iter().find(|made| made.name.as_str().eq_ignore_ascii_case(&name))?;
        let bound = made.less_than.first().filter(|bound| bound.parse::<u64>().is_ok())?;
        Some((all.span(at + 6..at + 10)?, bound.clone()))
    };
    (0..all.len()).filter_map(bound).collect()
}

/// True if the statement means something else in another time zone, apart from defaults and `known` bounds of ranges.
fn goes_by_zone(
    all: &Tokens<'_>,
    before: Option<&TableInfo>,
    after: Option<&TableInfo>,
    known: usize,
) -> Result<bool, Impossible> {
    if (0..all.len()).filter(|at| is_text_as_time(all, *at)).count() > known {
        return Ok(true);
    }
    let (Some(before), Some(after)) = (before, after) else { return Ok(false) };
    let Ok(rest) = body(all) else { return Ok(false) };
    if is_partitioning(&rest) {
        return Ok(false);
    }
    let mut found = false;
    for part in rest.parts() {
        let Some(modified) = modified(&part)? else { continue };
        let columns = (before.column_by_name(&modified.old), after.column_by_name(&modified.new));
        if let (Some(old), Some(new)) = columns {
            refuse_by_day(old, new)?;
            found |= by_zone(old, new);
        }
    }
    Ok(found)
}

/// Definitions of columns in a statement: the name, and what follows it.
fn definitions<'t>(all: &Tokens<'t>) -> Result<Vec<(String, Tokens<'t>)>, Impossible> {
    let mut out = Vec::new();
    let mut add = |part: &Tokens<'t>, at: usize| {
        if let Some(name) = part.name(at) {
            out.push((name, part.from(at + 1)));
        }
    };
    if all.starts(&["CREATE"]) {
        let open = (0..all.len()).find(|at| all.is(*at, &["("]));
        let brackets = open.and_then(|open| Some(all.slice(open + 1..all.closing(open)?)));
        brackets.iter().flat_map(Tokens::parts).for_each(|part| add(&part, 0));
        return Ok(out);
    }
    let Ok(rest) = body(all) else { return Ok(out) };
    if is_partitioning(&rest) {
        return Ok(out);
    }
    for part in rest.parts() {
        if let Some(at) = column_at(&part, "ADD") {
            if part.is(at, &["("]) {
                let close = part.closing(at).unwrap_or(part.len());
                part.slice(at + 1..close).parts().iter().for_each(|inner| add(inner, 0));
            } else {
                add(&part, if part.is(at, &["IF", "NOT", "EXISTS"]) { at + 3 } else { at });
            }
        } else if let Some(modified) = modified(&part)? {
            add(&part, modified.at);
        } else if let Some(at) = column_at(&part, "ALTER") {
            add(&part, at);
        }
    }
    Ok(out)
}

/// Literal defaults of TIMESTAMP columns as the definition has them: in UTC.
fn defaults(statement: &Tokens<'_>, table: &TableInfo, edits: &mut Edits) -> Result<(), Impossible> {
    for (name, definition) in definitions(statement)? {
        let column = table.column_by_name(&name).filter(|column| column.field_type.tp == tp::TIMESTAMP);
        let Some(column) = column.filter(|column| !is_now(column)) else { continue };
        let Some(instant) = column.default.as_ref().map(|literal| literal.text().into_owned()) else {
            continue;
        };
        let Some(at) = (0..definition.len()).find(|at| definition.is(*at, &["DEFAULT"])) else { continue };
        // The zero value is the same everywhere.
        if instant.starts_with("0000-00-00") {
            continue;
        }
        let text = match (definition.kind(at + 1), definition.kind(at + 2)) {
            (Some(Kind::String), _) => at + 1..at + 2,
            // _UTF8MB4'…', TIMESTAMP'…'
            (Some(Kind::Word), Some(Kind::String)) => at + 1..at + 3,
            (Some(Kind::Word), _) => at + 1..at + 2,
            _ => {
                return Err(Impossible(format!(
                    "the default of column {name} depends on the time zone of the upstream's session; in UTC it is {instant}"
                )));
            }
        };
        let mut literal = String::new();
        string(&mut literal, &instant);
        edits.extend(definition.span(text).map(|span| (span, literal)));
    }
    Ok(())
}

/// Other tables that the statement names without their database.
fn references(ddl: &Ddl, all: &Tokens<'_>, edits: &mut Edits) -> Result<(), Impossible> {
    let with = (0..all.len()).find(|at| all.is(*at, &["WITH", "TABLE"]));
    if let Some(at) =
        with.filter(|_| ddl.entry.action.unsigned_abs() == ActionType::ExchangeTablePartition.number())
    {
        let partner = partner(ddl).ok_or_else(|| {
            Impossible("the table with which the partition was exchanged is not in the log".to_owned())
        })?;
        let end = if all.is(at + 3, &["."]) { at + 5 } else { at + 3 };
        edits.extend(all.span(at + 2..end).map(|span| (span, partner)));
    }
    if ddl.entry.action.unsigned_abs() == ActionType::CreateTable.number() {
        let start = if all.is(2, &["IF", "NOT", "EXISTS"]) { 5 } else { 2 };
        let like = |at: usize| all.is(at, &["LIKE"]) || all.is(at, &["(", "LIKE"]);
        // A name without its database says that the user was in the table's own.
        if all.is(start + 1, &["."]) && like(start + 3) {
            let name = start + 4 + usize::from(all.is(start + 3, &["("]));
            if !all.is(name + 1, &["."]) {
                return Err(Impossible(format!(
                    "it is made like {}, in the database in which the upstream's session was, which is not in the log",
                    all.raw(name)
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
