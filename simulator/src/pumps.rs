//! Which pumps TiDB would write to, and which it would take next. Pure.

use serde::Deserialize;
use tidb::ts::StartTs;

/// After more failures in a row than this, a pump is left alone until a probe succeeds.
const TOLERATED_FAILURES: u32 = 10;

/// How a transaction's pump is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// The one that stands for the pump of the recording.
    #[default]
    Recorded,
    /// In turn (TiDB's default).
    Range,
    /// By start_ts.
    Hash,
}

/// What the playback needs of a pump's registration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Node id.
    pub node_id: String,
    /// `host:port`.
    pub host: String,
    /// Only `online` ones are written to.
    pub state: String,
}

#[derive(Clone, Debug)]
struct Pump {
    registration: Registration,
    failures: u32,
}

impl Pump {
    fn is_online(&self) -> bool {
        self.registration.state == "online"
    }

    fn is_available(&self) -> bool {
        self.is_online() && self.failures <= TOLERATED_FAILURES
    }
}

/// The pumps of a cluster, as TiDB's pump client sees them.
#[derive(Debug, Default)]
pub struct Pumps {
    /// By node id, so that a recording's pumps are mapped alike every time.
    pumps: Vec<Pump>,
    turn: usize,
}

impl Pumps {
    /// A registration as it stands in etcd now. A pump that vanishes from etcd stays known, as in TiDB.
    pub fn update(&mut self, registration: Registration) {
        match self.pumps.binary_search_by(|pump| pump.registration.node_id.cmp(&registration.node_id)) {
            Ok(at) => {
                // Back online: what was held against it is forgotten.
                if registration.state == "online" && !self.pumps[at].is_online() {
                    self.pumps[at].failures = 0;
                }
                self.pumps[at].registration = registration;
            }
            Err(at) => self.pumps.insert(at, Pump { registration, failures: 0 }),
        }
    }

    /// All that are online, available or not.
    pub fn online(&self) -> Vec<Registration> {
        self.pumps.iter().filter(|pump| pump.is_online()).map(|pump| pump.registration.clone()).collect()
    }

    /// How many may be chosen.
    pub fn available(&self) -> usize {
        self.pumps.iter().filter(|pump| pump.is_available()).count()
    }

    /// Online ones that are left alone for now.
    pub fn to_probe(&self) -> Vec<Registration> {
        let left_alone = self.pumps.iter().filter(|pump| pump.is_online() && !pump.is_available());
        left_alone.map(|pump| pump.registration.clone()).collect()
    }

    /// Where a pump is now.
    pub fn find(&self, node_id: &str) -> Option<Registration> {
        self.pumps
            .iter()
            .find(|pump| pump.registration.node_id == node_id)
            .map(|pump| pump.registration.clone())
    }

    /// The pump for a prewrite's attempt (counted from zero); `None` if none may be chosen.
    pub fn choose(
        &mut self,
        strategy: Strategy,
        start_ts: StartTs,
        recorded: u32,
        attempt: usize,
    ) -> Option<Registration> {
        let available: Vec<&Pump> = self.pumps.iter().filter(|pump| pump.is_available()).collect();
        if available.is_empty() {
            return None;
        }
        let at = match strategy {
            Strategy::Range => {
                self.turn = self.turn.wrapping_add(1);
                self.turn
            }
            Strategy::Hash => (start_ts.get() % available.len() as u64) as usize + attempt,
            Strategy::Recorded => {
                // Counted over all that are online, so that one pump's absence moves no other's transactions.
                let online: Vec<&Pump> = self.pumps.iter().filter(|pump| pump.is_online()).collect();
                let first = (recorded.max(1) as usize - 1) % online.len();
                let turned = (0..online.len()).map(|step| online[(first + step) % online.len()]);
                let candidates: Vec<&Pump> = turned.filter(|pump| pump.is_available()).collect();
                return candidates.get(attempt % candidates.len()).map(|pump| pump.registration.clone());
            }
        };
        available.get(at % available.len()).map(|pump| pump.registration.clone())
    }

