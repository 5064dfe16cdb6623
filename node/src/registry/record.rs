//! What stands in etcd: the original's JSON, byte for byte, and our own beside it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidb::ts::{CommitTs, Tso};

/// Which list a node stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum NodeKind {
    Pump,
    Drainer,
}

impl NodeKind {
    /// `pump` or `drainer`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pump => "pump",
            Self::Drainer => "drainer",
        }
    }

    /// Where the original keeps its entries. TiDB lists the pumps' by this prefix and fails over any value it cannot
    /// decode, so nothing else may ever be written here.
    pub const fn main_prefix(self) -> &'static str {
        match self {
            Self::Pump => "/tidb-binlog/v1/pumps/",
            Self::Drainer => "/tidb-binlog/v1/drainers/",
        }
    }

    /// Where ours stand, bound to leases.
    pub const fn side_prefix(self) -> &'static str {
        match self {
            Self::Pump => "/sluice/v1/pumps/",
            Self::Drainer => "/sluice/v1/drainers/",
        }
    }
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A node's state, as the original names them. TiDB writes to a pump if and only if it is `online`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum NodeState {
    Online,
    Pausing,
    Paused,
    Closing,
    Offline,
}

impl NodeState {
    /// All of them, in the order of a node's life.
    pub const ALL: [Self; 5] = [Self::Online, Self::Pausing, Self::Paused, Self::Closing, Self::Offline];

    /// As it stands in etcd.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Closing => "closing",
            Self::Offline => "offline",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NodeState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|state| state.name() == text)
            .ok_or_else(|| format!("`{text}` is not a state: use {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Labels, which the original defines and never sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// By name; `null` and `{}` are told apart.
    pub labels: Option<BTreeMap<String, String>>,
}

/// A node as the original's pump, drainer, binlogctl and TiDB know it. Its JSON has the original's fields in the
/// original's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// Also the last part of the key.
    pub node_id: String,
    /// `host:port` that the node advertises.
    pub host: String,
    /// See [`NodeState`].
    pub state: NodeState,
    /// False in practice.
    #[serde(default)]
    pub is_alive: bool,
    /// Zero in practice.
    #[serde(default)]
    pub score: i64,
    /// `null` in practice.
    #[serde(default)]
    pub label: Option<Label>,
    /// A pump's watermark; a drainer's position, which pumps heed when they go offline.
    #[serde(default, rename = "maxCommitTS")]
    pub max_commit_ts: CommitTs,
    /// When the node last wrote this, by [`UpdateClock`].
    #[serde(default, rename = "updateTS")]
    pub update_ts: Tso,
}

impl NodeRecord {
    /// A record with the fields that matter.
    pub fn new(node_id: impl Into<String>, host: impl Into<String>, state: NodeState) -> Self {
        Self {
            node_id: node_id.into(),
            host: host.into(),
            state,
            is_alive: false,
            score: 0,
            label: None,
            max_commit_ts: CommitTs::default(),
            update_ts: Tso::ZERO,
        }
    }

    /// The value for etcd.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and maps with string keys: this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a value of etcd. Types, state and ids are checked; fields that the original does not have are ignored, as it
    /// ignores them.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        check_id(&record.node_id)?;
        Ok(record)
    }
}

/// What one of our own processes says of itself, bound to a lease: present means alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Side {
    /// Also the last part of the key.
    pub node_id: String,
    /// `host:port` that the node advertises.
    pub host: String,
    /// Of the software.
    pub version: String,
    /// Whatever the kind of node wants others to know.
    #[serde(default)]
    pub facts: Value,
}

impl Side {
    /// With this build's version and no facts.
    pub fn new(node_id: impl Into<String>, host: impl Into<String>) -> Self {
        Self {
            node_id: node_id.into(),
            host: host.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            facts: Value::Null,
        }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let side: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        check_id(&side.node_id)?;
        Ok(side)
    }
}

/// An id is one part of a key; with a slash in it TiDB could not list the pumps.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.contains('/') {
        return Err(format!("`{id}` is no node id: it must not be empty or hold a slash"));
    }
    Ok(())
}

/// The original's idea of the present for `updateTS`: a real timestamp at registration, then that plus whole seconds
/// elapsed since by the local monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct UpdateClock {
    base: Tso,
    since: Instant,
}

impl UpdateClock {
    /// `registration` was fetched from PD just now.
    pub fn new(registration: Tso) -> Self {
        Self { base: registration, since: Instant::now() }
    }

    /// The present.
    pub fn now(&self) -> Tso {
        later(self.base, self.since.elapsed().as_secs())
    }
}

fn later(base: Tso, seconds: u64) -> Tso {
    if base.is_zero() {
        return base;
    }
    Tso::from_parts(base.physical_ms() + seconds * 1000, base.logical())
}

/// A node as the registry shows it: the original's entry, ours, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The node's id.
    pub id: String,
    /// The main entry. Absent for a standby drainer, which only lives beside the list.
    pub record: Option<NodeRecord>,
    /// Our own, present while the process lives.
    pub side: Option<Side>,
    /// etcd's revision of the main entry's last write; zero without one.
    pub mod_revision: i64,
}

/// An original node that rewrote its entry this long ago or less is alive: five of its heartbeats.
const REWRITTEN_WITHIN_SECS: f64 = 10.0;

impl Entry {
    /// The node's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The state in the main entry.
    pub fn state(&self) -> Option<NodeState> {
        self.record.as_ref().map(|record| record.state)
    }

