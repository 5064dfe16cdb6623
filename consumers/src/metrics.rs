//! Metrics of the consumers, all of them. Counters end in `_total`; sizes are bytes, times seconds, lag is seconds of
//! commit_ts, measured between two timestamps of the upstream and never against a clock here.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use schemas::sluice::v1::Op;
use tidb::ts::CommitTs;

/// Describes them. Call once, after the recorder is installed.
pub fn describe() {
    describe_counter!(
        "consumer_transactions_total",
        Unit::Count,
        "transactions and schema changes read off the log, whole"
    );
    describe_counter!("consumer_rows_total", Unit::Count, "row changes read off the log, by op");
    describe_counter!(
        "consumer_stranger_records_total",
        Unit::Count,
        "records of row topics that belong to no transaction read"
    );
    describe_counter!(
        "consumer_stale_records_total",
        Unit::Count,
        "records of epochs that were over, ignored"
    );
    describe_gauge!(
        "consumer_log_commit_ts_milliseconds",
        Unit::Milliseconds,
        "newest watermark seen in the commit stream, as Unix time"
    );
    describe_gauge!(
        "consumer_commit_ts_milliseconds",
        Unit::Milliseconds,
        "where the target stands, as Unix time"
    );
    describe_gauge!(
        "consumer_lag_seconds",
        Unit::Seconds,
        "newest watermark seen minus where the target stands"
    );
    describe_gauge!("consumer_seq", Unit::Count, "number of the last transaction in the target");
    describe_histogram!("apply_batch_seconds", Unit::Seconds, "one downstream transaction, begin to commit");
    describe_histogram!(
        "apply_batch_transactions",
        Unit::Count,
        "upstream transactions folded into one downstream transaction"
    );
    describe_counter!("apply_rows_total", Unit::Count, "rows written downstream, by kind of statement");
    describe_counter!(
        "apply_folded_rows_total",
        Unit::Count,
        "row changes that later changes of the same batch made unnecessary"
    );
    describe_counter!("apply_conflicts_total", Unit::Count, "rows that were not as the log says, by kind");
    describe_counter!("apply_retries_total", Unit::Count, "downstream transactions tried again");
    describe_counter!("apply_ddl_total", Unit::Count, "schema changes, by what became of them");
    describe_counter!("export_files_total", Unit::Count, "files finished");
    describe_counter!("export_rows_total", Unit::Count, "rows written to finished files");
    describe_counter!("export_bytes_total", Unit::Bytes, "bytes of finished files");
}

pub(crate) fn transaction() {
    counter!("consumer_transactions_total").increment(1);
}

pub(crate) fn row(op: Op) {
    let op = match op {
        Op::Insert => "insert",
        Op::Update => "update",
        Op::Delete => "delete",
        Op::Unspecified => "unspecified",
    };
    counter!("consumer_rows_total", "op" => op).increment(1);
}

pub(crate) fn stranger(topic: &str) {
    counter!("consumer_stranger_records_total", "topic" => topic.to_owned()).increment(1);
}

pub(crate) fn stale_row(topic: &str) {
    counter!("consumer_stale_records_total", "topic" => topic.to_owned()).increment(1);
}

pub(crate) fn stale_commit_record() {
    counter!("consumer_stale_records_total", "topic" => "commits").increment(1);
}

pub(crate) fn log_watermark(watermark: CommitTs) {
    gauge!("consumer_log_commit_ts_milliseconds").set(watermark.0.physical_ms() as f64);
}

pub(crate) fn applied(commit_ts: CommitTs, seq: u64, lag_seconds: f64) {
    gauge!("consumer_commit_ts_milliseconds").set(commit_ts.0.physical_ms() as f64);
    gauge!("consumer_seq").set(seq as f64);
    gauge!("consumer_lag_seconds").set(lag_seconds);
}

pub(crate) fn batch(took: Duration, transactions: u64, folded_away: u64) {
    histogram!("apply_batch_seconds").record(took.as_secs_f64());
    histogram!("apply_batch_transactions").record(transactions as f64);
    counter!("apply_folded_rows_total").increment(folded_away);
}

pub(crate) fn written(kind: &'static str, rows: u64) {
    counter!("apply_rows_total", "kind" => kind).increment(rows);
}

pub(crate) fn conflict(kind: &'static str, rows: u64) {
    counter!("apply_conflicts_total", "kind" => kind).increment(rows);
}

pub(crate) fn retry() {
    counter!("apply_retries_total").increment(1);
}

pub(crate) fn ddl(outcome: &'static str) {
    counter!("apply_ddl_total", "outcome" => outcome).increment(1);
}

pub(crate) fn exported(rows: u64, bytes: u64) {
    counter!("export_files_total").increment(1);
    counter!("export_rows_total").increment(rows);
    counter!("export_bytes_total").increment(bytes);
}
