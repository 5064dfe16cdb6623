//! What PD's, TiKV's and TiDB's stand-ins have in common: one cluster, one clock, one truth about its transactions.
//!
//! Every step is taken under one lock, so that no answer of TiKV can contradict a timestamp that PD gave out before it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use schemas::kvrpcpb::{CheckTxnStatusRequest, CheckTxnStatusResponse};
use schemas::metapb::{Region, Store};
use tidb::ts::{CommitTs, StartTs, Tso};

use crate::schedule::Schedule;
use crate::topology::{Fault, Topology};
use crate::transactions::{End, Status, Transaction, Transactions};
use crate::tso::{LiveClock, PlaybackClock, Recorded};

/// The life of a lock that its TiDB renews: longer than any transaction may live.
const RENEWED_TTL_MS: u64 = 48 * 3600 * 1000;

/// A cluster to stand in for; clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Cluster {
    id: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    clock: Clock,
    transactions: Transactions,
    topology: Topology,
    safe_points: SafePoints,
    questions: u64,
}

#[derive(Debug)]
enum Clock {
    Live { clock: LiveClock, since: Instant, unix_ms: u64, frozen: bool },
    Playback(Box<Playback>),
}

/// A playback's clock and order, which bind each other.
#[derive(Debug)]
pub(crate) struct Playback {
    clock: PlaybackClock,
    pub(crate) schedule: Schedule,
    /// Since when time alone moves the clock on, and from where.
    drift: Option<(Instant, Tso)>,
    /// Recorded seconds per second of ours.
    rate: f64,
}

impl Playback {
    pub(crate) fn new(schedule: Schedule, recorded: Recorded, rate: f64) -> Self {
        Self { clock: PlaybackClock::new(recorded), schedule, drift: None, rate }
    }

    /// The newest timestamp that anyone can have seen.
    pub(crate) fn now(&self) -> Tso {
        self.clock.last().max(self.schedule.newest_sent())
    }

    fn take(&mut self) -> Tso {
        let drift = self.drift();
        self.clock.take(self.schedule.newest_sent(), self.schedule.bound(), drift)
    }

    fn take_run(&mut self, count: u32) -> Option<Tso> {
        let drift = self.drift();
        self.clock.take_run(count, self.schedule.newest_sent(), self.schedule.bound(), drift)
    }

    /// Where the passing of time alone would have brought the clock.
    fn drift(&self) -> Tso {
        self.drift.map_or(Tso::ZERO, |(since, from)| {
            let rate = if self.schedule.unfinished() == 0 { 1.0 } else { self.rate };
            let passed_ms = since.elapsed().as_secs_f64() * 1000.0 * rate;
            Tso::from_parts(from.physical_ms() + passed_ms as u64, 0)
        })
    }

    /// A record leaves.
    pub(crate) fn send(&mut self, record: usize) {
        let before = self.schedule.newest_sent();
        self.schedule.send(record);
        if self.schedule.newest_sent() > before {
            self.drift = Some((Instant::now(), self.now()));
        }
    }

    /// A record was acknowledged or given up.
    pub(crate) fn finish(&mut self, record: usize) {
        self.schedule.finish(record);
        self.run_on_at_the_end();
    }

    /// A prewrite was refused for good; returns how many records will now never leave.
    pub(crate) fn refuse(&mut self, record: usize) -> usize {
        let dropped = self.schedule.refuse(record).len();
        self.run_on_at_the_end();
        dropped
    }

    fn run_on_at_the_end(&mut self) {
        if self.schedule.unfinished() == 0 {
            self.drift = Some((Instant::now(), self.now()));
        }
    }
}

/// PD's service safe points: what must not be collected yet.
#[derive(Debug, Default)]
struct SafePoints {
    by_service: HashMap<Bytes, (Option<Instant>, u64)>,
}

impl SafePoints {
    fn min(&mut self) -> u64 {
        let now = Instant::now();
        self.by_service.retain(|_, (expires, _)| expires.is_none_or(|expires| expires > now));
        self.by_service.values().map(|(_, safe_point)| *safe_point).min().unwrap_or(0)
    }

    fn update(&mut self, service: Bytes, ttl_seconds: i64, safe_point: u64) -> u64 {
        let min = self.min();
        match u64::try_from(ttl_seconds) {
            Err(_) | Ok(0) => {
                self.by_service.remove(&service);
            }
            // Too late: what it wants to keep may be gone.
            Ok(_) if safe_point < min => {}
            Ok(ttl) => {
                // Beyond any process's life: never.
                let expires = Instant::now().checked_add(Duration::from_secs(ttl));
                self.by_service.insert(service, (expires, safe_point));
            }
        }
        self.min()
    }
}

