//! Every metric of the drainer, described with units. Lag is PD's newest timestamp less the stage's, in seconds.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tidb::ts::Tso;

/// Registers descriptions. Once per process is enough; more does no harm.
pub fn describe() {
    use metrics::Unit::{Bytes, Count, Milliseconds, Seconds};
    describe_gauge!(
        "binlog_drainer_checkpoint_tso",
        Milliseconds,
        "position read back from Kafka, Unix milliseconds by PD"
    );
    describe_gauge!("drainer_leader", "1 while this process writes the log, 0 on standby");
    describe_gauge!(
        "drainer_merged_tso",
        Milliseconds,
        "everything up to here left the merge, Unix milliseconds by PD"
    );
    describe_gauge!("drainer_written_tso", Milliseconds, "everything up to here was committed to Kafka");
    describe_gauge!(
        "drainer_lag_seconds",
        Seconds,
        "PD's newest timestamp less the stage's: merged, written, position"
    );
    describe_gauge!(
        "drainer_pump_lag_seconds",
        Seconds,
        "PD's newest timestamp less the pump's watermark, by pump"
    );
    describe_gauge!("drainer_pump_connected", "1 while a stream from the pump is open, by pump");
    describe_counter!("drainer_received_transactions_total", Count, "transactions received, by pump");
    describe_counter!(
        "drainer_copies_dropped_total",
        Count,
        "second copies of transactions, found on two pumps"
    );
    describe_counter!("drainer_transactions_total", Count, "transactions and DDL written");
    describe_counter!("drainer_changes_total", Count, "row changes written");
    describe_counter!(
        "drainer_rows_discarded_total",
        Count,
        "rows of tables dropped or truncated before them"
    );
    describe_counter!("drainer_rows_filtered_total", Count, "rows that the filter rules leave out");
    describe_counter!("drainer_row_bytes_total", Bytes, "keys and values of row records written");
    describe_counter!("drainer_kafka_commits_total", Count, "Kafka transactions committed, by kind");
    describe_histogram!(
        "drainer_kafka_commit_seconds",
        Seconds,
        "time from the first record of a Kafka transaction to its commit"
    );
    describe_counter!("drainer_epochs_total", Count, "times that this process began an epoch");
    describe_gauge!("drainer_ddl_waiting", "1 while a DDL waits for its job");
}

pub(crate) fn leader(is: bool) {
    gauge!("drainer_leader").set(if is { 1.0 } else { 0.0 });
}

pub(crate) fn merged(position: Tso) {
    gauge!("drainer_merged_tso").set(position.physical_ms() as f64);
}

pub(crate) fn written(watermark: Tso) {
    gauge!("drainer_written_tso").set(watermark.physical_ms() as f64);
}

pub(crate) fn position(position: Tso) {
    gauge!("binlog_drainer_checkpoint_tso").set(position.physical_ms() as f64);
}

pub(crate) fn lag(now: Tso, stages: &[(&'static str, Tso)]) {
    for (stage, at) in stages.iter().filter(|(_, at)| !at.is_zero()) {
        gauge!("drainer_lag_seconds", "stage" => *stage).set(now.seconds_since(*at));
    }
}

pub(crate) fn pump_lag(pump: &str, now: Tso, watermark: Tso) {
    gauge!("drainer_pump_lag_seconds", "pump" => pump.to_owned()).set(now.seconds_since(watermark));
}

pub(crate) fn pump_connected(pump: &str, is: bool) {
    gauge!("drainer_pump_connected", "pump" => pump.to_owned()).set(if is { 1.0 } else { 0.0 });
}

/// A pump that is gone for good neither lags nor is expected to be connected.
pub(crate) fn forget_pump(pump: &str) {
    gauge!("drainer_pump_lag_seconds", "pump" => pump.to_owned()).set(0.0);
    gauge!("drainer_pump_connected", "pump" => pump.to_owned()).set(0.0);
}

pub(crate) fn received(pump: &str, transactions: u64) {
    if transactions > 0 {
        counter!("drainer_received_transactions_total", "pump" => pump.to_owned()).increment(transactions);
    }
}

pub(crate) fn copies_dropped(total: u64) {
    counter!("drainer_copies_dropped_total").absolute(total);
}

pub(crate) fn skipped_rows(discarded: u64, filtered: u64) {
    if discarded > 0 {
        counter!("drainer_rows_discarded_total").increment(discarded);
    }
    if filtered > 0 {
        counter!("drainer_rows_filtered_total").increment(filtered);
    }
}

pub(crate) fn committed(kind: &'static str, took: Duration) {
    counter!("drainer_kafka_commits_total", "kind" => kind).increment(1);
    histogram!("drainer_kafka_commit_seconds").record(took.as_secs_f64());
}

pub(crate) fn written_batch(transactions: usize, changes: u64, bytes: usize) {
    counter!("drainer_transactions_total").increment(transactions as u64);
    counter!("drainer_changes_total").increment(changes);
    counter!("drainer_row_bytes_total").increment(bytes as u64);
}

pub(crate) fn epoch() {
    counter!("drainer_epochs_total").increment(1);
}

pub(crate) fn ddl_waiting(is: bool) {
    gauge!("drainer_ddl_waiting").set(if is { 1.0 } else { 0.0 });
}
