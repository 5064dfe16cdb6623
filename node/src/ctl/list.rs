//! `pumps`, `drainers`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tidb::ts::Tso;

use super::args::Args;
use super::{Report, table};
use crate::pd::Pd;
use crate::registry::{Entry, NodeKind, NodeState, Registry};

const HEADER: [&str; 7] = ["NodeID", "Addr", "State", "MaxCommitTS", "UpdateTime", "Alive", "Lag"];

pub(super) async fn list(
    args: &Args,
    pd: &Pd,
    registry: &Registry,
    kind: NodeKind,
) -> anyhow::Result<Report> {
    let entries = registry.list(kind).await?;
    let now = pd.tso().await?;
    let hidden = |entry: &Entry| entry.state() == Some(NodeState::Offline) && !args.show_offline_nodes;
    let (offline, shown): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| hidden(entry));
    let rows: Vec<_> = shown.iter().map(|entry| row(entry, now, &args.time_zone)).collect();
    let mut text = table::render(&HEADER, &rows, &[3, 6]);
    if shown.is_empty() {
        text = format!("no {kind} is registered\n");
    }
    if !offline.is_empty() {
        text.push_str(&format!("({} offline; -show-offline-nodes shows them)\n", offline.len()));
    }
    let json = shown.iter().map(|entry| object(entry, now, &args.time_zone)).collect();
    Ok(Report { text, json })
}

/// A standby stands beside the list and has no state of the original's.
fn state(entry: &Entry) -> &'static str {
    entry.state().map_or("standby", NodeState::name)
}

/// Seconds between PD's present and the node's maxCommitTS; none before the first commit and for who drains no more.
fn lag(entry: &Entry, now: Tso) -> Option<f64> {
    let record = entry.record.as_ref()?;
    let reached = record.max_commit_ts.0;
    (!reached.is_zero() && record.state != NodeState::Offline).then(|| now.seconds_since(reached))
}

/// The original shows it to the second.
pub(super) fn time(ts: Tso, zone: &TimeZone) -> String {
    if ts.is_zero() {
        return "-".to_owned();
    }
    let seconds = i64::try_from(ts.physical_ms() / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(
        |_| format!("TSO {ts}"),
        |time| time.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %z").to_string(),
    )
}

fn row(entry: &Entry, now: Tso, zone: &TimeZone) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        entry.id.clone(),
        entry.host().to_owned(),
        state(entry).to_owned(),
        entry.record.as_ref().map_or_else(dash, |record| record.max_commit_ts.to_string()),
        entry.record.as_ref().map_or_else(dash, |record| time(record.update_ts, zone)),
        if entry.is_alive(now) { "yes" } else { "no" }.to_owned(),
        lag(entry, now).map_or_else(dash, |seconds| format!("{seconds:.1}s")),
    ]
}

fn object(entry: &Entry, now: Tso, zone: &TimeZone) -> Value {
    json!({
        "NodeID": entry.id,
        "Addr": entry.host(),
        "State": state(entry),
        "MaxCommitTS": entry.record.as_ref().map(|record| record.max_commit_ts),
        "UpdateTime": entry.record.as_ref().map(|record| time(record.update_ts, zone)),
        "Alive": entry.is_alive(now),
        "LagSeconds": lag(entry, now),
        "Version": entry.side.as_ref().map(|side| &side.version),
        "Facts": entry.side.as_ref().map(|side| &side.facts),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{NodeRecord, Side};
    use tidb::ts::CommitTs;

    #[test]
    fn rows() {
        let mut record = NodeRecord::new("p:8250", "10.0.0.1:8250", NodeState::Online);
        record.max_commit_ts = CommitTs(Tso::from_parts(1_556_443_795_000, 3));
        record.update_ts = Tso::from_parts(1_556_443_797_500, 0);
        let entry = Entry { id: "p:8250".to_owned(), record: Some(record), side: None, mod_revision: 1 };
        let now = Tso::from_parts(1_556_443_797_900, 0);
        assert_eq!(
            row(&entry, now, &TimeZone::UTC),
            [
                "p:8250",
                "10.0.0.1:8250",
                "online",
                "408012402196480003",
                "2019-04-28 09:29:57 +0000",
                "yes",
                "2.9s"
            ]
        );
        let later = Tso::from_parts(1_556_443_899_000, 0);
        assert_eq!(
            row(&entry, later, &TimeZone::get("Asia/Shanghai").unwrap())[4..6],
            ["2019-04-28 17:29:57 +0800", "no"]
        );
        let standby =
            Entry { id: "d".to_owned(), record: None, side: Some(Side::new("d", "h:1")), mod_revision: 0 };
        assert_eq!(row(&standby, now, &TimeZone::UTC), ["d", "h:1", "standby", "-", "-", "yes", "-"]);
    }
}
