//! What is printed: a JSON object per measurement, or a table.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::{disk, ingest, pull, store};

/// How results are shown on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A line of text per measurement.
    Table,
    /// A JSON object per line.
    Json,
}

/// One measurement of any kind.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Result {
    /// What the disk allows.
    Disk(disk::Measured),
    /// A store alone.
    Store(store::Measured),
    /// Writing to a pump.
    Ingest(ingest::Measured),
    /// Reading from a pump.
    Pull(pull::Measured),
}

/// Prints results as they come, and keeps them in a file if there is one.
#[derive(Debug)]
pub struct Report {
    output: Output,
    raw: Option<File>,
    /// The kind of the last line, so that each table gets its heading.
    heading: Option<std::mem::Discriminant<Result>>,
}

impl Report {
    /// Appends raw results to `raw`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(output: Output, raw: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.with_context(|| path.display().to_string())
        };
        Ok(Self { output, raw: raw.map(open).transpose()?, heading: None })
    }

    /// Adds a result.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, result: &Result) -> anyhow::Result<()> {
        let json = serde_json::to_string(result)?;
        if let Some(raw) = &mut self.raw {
            writeln!(raw, "{json}").context("write the results")?;
        }
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Json => writeln!(out, "{json}")?,
            Output::Table => {
                let kind = std::mem::discriminant(result);
                let (heading, row) = row(result);
                if self.heading.replace(kind) != Some(kind) {
                    writeln!(out, "{heading}")?;
                }
                writeln!(out, "{row}")?;
            }
        }
        Ok(out.flush()?)
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn row(result: &Result) -> (String, String) {
    match result {
        Result::Disk(m) => (
            format!(
                "{:<9} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8}",
                "space", "bytes", "syncs/s", "MiB/s", "p50 ms", "p99 ms", "max ms"
            ),
            format!(
                "{:<9} {:>8} {:>9.0} {:>9.1} {:>8.2} {:>8.2} {:>8.2}",
                format!("{:?}", m.space).to_lowercase(),
                m.bytes,
                m.per_second,
                m.bytes_per_second / f64::from(1 << 20),
                m.latency.p50,
                m.latency.p99,
                m.latency.max
            ),
        ),
        Result::Store(m) => (
            format!(
                "{:<8} {:>7} {:>9} {:>8} {:>8} {:>7} {:>6} {:>8} {:>10} {:>9} {:>9} {:>9} {:>7}",
                "sessions",
                "bytes",
                "txn/s",
                "p50 ms",
                "p99 ms",
                "cpu s/M",
                "writes",
                "rss MiB",
                "read txn/s",
                "disk MiB",
                "after gc",
                "gc s",
                "open s"
            ),
            format!(
                "{:<8} {:>7} {:>9.0} {:>8.2} {:>8.2} {:>7.1} {:>5.2}x {:>8.0} {:>10.0} {:>9.0} {:>9.0} {:>9.2} {:>7.2}",
                m.sessions,
                m.payload,
                m.per_second,
                m.group.p50,
                m.group.p99,
                m.cpu_per_million,
                m.write_amplification,
                mib(m.resident),
                m.read_per_second,
                mib(m.disk),
                mib(m.disk_after_collection),
                m.collection_seconds,
                m.open_seconds
            ),
        ),
        Result::Ingest(m) => (
            format!(
                "{:<12} {:>7} {:>9} {:>8} {:>8} {:>8} {:>8} {:>12} {:>12} {:>12}",
                "ingest",
                "bytes",
                "txn/s",
                "p50 ms",
                "p99 ms",
                "max ms",
                "refused",
                "pump us/txn",
                "client",
                "pump RSS MiB"
            ),
            format!(
                "{:<12} {:>7} {:>9.0} {:>8.2} {:>8.2} {:>8.2} {:>8} {:>12.1} {:>12.1} {:>12.0}",
                match m.rate {
                    Some(rate) => format!("{rate:.0}/s"),
                    None => format!("{} sessions", m.sessions),
                },
                m.payload,
                m.per_second,
                m.ack.p50,
                m.ack.p99,
                m.ack.max,
                m.refused,
                m.pump_cpu_micros.unwrap_or(f64::NAN),
                m.client_cpu_micros,
                m.pump_resident.map_or(f64::NAN, mib)
            ),
        ),
        Result::Pull(m) => (
            format!(
                "{:<9} {:>10} {:>9} {:>9} {:>9} {:>12} {:>12} {:>12}",
                "pull", "txn", "txn/s", "MiB/s", "first ms", "pump us/txn", "client", "pump RSS MiB"
            ),
            format!(
                "{:<9} {:>10} {:>9.0} {:>9.1} {:>9.2} {:>12.2} {:>12.2} {:>12.0}",
                format!("{:?}", m.way).to_lowercase(),
                m.transactions,
                m.per_second,
                m.bytes_per_second / f64::from(1 << 20),
                m.first_ms,
                m.pump_cpu_micros.unwrap_or(f64::NAN),
                m.client_cpu_micros,
                m.pump_resident.map_or(f64::NAN, mib)
            ),
        ),
    }
}
