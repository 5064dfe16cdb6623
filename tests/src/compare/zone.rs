//! A recorded state as a session in another time zone reads it: TIMESTAMP is an instant and shifts, everything else is not.

use anyhow::{Context as _, Result, ensure};
use jiff::SignedDuration;
use jiff::civil::DateTime;
use mysql_async::{Conn, prelude::Queryable as _};

use super::{Comparison, column_definition, compare};
use crate::recording::{Cell, State, Table};

/// Compares as [`compare`] does, with the session at so many minutes east of UTC. The session is in UTC before and after.
///
/// # Errors
/// Also if no TIMESTAMP is in the state: the zone would say nothing.
pub async fn compare_east(state: &State, minutes: i16, session: &mut Conn) -> Result<Comparison> {
    let shifted = east(state, minutes)?;
    let zone =
        format!("{}{:02}:{:02}", if minutes < 0 { '-' } else { '+' }, minutes.abs() / 60, minutes.abs() % 60);
    session.query_drop(format!("SET time_zone = '{zone}'")).await?;
    let outcome = compare(&shifted, session).await?;
    session.query_drop("SET time_zone = '+00:00'").await?;
    Ok(outcome)
}

fn east(state: &State, minutes: i16) -> Result<State> {
    let mut state = state.clone();
    let mut shifted = 0;
    for (name, table) in &mut state.tables {
        let places = timestamps(table);
        for row in &mut table.rows {
            for &place in &places {
                if let Cell::Bytes(text) = &mut row[place] {
                    *text = later(text, minutes).with_context(|| format!("a TIMESTAMP of {name}"))?;
                    shifted += 1;
                }
            }
        }
    }
    ensure!(shifted > 0, "there is no TIMESTAMP in the state");
    Ok(state)
}

fn timestamps(table: &Table) -> Vec<usize> {
    let is_timestamp = |(name, definition): (String, &str)| {
        let place = table.columns.iter().position(|column| *column == name)?;
        definition.starts_with("timestamp").then_some(place)
    };
    table.create.lines().filter_map(column_definition).filter_map(is_timestamp).collect()
}

/// The same instant on a clock that is so many minutes ahead. The zero date is no instant.
fn later(text: &[u8], minutes: i16) -> Result<Vec<u8>> {
    let text = str::from_utf8(text)?;
    if text.starts_with("0000-00-00") {
        return Ok(text.into());
    }
    let (seconds, fraction) = text.split_at_checked(19).context("shorter than a date and time")?;
    let moved: DateTime = seconds.parse().with_context(|| text.to_owned())?;
    let moved = moved.checked_add(SignedDuration::from_mins(minutes.into()))?;
    Ok(format!("{}{fraction}", moved.strftime("%Y-%m-%d %H:%M:%S")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_move_and_clocks_do_not() {
        let cells = |texts: &[&str]| texts.iter().map(|text| Cell::Bytes((*text).into())).collect::<Vec<_>>();
        let table = |rows| {
            Table {
            kind: "BASE TABLE".into(),
            create: "CREATE TABLE `t` (\n  `timestamp` datetime DEFAULT NULL,\n  `a` timestamp(3) NULL DEFAULT NULL\n)"
                .into(),
            columns: vec!["timestamp".into(), "a".into()],
            rows,
        }
        };
        let state =
            |rows| State { commit_ts: 1, tables: [("d.t".to_owned(), table(rows))].into_iter().collect() };
        let before = state(vec![
            cells(&["2024-02-29 01:00:00", "2024-02-29 01:00:00.125"]),
            cells(&["2024-01-01 00:00:00", "0000-00-00 00:00:00.000"]),
            vec![Cell::Null, Cell::Null],
        ]);
        let after = east(&before, -150).unwrap();
        let expected = [
            cells(&["2024-02-29 01:00:00", "2024-02-28 22:30:00.125"]),
            cells(&["2024-01-01 00:00:00", "0000-00-00 00:00:00.000"]),
            vec![Cell::Null, Cell::Null],
        ];
        assert_eq!(after.tables["d.t"].rows, expected);
        assert!(east(&state(vec![]), 60).is_err());
    }
}
