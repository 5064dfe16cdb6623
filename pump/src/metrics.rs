//! Every metric of the pump, ours and the original's names beside them, described with units.

use std::time::Duration;

use metrics::{Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tidb::ts::Tso;

/// Registers descriptions. Once per process is enough; more does no harm.
pub fn describe() {
    use metrics::Unit::{Bytes, Count, Seconds};
    describe_histogram!(
        "binlog_pump_rpc_duration_seconds",
        Seconds,
        "duration of calls by method and label succ or fail"
    );
    describe_counter!(
        "binlog_pump_loss_binlog_count",
        Count,
        "WriteBinlog calls that failed, a wrong cluster id aside"
    );
    describe_gauge!("binlog_pump_storage_max_commit_ts", "watermark, Unix milliseconds by PD");
    describe_gauge!(
        "binlog_pump_storage_gc_ts",
        "transactions up to here may be deleted, Unix milliseconds by PD"
    );
    describe_gauge!(
        "binlog_pump_storage_done_gc_ts",
        "transactions up to here are deleted, Unix milliseconds by PD"
    );
    describe_gauge!(
        "pump_retention_headroom_seconds",
        Seconds,
        "by drainer: its position less what age and size would give up; below zero it holds data that is due"
    );
    describe_counter!(
        "binlog_pump_detected_drainer_binlog_purge_count",
        Count,
        "looks at which drainer id was less than 20 h ahead of what age and size would give up"
    );
    describe_gauge!(
        "binlog_pump_storage_storage_size_bytes",
        Bytes,
        "the data volume by type capacity or available"
    );
    describe_counter!("binlog_pump_storage_query_tikv_count", Count, "questions put to TiKV");
    describe_counter!("binlog_pump_storage_error_count", Count, "errors by type");
    describe_histogram!("binlog_pump_storage_write_binlog_size", Bytes, "bytes by label single or batch");
    describe_histogram!(
        "binlog_pump_storage_write_binlog_duration_time",
        Seconds,
        "seconds by label single or batch"
    );
    describe_gauge!("pump_watermark_lag_seconds", Seconds, "PD's newest timestamp less the watermark");
    describe_gauge!("pump_pending_prewrites", Count, "prewrites whose transaction is undecided");
    describe_gauge!("pump_receive_budget_used_bytes", Bytes, "binlogs received and not yet durable");
    describe_counter!(
        "pump_late_copies_total",
        Count,
        "second copies of prewrites that another pump had taken before"
    );
    describe_counter!(
        "pump_commits_without_prewrite_total",
        Count,
        "commit binlogs of transactions that are not here"
    );
    describe_counter!("pump_repeated_binlogs_total", Count, "binlogs that were stored before, by type");
    describe_counter!("pump_gaps_total", Count, "transactions declared undeliverable since the start");
    describe_gauge!("pump_gaps_open", Count, "declared gaps that are kept and not accepted by the operator");
    describe_gauge!(
        "pump_oldest_prewrite_seconds",
        Seconds,
        "age of the oldest undecided transaction: its segment and all behind it stay on disk"
    );
    describe_gauge!(
        "pump_commits_in_memory",
        Count,
        "commits that no recorded watermark has passed and that were not spilled, about 200 bytes each"
    );
    describe_counter!(
        "pump_spilled_commits_total",
        Count,
        "commits written to files before the watermark passed them, to bound memory"
    );
    describe_counter!(
        "pump_resolver_verdicts_total",
        Count,
        "TiKV's answers about open prewrites, by verdict"
    );
    describe_counter!("pump_resolver_failures_total", Count, "questions to TiKV that failed, by reason");
    describe_gauge!(
        "pump_unpushable_locks",
        Count,
        "open prewrites whose lock TiKV cannot push: they hold the watermark"
    );
    describe_gauge!("pump_pullers", Count, "open pull streams by protocol");
    describe_counter!("pump_pulled_bytes_total", Bytes, "payload sent to drainers by protocol");
    describe_counter!("pump_pulled_transactions_total", Count, "transactions sent to drainers by protocol");
    describe_counter!("pump_pd_failures_total", Count, "timestamps that PD did not give");
    describe_counter!(
        "pump_safe_point_failures_total",
        Count,
        "times that PD did not take this pump's service safe point"
    );
    describe_gauge!("pump_state", "1 for the present state, by state");
    describe_gauge!(
        "pump_store_size_bytes",
        Bytes,
        "segments of the log; prepared ones and the index come on top"
    );
    describe_histogram!("pump_group_records", Count, "records made durable by one synced write");
    // A series that begins with its first failure shows no increase: alerts would miss it.
    for name in [
        "binlog_pump_loss_binlog_count",
        "binlog_pump_storage_query_tikv_count",
        "pump_late_copies_total",
        "binlog_pump_storage_deleted_kv_total",
        "pump_commits_without_prewrite_total",
        "pump_spilled_commits_total",
        "pump_gaps_total",
        "pump_pd_failures_total",
        "pump_safe_point_failures_total",
    ] {
        counter!(name).increment(0);
    }
    // The last two cannot happen here; the original's panels and alerts name them.
    for kind in ["write_binlog", "write_binlog_batch", "read_value", "batch_write_kv", "feed_pre_write_value"]
    {
        counter!("binlog_pump_storage_error_count", "type" => kind).increment(0);
    }
    // There is nothing to fall behind here; panels that show it have something to show.
    for kind in ["turned_on", "turned_off", "catch_up", "recovery"] {
        counter!("binlog_pump_storage_slow_chaser_count", "type" => kind).increment(0);
    }
}

fn outcome(ok: bool) -> &'static str {
    if ok { "succ" } else { "fail" }
}

