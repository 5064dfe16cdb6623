//! What the drainer is doing, for `/status`, metrics and the registry. Written by the tasks, read by the admin
//! listener; it decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use tidb::ts::Tso;
use tokio::sync::watch;

use crate::merge::SourceId;
use crate::metrics;

/// The state of the process. Clones are the same.
#[derive(Clone, Debug)]
pub struct Status {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    position: watch::Sender<Tso>,
    /// What pumps may let go of.
    needed: watch::Sender<Tso>,
}

#[derive(Debug, Default)]
struct State {
    role: &'static str,
    cluster_id: u64,
    topic: String,
    feed_id: String,
    epoch: u64,
    next_seq: u64,
    merged: Tso,
    written: Tso,
    now: Tso,
    pumps: BTreeMap<SourceId, Pump>,
    waiting_ddl: Option<WaitingDdl>,
    last_error: Option<String>,
}

#[derive(Debug)]
struct Pump {
    address: String,
    state: String,
    protocol: Option<&'static str>,
    watermark: Tso,
    error: Option<String>,
}

/// A DDL that waits for its job.
#[derive(Clone, Debug)]
pub struct WaitingDdl {
    /// The job.
    pub job_id: i64,
    /// Its place.
    pub commit_ts: Tso,
    /// The statement, as far as it is short.
    pub query: String,
    /// Since when.
    pub since: Instant,
    /// Why the last attempt failed.
    pub reason: String,
}

impl Default for Status {
    fn default() -> Self {
        let state = Mutex::new(State { role: "starting", ..State::default() });
        Self {
            inner: Arc::new(Inner {
                state,
                position: watch::Sender::new(Tso::ZERO),
                needed: watch::Sender::new(Tso::ZERO),
            }),
        }
    }
}

impl Status {
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `standby`, `starting` or `leader`.
    pub fn role(&self, role: &'static str) {
        self.state().role = role;
        metrics::leader(role == "leader");
    }

    /// True while an epoch is being written.
    pub fn is_leading(&self) -> bool {
        self.state().role == "leader"
    }

    /// Which log is written.
    pub fn log(&self, cluster_id: u64, topic: &str) {
        let mut state = self.state();
        state.cluster_id = cluster_id;
        topic.clone_into(&mut state.topic);
    }

    /// The log's feed, and the last epoch in it.
    pub fn epoch(&self, feed_id: String, epoch: u64) {
        let mut state = self.state();
        state.feed_id = feed_id;
        state.epoch = epoch;
    }

    /// The START of this epoch is in the log.
    pub fn began(&self, epoch: u64) {
        self.state().epoch = epoch;
    }

    /// Everything up to here has left the merge.
    pub fn merged(&self, position: Tso) {
        self.state().merged = position;
        metrics::merged(position);
    }

    /// Everything up to here was committed to Kafka.
    pub fn written(&self, watermark: Tso, next_seq: u64) {
        let mut state = self.state();
        state.written = watermark;
        state.next_seq = next_seq;
        metrics::written(watermark);
    }

    /// Everything up to `watermark` was read back from Kafka; a successor would read the pumps from `needed`.
    pub fn read_back(&self, watermark: Tso, needed: Tso) {
        self.inner.needed.send_replace(needed);
        self.inner.position.send_replace(watermark);
        metrics::position(watermark);
    }

    /// The position that was read back from Kafka.
    pub fn position(&self) -> Tso {
        *self.inner.position.borrow()
    }

    /// What was read back from Kafka and will not be read from the pumps again: they may delete up to here.
    pub fn released(&self) -> Tso {
        *self.inner.needed.borrow()
    }

    /// PD's present, against which lag is measured.
    pub fn now(&self, now: Tso) {
        let mut state = self.state();
        state.now = state.now.max(now);
        metrics::lag(
            state.now,
            &[("merged", state.merged), ("written", state.written), ("position", self.position())],
        );
        for (id, pump) in &state.pumps {
            metrics::pump_lag(id.as_str(), state.now, pump.watermark);
        }
    }

