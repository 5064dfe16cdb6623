//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use node::config::HumanDuration;

use crate::pull;
use crate::report::Output;

/// Measures a pump, its store and the disk below it. Results are comparable only within one run on a quiet machine.
#[derive(Debug, Parser)]
#[command(name = "sluice-bench", version)]
pub struct Arguments {
    /// What to measure.
    #[command(subcommand)]
    pub what: What,
    /// How results are shown.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// A file that raw results are appended to, a JSON object per line.
    #[arg(long, global = true, value_name = "FILE")]
    pub raw: Option<PathBuf>,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Synced writes per second that the disk allows: appended, reserved and written space.
    Disk(Disk),
    /// The store without gRPC.
    Store(Store),
    /// Write to a running pump as TiDB sessions do.
    Ingest(Ingest),
    /// Pull a running pump's backlog and check it.
    Pull(Pull),
    /// All of it on a site of its own: starts etcd, stand-ins for PD and TiKV, and the pump.
    Suite(Suite),
}

/// `disk`
#[derive(Debug, Args)]
pub struct Disk {
    /// A directory on the disk.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// Bytes of a write.
    #[arg(long, value_delimiter = ',', default_value = "400,4096,65536,1048576")]
    pub bytes: Vec<usize>,
    /// Time of each measurement.
    #[arg(long, default_value = "2s")]
    pub time: HumanDuration,
}

/// `store`
#[derive(Debug, Args)]
pub struct Store {
    /// A directory on the disk.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// The load.
    #[command(flatten)]
    pub load: Load,
}

/// Sessions, sizes and times.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// Concurrent sessions, each waiting for its answers.
    #[arg(long, value_delimiter = ',', default_value = "1,16,128")]
    pub sessions: Vec<usize>,
    /// Bytes of a prewrite binlog.
    #[arg(long, value_delimiter = ',', default_value = "100,300,1024,102400")]
    pub payload: Vec<usize>,
    /// Time of each measurement.
    #[arg(long, default_value = "10s")]
    pub time: HumanDuration,
}

/// `ingest`
#[derive(Debug, Args)]
pub struct Ingest {
    /// The pump, `host:port`.
    #[arg(long)]
    pub addr: String,
    /// PD's client URLs, comma-separated: cluster id and timestamps.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    pub pd_urls: Vec<String>,
    /// The load.
    #[command(flatten)]
    pub load: Load,
    /// Transactions begun per second instead of sessions: an open loop, whose latencies count from when each was due.
    #[arg(long, conflicts_with = "sessions")]
    pub rate: Vec<f64>,
    /// TiDB servers: connections that the sessions share.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Time before measuring.
    #[arg(long, default_value = "2s")]
    pub warm_up: HumanDuration,
    /// The pump's process id, for its processor time and memory.
    #[arg(long)]
    pub pid: Option<u32>,
}

/// `pull`
#[derive(Debug, Args)]
pub struct Pull {
    /// The pump, `host:port`.
    #[arg(long)]
    pub addr: String,
    /// PD's client URLs, comma-separated: the cluster id.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    pub pd_urls: Vec<String>,
    /// Which protocol.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "batches,original")]
    pub ways: Vec<pull::Way>,
    /// Transactions with a greater commit_ts.
    #[arg(long, default_value_t = 0)]
    pub after: u64,
    /// Up to this commit_ts; default: PD's timestamp of now.
    #[arg(long)]
    pub upto: Option<u64>,
    /// How many transactions must come.
    #[arg(long)]
    pub expect: Option<u64>,
    /// The pump's process id, for its processor time and memory.
    #[arg(long)]
    pub pid: Option<u32>,
}

/// `suite`
#[derive(Debug, Args)]
pub struct Suite {
    /// The pump to start: any that understands `-addr`, `-pd-urls`, `-data-dir`, `-L`. Default: `pump` beside this program.
    #[arg(long)]
    pub pump: Option<PathBuf>,
    /// More arguments for it.
    #[arg(long, allow_hyphen_values = true, value_delimiter = ' ')]
    pub pump_args: Vec<String>,
    /// A directory on the disk to measure.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// The load.
    #[command(flatten)]
    pub load: Load,
    /// Transactions stored before a pull.
    #[arg(long, default_value_t = 300_000)]
    pub backlog: u64,
    /// Skip our own pull, which other pumps do not speak.
    #[arg(long)]
    pub original_only: bool,
}