/// A call that is not a `WriteBinlog`.
pub(crate) fn rpc(method: &'static str, took: Duration, ok: bool) {
    histogram!("binlog_pump_rpc_duration_seconds", "method" => method, "label" => outcome(ok))
        .record(took.as_secs_f64());
}

pub(crate) fn refused() {
    counter!("binlog_pump_loss_binlog_count").increment(1);
    counter!("binlog_pump_storage_error_count", "type" => "write_binlog").increment(1);
}

/// What every `WriteBinlog` call counts, looked up once: the look-ups would cost more than the counting.
pub struct Calls {
    succeeded: Histogram,
    failed: Histogram,
    size: Histogram,
    took: Histogram,
}

impl Default for Calls {
    fn default() -> Self {
        let rpc = |outcome| histogram!("binlog_pump_rpc_duration_seconds", "method" => "WriteBinlog", "label" => outcome);
        Self {
            succeeded: rpc(outcome(true)),
            failed: rpc(outcome(false)),
            size: histogram!("binlog_pump_storage_write_binlog_size", "label" => "single"),
            took: histogram!("binlog_pump_storage_write_binlog_duration_time", "label" => "single"),
        }
    }
}

impl Calls {
    pub(crate) fn ended(&self, bytes: usize, took: Duration, ok: bool) {
        let took = took.as_secs_f64();
        if ok { &self.succeeded } else { &self.failed }.record(took);
        self.size.record(bytes as f64);
        self.took.record(took);
    }
}

pub(crate) fn group_written(records: usize, bytes: usize, took: Duration, ok: bool) {
    histogram!("pump_group_records").record(records as f64);
    histogram!("binlog_pump_storage_write_binlog_size", "label" => "batch").record(bytes as f64);
    histogram!("binlog_pump_storage_write_binlog_duration_time", "label" => "batch")
        .record(took.as_secs_f64());
    if !ok {
        counter!("binlog_pump_storage_error_count", "type" => "write_binlog_batch").increment(1);
    }
}

pub(crate) fn repeated(kind: &'static str) {
    counter!("pump_repeated_binlogs_total", "type" => kind).increment(1);
}

pub(crate) fn late_copy() {
    counter!("pump_late_copies_total").increment(1);
}

pub(crate) fn commit_without_prewrite() {
    counter!("pump_commits_without_prewrite_total").increment(1);
}

pub(crate) fn gap() {
    counter!("pump_gaps_total").increment(1);
}