impl Cluster {
    /// An ordinary cluster whose clock follows the host's; transactions are begun and ended by the caller.
    pub fn live(id: u64) -> Self {
        // The clock of a stand-in has to begin somewhere; nothing but this number depends on the host's time.
        #[allow(clippy::disallowed_methods)]
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(0);
        Self::new(
            id,
            Clock::Live { clock: LiveClock::default(), since: Instant::now(), unix_ms, frozen: false },
        )
    }

    /// A cluster whose clock and transactions follow a recording.
    pub(crate) fn playback(id: u64, playback: Playback) -> Self {
        Self::new(id, Clock::Playback(Box::new(playback)))
    }

    fn new(id: u64, clock: Clock) -> Self {
        let state = State {
            clock,
            transactions: Transactions::default(),
            topology: Topology::default(),
            safe_points: SafePoints::default(),
            questions: 0,
        };
        Self { id, state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every step leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// PD's cluster id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// A timestamp from PD. A playback without room repeats the one before.
    pub fn tso(&self) -> Tso {
        match &mut self.lock().clock {
            Clock::Live { clock, since, unix_ms, frozen } => {
                let passed = if *frozen { 0 } else { since.elapsed().as_millis() as u64 };
                clock.take(1, *unix_ms + passed)
            }
            Clock::Playback(playback) => playback.take(),
        }
    }

    /// `count` consecutive timestamps from PD; the last of them. `None` while a playback has no room for several.
    pub fn tso_batch(&self, count: u32) -> Option<Tso> {
        if count == 1 {
            return Some(self.tso());
        }
        match &mut self.lock().clock {
            Clock::Live { clock, since, unix_ms, frozen } => {
                let passed = if *frozen { 0 } else { since.elapsed().as_millis() as u64 };
                Some(clock.take(count, *unix_ms + passed))
            }
            Clock::Playback(playback) => playback.take_run(count),
        }
    }

    /// The newest timestamp that anyone can have seen.
    pub fn newest(&self) -> Tso {
        match &self.lock().clock {
            Clock::Live { clock, .. } => clock.last(),
            Clock::Playback(playback) => playback.now(),
        }
    }

    /// Lets a live clock go on from `ts` and stand still but for its counter, or (a PD restored from a backup) go
    /// back. Without effect on a playback.
    pub fn freeze(&self, ts: Tso) {
        if let Clock::Live { clock, unix_ms, frozen, .. } = &mut self.lock().clock {
            *unix_ms = ts.physical_ms();
            *frozen = true;
            clock.set(ts);
        }
    }

    /// Moves a live clock on. Without effect on a playback.
    pub fn advance(&self, by: Duration) {
        if let Clock::Live { unix_ms, .. } = &mut self.lock().clock {
            *unix_ms += by.as_millis() as u64;
        }
    }

    /// Begins a transaction in TiKV; see [`Transaction::locked`].
    pub fn begin(&self, start_ts: StartTs, transaction: Transaction) {
        self.lock().transactions.begin(start_ts, transaction);
    }

    /// Locks a transaction's primary key: the ordinary prewrite in TiKV, by a TiDB that lives and so renews its lock for as
    /// long as it takes. (For one that dies, see [`Self::begin`].)
    pub fn prewrite(&self, start_ts: StartTs, primary: impl Into<Bytes>) {
        let renewed = Transaction { ttl_ms: RENEWED_TTL_MS, ..Transaction::locked(start_ts, primary.into()) };
        self.begin(start_ts, renewed);
    }

    /// Commits in TiKV; false if the transaction has not begun there, was rolled back by somebody, or its lock was pushed
    /// past this timestamp (TiDB then takes a new one: [`Self::commit_now`]).
    pub fn commit(&self, start_ts: StartTs, commit_ts: CommitTs) -> bool {
        let transactions = &mut self.lock().transactions;
        let pushed = transactions.get(start_ts).is_none_or(|lock| lock.min_commit_ts > commit_ts.0);
        !pushed && transactions.end(start_ts, End::Commit(commit_ts))
    }

    /// Takes a commit_ts above whatever the lock was pushed to, and commits with it, in one step; `None` if the
    /// transaction has not begun, was rolled back by somebody, or belongs to a playback.
    pub fn commit_now(&self, start_ts: StartTs) -> Option<CommitTs> {
        let state = &mut *self.lock();
        let Clock::Live { clock, since, unix_ms, frozen } = &mut state.clock else { return None };
        let passed = if *frozen { 0 } else { since.elapsed().as_millis() as u64 };
        let pushed = state.transactions.get(start_ts)?.min_commit_ts;
        let commit_ts = CommitTs(clock.take(1, *unix_ms + passed).max(pushed));
        // A caller may have pushed with a timestamp of its own making.
        clock.set(commit_ts.0);
        state.transactions.end(start_ts, End::Commit(commit_ts)).then_some(commit_ts)
    }

    /// Rolls back in TiKV, leaving a record of it.
    pub fn roll_back(&self, start_ts: StartTs) -> bool {
        self.lock().transactions.end(start_ts, End::RolledBack)
    }

    /// Decides an open transaction; false if it is unknown or was rolled back by somebody else meanwhile.
    pub fn end(&self, start_ts: StartTs, end: End) -> bool {
        self.lock().transactions.end(start_ts, end)
    }

    /// Lets TiKV forget a transaction.
    pub fn forget(&self, start_ts: StartTs) {
        self.lock().transactions.forget(start_ts);
    }

    /// What TiKV holds about a transaction.
    pub fn status(&self, start_ts: StartTs) -> Status {
        let state = self.lock();
        state.transactions.status(start_ts, state.now())
    }

    /// Every transaction that has committed and that TiKV remembers, by commit_ts.
    pub fn committed(&self) -> Vec<(StartTs, CommitTs)> {
        self.lock().transactions.committed()
    }

    /// Live transactions that somebody rolled back through `KvCheckTxnStatus`: a defect of the asker.
    pub fn aborted(&self) -> u64 {
        self.lock().transactions.aborted()
    }

    /// How many times TiKV was asked about a transaction.
    pub fn questions(&self) -> u64 {
        self.lock().questions
    }

    /// Answers the next questions to TiKV with these errors, one each.
    pub fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().topology.inject(faults);
    }

    /// Splits the region of a raw key just before it.
    pub fn split(&self, raw_key: &[u8]) {
        self.lock().topology.split(raw_key);
    }

    /// Gives every region a new epoch.
    pub fn bump_epochs(&self) {
        self.lock().topology.bump_epochs();
    }

    /// Sets a service's safe point, or with a TTL of zero or less removes it; returns the smallest one of all
    /// services, zero without any.
    pub fn update_safe_point(&self, service: impl Into<Bytes>, ttl_seconds: i64, safe_point: u64) -> u64 {
        self.lock().safe_points.update(service.into(), ttl_seconds, safe_point)
    }

    /// The safe points that services hold.
    pub fn safe_points(&self) -> HashMap<String, Tso> {
        let mut state = self.lock();
        state.safe_points.min();
        let all = state.safe_points.by_service.iter();
        all.map(|(name, (_, ts))| (String::from_utf8_lossy(name).into_owned(), Tso::new(*ts))).collect()
    }

    pub(crate) fn set_store_address(&self, address: String) {
        self.lock().topology.set_store_address(address);
    }

    pub(crate) fn store(&self, id: u64) -> Option<Store> {
        self.lock().topology.store(id).cloned()
    }

    pub(crate) fn region(&self, encoded: &[u8]) -> Region {
        self.lock().topology.region(encoded).clone()
    }

    pub(crate) fn check_txn_status(&self, request: &CheckTxnStatusRequest) -> CheckTxnStatusResponse {
        let mut state = self.lock();
        state.questions += 1;
        if let Some(error) = state.topology.refusal(request.context.as_ref(), &request.primary_key) {
            return CheckTxnStatusResponse { region_error: Some(error), ..CheckTxnStatusResponse::default() };
        }
        let now = state.now();
        state.transactions.check(request, now)
    }

    /// One step of a playback; `None` for a live cluster.
    pub(crate) fn step<T>(&self, f: impl FnOnce(&mut Playback, &mut Transactions) -> T) -> Option<T> {
        let state = &mut *self.lock();
        match &mut state.clock {
            Clock::Playback(playback) => Some(f(playback, &mut state.transactions)),
            Clock::Live { .. } => None,
        }
    }
}

impl State {
    /// The newest timestamp that anyone can have seen.
    fn now(&self) -> Tso {
        match &self.clock {
            // Whoever commits a live transaction has its commit_ts from this clock.
            Clock::Live { .. } => Tso::MAX,
            Clock::Playback(playback) => playback.now(),
        }
    }
}
