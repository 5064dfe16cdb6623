//! The command line of `tidb-sim`.

mod console;
mod load;
mod play;
mod serve;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use node::shutdown::Shutdown;
use serde::Serialize;

pub use console::{Console, Output};

use crate::client::ClientOptions;
use crate::jobs::Lateness;
use crate::pumps::{Registration, Strategy};
use crate::stage::{Stage, StageOptions};

/// Stands in for TiDB, PD and TiKV: plays a recorded TiDB to pumps, or serves the stand-ins alone.
#[derive(Debug, Parser)]
#[command(name = "tidb-sim", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play a recorded folder to the pumps of a cluster whose PD, TiKV and TiDB this process stands in for.
    Play(play::PlayArgs),
    /// Run synthetic transactions against the pumps, at a rate or as fast as they acknowledge.
    Load(load::LoadArgs),
    /// Stand in for PD, TiKV and TiDB's status port without sending anything.
    Serve(serve::ServeArgs),
}

impl Cli {
    /// What to print.
    pub fn output(&self) -> Output {
        match &self.command {
            Command::Play(args) => args.stage.output,
            Command::Load(args) => args.stage.output,
            Command::Serve(args) => args.stage.output,
        }
    }
}

/// Runs a command to its end.
pub async fn run(cli: Cli, console: &Console, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Play(args) => play::run(args, console, shutdown).await,
        Command::Load(args) => load::run(args, console, shutdown).await,
        Command::Serve(args) => serve::run(args, console, shutdown).await,
    }
}

/// Where the stand-ins listen.
#[derive(Debug, Args)]
struct StageArgs {
    /// Where PD (and etcd, through the same port) answers; port 0 means any free one.
    #[arg(long, visible_alias = "listen-pd", value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: String,
    /// Where TiKV answers.
    #[arg(long, visible_alias = "listen-tikv", value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    tikv_listen: String,
    /// Where TiDB's HTTP status port answers.
    #[arg(long, visible_alias = "listen-status", value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    status_listen: String,
    /// The etcd that PD's port hands etcd's calls on to, such as http://127.0.0.1:2379.
    #[arg(long, visible_alias = "etcd-endpoints", value_name = "URL")]
    etcd: Option<String>,
    /// PD's cluster id.
    #[arg(long, value_name = "N", default_value_t = StageOptions::default().cluster_id)]
    cluster_id: u64,
    /// The share of DDL jobs that enter TiDB's history some time after their binlog, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = Lateness::default().share, value_parser = share)]
    late_share: f64,
    /// How long after; longer than the playback means never [default: one to four seconds].
    #[arg(long, value_name = "DURATION")]
    late_by: Option<node::config::HumanDuration>,
    /// Chooses what a recording leaves open: late jobs, moments at which locks appear, silent ends.
    #[arg(long, value_name = "N", default_value_t = StageOptions::default().seed)]
    seed: u64,
    /// Print for people, or one JSON object a line.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("must be from 0 to 1".into()) }
}

impl StageArgs {
    fn options(&self) -> StageOptions {
        StageOptions {
            pd: self.listen.clone(),
            tikv: self.tikv_listen.clone(),
            status: self.status_listen.clone(),
            etcd: self.etcd.clone(),
            cluster_id: self.cluster_id,
            lateness: Lateness {
                share: self.late_share,
                by: self.late_by.map(node::config::HumanDuration::get),
            },
            seed: self.seed,
        }
    }
}

/// How TiDB's pump client sends.
#[derive(Debug, Args)]
struct ClientArgs {
    /// Begin once this many pumps are online.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    wait_pumps: u16,
    /// Which pump a transaction goes to; `recorded` needs a recording and is `range` without one.
    #[arg(long, value_enum, default_value_t)]
    strategy: Strategy,
    /// For how long a prewrite is tried before TiDB gives up and stops.
    #[arg(long, value_name = "DURATION", default_value = "15s")]
    write_timeout: node::config::HumanDuration,
}

impl ClientArgs {
    fn options(&self) -> ClientOptions {
        ClientOptions {
            strategy: self.strategy,
            write_timeout: self.write_timeout.get(),
            ..ClientOptions::default()
        }
    }
}

/// Where to find the stand-ins; printed once they answer.
#[derive(Debug, Serialize)]
struct Ready {
    event: &'static str,
    pd: String,
    tikv: String,
    status: String,
    cluster_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Ready {
    fn of(stage: &Stage) -> Self {
        Self {
            event: "ready",
            pd: stage.pd.url(),
            tikv: stage.tikv.address(),
            status: format!("http://{}", stage.status.address()),
            cluster_id: stage.cluster.id(),
            records: None,
            note: None,
        }
    }
}

impl std::fmt::Display for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ready: pd {}  tikv {}  tidb status {}", self.pd, self.tikv, self.status)
    }
}

#[derive(Debug, Serialize)]
struct Pump {
    node_id: String,
    address: String,
}

impl From<&Registration> for Pump {
    fn from(pump: &Registration) -> Self {
        Self { node_id: pump.node_id.clone(), address: pump.host.clone() }
    }
}

#[derive(Debug, Serialize)]
struct Playing {
    event: &'static str,
    pumps: Vec<Pump>,
}

impl std::fmt::Display for Playing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to:", self.event)?;
        self.pumps.iter().try_for_each(|pump| write!(f, "  {} ({})", pump.node_id, pump.address))
    }
}