pub(crate) fn asked_tikv() {
    counter!("binlog_pump_storage_query_tikv_count").increment(1);
}

pub(crate) fn verdict(verdict: &'static str) {
    counter!("pump_resolver_verdicts_total", "verdict" => verdict).increment(1);
}

pub(crate) fn resolver_failed(reason: &'static str) {
    counter!("pump_resolver_failures_total", "reason" => reason).increment(1);
}

pub(crate) fn unpushable(count: usize) {
    gauge!("pump_unpushable_locks").set(count as f64);
}

pub(crate) fn pd_failed() {
    counter!("pump_pd_failures_total").increment(1);
}

pub(crate) fn safe_point_failed() {
    counter!("pump_safe_point_failures_total").increment(1);
}

pub(crate) fn pulled(protocol: &'static str, transactions: usize, bytes: usize) {
    counter!("pump_pulled_transactions_total", "protocol" => protocol).increment(transactions as u64);
    counter!("pump_pulled_bytes_total", "protocol" => protocol).increment(bytes as u64);
}

pub(crate) fn read_failed() {
    counter!("binlog_pump_storage_error_count", "type" => "read_value").increment(1);
}

pub(crate) fn puller(protocol: &'static str, joined: bool) {
    let pullers = gauge!("pump_pullers", "protocol" => protocol);
    if joined { pullers.increment(1) } else { pullers.decrement(1) }
}

pub(crate) fn headroom(drainer: &str, seconds: f64) {
    gauge!("pump_retention_headroom_seconds", "drainer" => drainer.to_owned()).set(seconds);
    let near = counter!("binlog_pump_detected_drainer_binlog_purge_count", "id" => drainer.to_owned());
    near.increment(u64::from(seconds < 20.0 * 3600.0));
}

/// Collecting and giving back are one step here.
pub(crate) fn collected(upto: Tso, transactions: u64) {
    counter!("binlog_pump_storage_deleted_kv_total").absolute(transactions);
    gauge!("binlog_pump_storage_gc_ts").set(upto.physical_ms() as f64);
    gauge!("binlog_pump_storage_done_gc_ts").set(upto.physical_ms() as f64);
}

pub(crate) fn volume(capacity: u64, available: u64) {
    gauge!("binlog_pump_storage_storage_size_bytes", "type" => "capacity").set(capacity as f64);
    gauge!("binlog_pump_storage_storage_size_bytes", "type" => "available").set(available as f64);
}

/// A drainer that left holds nothing back, and has no position to be alarmed about.
pub(crate) fn no_headroom(drainer: &str) {
    gauge!("pump_retention_headroom_seconds", "drainer" => drainer.to_owned()).set(f64::NAN);
}

pub(crate) fn open_gaps(count: usize) {
    gauge!("pump_gaps_open").set(count as f64);
}

pub(crate) fn waiting(in_memory: usize, spilled: u64) {
    gauge!("pump_commits_in_memory").set(in_memory as f64);
    counter!("pump_spilled_commits_total").absolute(spilled);
}

pub(crate) fn progress(snapshot: &crate::progress::Snapshot, budget_used: u64, store_bytes: u64) {
    let oldest = snapshot.oldest_start.map_or(0.0, |oldest| snapshot.newest.seconds_since(oldest.0));
    gauge!("pump_oldest_prewrite_seconds").set(oldest);
    gauge!("binlog_pump_storage_max_commit_ts").set(snapshot.watermark.physical_ms() as f64);
    gauge!("pump_watermark_lag_seconds").set(snapshot.newest.seconds_since(snapshot.watermark));
    gauge!("pump_pending_prewrites").set(snapshot.pending as f64);
    gauge!("pump_receive_budget_used_bytes").set(budget_used as f64);
    gauge!("pump_store_size_bytes").set(store_bytes as f64);
}

pub(crate) fn state(present: &'static str, all: &[&'static str]) {
    for state in all {
        gauge!("pump_state", "state" => *state).set(if *state == present { 1.0 } else { 0.0 });
    }
}