    /// A call succeeded. True if the pump had been left alone.
    pub fn succeeded(&mut self, node_id: &str) -> bool {
        let Some(pump) = self.pumps.iter_mut().find(|pump| pump.registration.node_id == node_id) else {
            return false;
        };
        std::mem::take(&mut pump.failures) > TOLERATED_FAILURES
    }

    /// A call failed. How many have in a row.
    pub fn failed(&mut self, node_id: &str) -> u32 {
        let Some(pump) = self.pumps.iter_mut().find(|pump| pump.registration.node_id == node_id) else {
            return 0;
        };
        pump.failures = pump.failures.saturating_add(1);
        pump.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pump(node_id: &str, state: &str) -> Registration {
        Registration { node_id: node_id.into(), host: format!("{node_id}:8250"), state: state.into() }
    }

    fn three() -> Pumps {
        let mut pumps = Pumps::default();
        for (node_id, state) in [("c", "online"), ("a", "online"), ("x", "paused"), ("b", "online")] {
            pumps.update(pump(node_id, state));
        }
        pumps
    }

    fn chosen(
        pumps: &mut Pumps,
        strategy: Strategy,
        start_ts: u64,
        recorded: u32,
        attempts: usize,
    ) -> Vec<String> {
        let choose = |attempt| pumps.choose(strategy, StartTs::new(start_ts), recorded, attempt);
        (0..attempts).map(choose).map(|pump| pump.map_or("-".into(), |pump| pump.node_id)).collect()
    }

    #[test]
    fn chooses() {
        let mut pumps = three();
        assert_eq!(chosen(&mut pumps, Strategy::Recorded, 9, 2, 4), ["b", "c", "a", "b"]);
        assert_eq!(chosen(&mut pumps, Strategy::Recorded, 9, 4, 1), ["a"]);
        assert_eq!(chosen(&mut pumps, Strategy::Hash, 10, 1, 3), ["b", "c", "a"]);
        let turns = chosen(&mut pumps, Strategy::Range, 10, 1, 6);
        assert_eq!(turns[..3], turns[3..]);
        assert!(turns.contains(&"a".into()) && turns.contains(&"b".into()) && turns.contains(&"c".into()));
    }

    #[test]
    fn leaves_a_failing_pump_alone_until_a_probe_succeeds() {
        let mut pumps = three();
        for _ in 0..TOLERATED_FAILURES {
            pumps.failed("b");
        }
        assert_eq!((pumps.available(), pumps.to_probe()), (3, vec![]));
        assert_eq!(pumps.failed("b"), 11);
        assert_eq!((pumps.available(), pumps.to_probe()), (2, vec![pump("b", "online")]));
        // Nobody else's transactions move.
        assert_eq!(chosen(&mut pumps, Strategy::Recorded, 9, 1, 1), ["a"]);
        assert_eq!(chosen(&mut pumps, Strategy::Recorded, 9, 2, 2), ["c", "a"]);
        assert_eq!(chosen(&mut pumps, Strategy::Recorded, 9, 3, 1), ["c"]);
        assert!(pumps.succeeded("b"));
        assert_eq!(pumps.available(), 3);
        assert!(!pumps.succeeded("b"));
    }

    #[test]
    fn only_online_pumps_are_written_to() {
        let mut pumps = three();
        for node_id in ["a", "b", "c"] {
            pumps.update(pump(node_id, "closing"));
        }
        assert_eq!(chosen(&mut pumps, Strategy::Recorded, 9, 1, 1), ["-"]);
        assert_eq!(chosen(&mut pumps, Strategy::Range, 9, 1, 1), ["-"]);
        pumps.update(Registration { host: "elsewhere:1".into(), ..pump("b", "online") });
        assert_eq!(pumps.choose(Strategy::Hash, StartTs::new(1), 1, 0).unwrap().host, "elsewhere:1");
        assert_eq!(pumps.find("a").unwrap().state, "closing");
    }
}