    /// `host:port`: the side entry's if there is one (it is the living process's), else the main entry's.
    pub fn host(&self) -> &str {
        match (&self.side, &self.record) {
            (Some(side), _) => &side.host,
            (None, Some(record)) => &record.host,
            (None, None) => "",
        }
    }

    /// True if the process lives: its side entry is there; or, for an original one, its main entry was rewritten within
    /// ten seconds before `now` (a timestamp of PD), told by the time that every heartbeat writes into it.
    pub fn is_alive(&self, now: Tso) -> bool {
        self.side.is_some()
            || self.record.as_ref().is_some_and(|record| {
                !record.update_ts.is_zero() && now.seconds_since(record.update_ts) <= REWRITTEN_WITHIN_SECS
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the original's pump writes it.
    const GOLDEN: &str = r#"{"nodeId":"host:8250","host":"10.0.0.1:8250","state":"online","isAlive":false,"score":0,"label":null,"maxCommitTS":412518831548007863,"updateTS":412518831338292471}"#;

    #[test]
    fn the_originals_json_both_ways() {
        let mut record = NodeRecord::new("host:8250", "10.0.0.1:8250", NodeState::Online);
        record.max_commit_ts = CommitTs::new(412_518_831_548_007_863);
        record.update_ts = Tso::new(412_518_831_338_292_471);
        assert_eq!(String::from_utf8(record.to_json()).unwrap(), GOLDEN);
        assert_eq!(NodeRecord::parse(GOLDEN.as_bytes()).unwrap(), record);

        let labelled = GOLDEN.replace("null", "{\"labels\":{}}");
        let parsed = NodeRecord::parse(labelled.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(parsed.to_json()).unwrap(), labelled);
        let null_labels = GOLDEN.replace("null", "{\"labels\":null}");
        let parsed = NodeRecord::parse(null_labels.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(parsed.to_json()).unwrap(), null_labels);
    }

    #[test]
    fn what_is_wrong_with_a_record_is_said() {
        for (json, word) in [
            ("", "EOF"),
            ("{}", "nodeId"),
            (r#"{"nodeId":"a","host":"h","state":"drunk"}"#, "drunk"),
            (r#"{"nodeId":"a/b","host":"h","state":"online"}"#, "a/b"),
            (r#"{"nodeId":"","host":"h","state":"online"}"#, "empty"),
            (r#"{"nodeId":"a","host":"h","state":"online","maxCommitTS":-1}"#, "-1"),
            (r#"{"nodeId":"a","host":1,"state":"online"}"#, "string"),
        ] {
            let error = NodeRecord::parse(json.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{json}: {error}");
        }
        let small = NodeRecord::parse(br#"{"nodeId":"a","host":"h","state":"paused","unheard":1}"#).unwrap();
        assert_eq!(small, NodeRecord::new("a", "h", NodeState::Paused));
    }

    #[test]
    fn states_read_as_they_are_written() {
        for state in NodeState::ALL {
            assert_eq!(state.to_string().parse::<NodeState>().unwrap(), state);
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        assert!("dead".parse::<NodeState>().unwrap_err().contains("online, pausing"));
    }

    #[test]
    fn update_ts_grows_by_whole_seconds() {
        let base = Tso::from_parts(1_573_644_000_123, 7);
        assert_eq!(later(base, 0), base);
        assert_eq!(later(base, 3), Tso::from_parts(1_573_644_003_123, 7));
        assert_eq!(later(Tso::ZERO, 3), Tso::ZERO);
        assert!(UpdateClock::new(base).now() >= base);
    }

    #[test]
    fn alive_by_either_rule() {
        let mut record = NodeRecord::new("a", "h", NodeState::Online);
        record.update_ts = Tso::from_parts(100_000, 0);
        let mut entry = Entry { id: "a".to_owned(), record: Some(record), side: None, mod_revision: 1 };
        assert!(entry.is_alive(Tso::from_parts(110_000, 0)));
        assert!(!entry.is_alive(Tso::from_parts(110_001, 0)));
        // A clock slightly ahead of PD's is no death.
        assert!(entry.is_alive(Tso::from_parts(99_000, 0)));
        entry.side = Some(Side::new("a", "h2"));
        assert!(entry.is_alive(Tso::from_parts(999_000, 0)));
        assert_eq!(entry.host(), "h2");
        let ghost = Entry {
            id: "b".to_owned(),
            record: Some(NodeRecord::new("b", "h", NodeState::Online)),
            side: None,
            mod_revision: 1,
        };
        assert!(!ghost.is_alive(Tso::from_parts(1, 0)));
    }

    proptest! {
        #[test]
        fn records_round_trip(
            id in "[a-zA-Z0-9.:_-]{1,20}", host in "\\PC{0,20}", state in 0usize..5, alive: bool, score: i64,
            max in 0u64..=i64::MAX as u64, update in 0u64..=i64::MAX as u64,
        ) {
            let record = NodeRecord {
                node_id: id, host, state: NodeState::ALL[state], is_alive: alive, score, label: None,
                max_commit_ts: CommitTs::new(max), update_ts: Tso::new(update),
            };
            prop_assert_eq!(NodeRecord::parse(&record.to_json()).unwrap(), record);
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = NodeRecord::parse(&bytes);
            let _ = Side::parse(&bytes);
        }
    }
}
