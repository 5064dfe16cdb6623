//! The names of a RENAME TABLE whose job does not list them (TiDB before 7.1): from its statement. Pure.
//!
//! The job lists a definition per step, so which table a step renames is known, and where that is; what the statement calls
//! it must agree. A name without a database belongs to the session's, which is that of any table that is so named.

use std::collections::HashMap;

use tidb::model::{InvolvingSchema, Job, TableInfo};

use super::Definitions;
use crate::statement::renamed_tables;

/// The pairs of the job's steps: from, to, from, to. An error says what the job lacks.
pub(super) fn of_statement(
    job: &Job,
    tables: &[TableInfo],
    definitions: &Definitions,
) -> Result<Vec<InvolvingSchema>, &'static str> {
    let steps = renamed_tables(&job.query).filter(|steps| steps.len() == tables.len());
    let steps = steps.ok_or("list of its names, and no statement that has one for each of its tables")?;
    let mut at: HashMap<i64, (String, String)> = HashMap::new();
    let mut session = None;
    let mut places = Vec::with_capacity(steps.len());
    for ((from, to), table) in steps.into_iter().zip(tables) {
        // Where a table renamed before is now waits for the session's database to be known.
        let known =
            definitions.table(table.id).map(|known| (known.database.clone(), known.table().to_owned()));
        let first = !at.contains_key(&table.id);
        let (database, name) = match at.remove(&table.id).or(known) {
            Some(place) => place,
            None => return Err("list of its names, and a table that no earlier job made"),
        };
        let same = |a: &str, b: &str| a.to_lowercase() == b.to_lowercase();
        let fits = same(&from.table, &name)
            && from.database.as_deref().is_none_or(|named| !first || same(named, &database));
        if !fits {
            return Err("list of its names, and a statement whose names are not those of its tables");
        }
        if from.database.is_none() && first {
            session = Some(database.clone());
        }
        at.insert(table.id, (to.database.clone().unwrap_or_default(), to.table.clone()));
        places.push((from.database.or(first.then_some(database)), from.table, to));
    }
    let session = session.unwrap_or_else(|| job.schema_name.clone());
    let place = |database: Option<String>, table: String| InvolvingSchema {
        database: database.unwrap_or_else(|| session.clone()),
        table,
        ..InvolvingSchema::default()
    };
    Ok(places
        .into_iter()
        .flat_map(|(database, table, to)| [place(database, table), place(to.database, to.table)])
        .collect())
}