    /// A DDL waits for its job, or no longer does.
    pub fn waiting_ddl(&self, waiting: Option<WaitingDdl>) {
        metrics::ddl_waiting(waiting.is_some());
        self.state().waiting_ddl = waiting;
    }

    /// Why the last attempt to lead ended.
    pub fn failed(&self, error: String) {
        self.state().last_error = Some(error);
    }

    /// A pump was found, or changed its state.
    pub fn pump(&self, id: &SourceId, address: &str, pump_state: &str) -> PumpStatus {
        let mut state = self.state();
        let watermark = state.merged;
        let pump = state.pumps.entry(id.clone()).or_insert_with(|| Pump {
            address: String::new(),
            state: String::new(),
            protocol: None,
            watermark,
            error: None,
        });
        address.clone_into(&mut pump.address);
        pump_state.clone_into(&mut pump.state);
        PumpStatus { status: self.clone(), id: id.clone() }
    }

    /// A pump is gone for good.
    pub fn forget_pump(&self, id: &SourceId) {
        self.state().pumps.remove(id);
        metrics::forget_pump(id.as_str());
    }

    /// No pump is pulled from any more: a standby, or about to begin anew.
    pub fn forget_pumps(&self) {
        self.state().pumps.clear();
        self.waiting_ddl(None);
    }

    /// For `/status`.
    pub fn to_json(&self) -> Value {
        let state = self.state();
        let lag = |ts: Tso| {
            if state.now.is_zero() || ts.is_zero() { Value::Null } else { json!(state.now.seconds_since(ts)) }
        };
        let holding =
            state.pumps.iter().min_by_key(|(_, pump)| pump.watermark).map(|(id, _)| id.as_str().to_owned());
        let pumps: Vec<Value> = state
            .pumps
            .iter()
            .map(|(id, pump)| {
                json!({
                    "node_id": id.as_str(), "address": pump.address, "state": pump.state, "protocol": pump.protocol,
                    "connected": pump.protocol.is_some(), "watermark": pump.watermark.get(),
                    "lag_seconds": lag(pump.watermark), "error": pump.error,
                })
            })
            .collect();
        let waiting = state.waiting_ddl.as_ref().map(|ddl| {
            json!({
                "job_id": ddl.job_id, "commit_ts": ddl.commit_ts.get(), "statement": ddl.query,
                "waiting_seconds": ddl.since.elapsed().as_secs_f64(), "reason": ddl.reason,
            })
        });
        json!({
            "role": state.role, "cluster_id": state.cluster_id, "topic": state.topic, "feed_id": state.feed_id,
            "epoch": state.epoch, "next_seq": state.next_seq, "now": state.now.get(),
            "merged": state.merged.get(), "watermark": state.written.get(), "position": self.position().get(),
            "commit_ts": self.position().get(),
            "lag_seconds": {
                "merged": lag(state.merged), "written": lag(state.written), "position": lag(self.position()),
            },
            "pumps": pumps, "slowest_pump": holding, "waiting_ddl": waiting, "last_error": state.last_error,
        })
    }
}

/// One pump's part of the status.
#[derive(Clone, Debug)]
pub struct PumpStatus {
    status: Status,
    id: SourceId,
}

impl PumpStatus {
    fn with(&self, change: impl FnOnce(&mut Pump)) {
        if let Some(pump) = self.status.state().pumps.get_mut(&self.id) {
            change(pump);
        }
    }

    /// A stream is open.
    pub fn connected(&self, protocol: &'static str) {
        self.with(|pump| {
            pump.protocol = Some(protocol);
            pump.error = None;
        });
        metrics::pump_connected(self.id.as_str(), true);
    }

    /// The stream is gone.
    pub fn disconnected(&self, reason: &str) {
        self.with(|pump| {
            pump.protocol = None;
            pump.error = Some(reason.to_owned());
        });
        metrics::pump_connected(self.id.as_str(), false);
    }

    /// Transactions and a watermark came.
    pub fn received(&self, transactions: u64, watermark: Tso) {
        self.with(|pump| pump.watermark = pump.watermark.max(watermark));
        metrics::received(self.id.as_str(), transactions);
    }
}
