//! `tidb-sim load`: synthetic transactions, to the pumps.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use node::config::HumanDuration;
use node::shutdown::Shutdown;
use serde::Serialize;
use tokio::time::{Instant, interval};

use super::{ClientArgs, Console, Playing, Pump, Ready, StageArgs, share};
use crate::client::PumpClient;
use crate::load::workload::Kind;
use crate::load::{Load, LoadOptions, LoadReport};
use crate::pumps::Strategy;
use crate::stage::Stage;

/// Arguments of `load`.
#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    #[command(flatten)]
    pub(super) stage: StageArgs,
    #[command(flatten)]
    client: ClientArgs,
    /// What the transactions do.
    #[arg(long, value_enum, default_value_t)]
    workload: Kind,
    /// Sessions, each with one transaction at a time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    sessions: u32,
    /// Transactions a second over all sessions; without it, as fast as the pumps acknowledge.
    #[arg(long, value_name = "TPS", value_parser = rate)]
    rate: Option<f64>,
    /// About how large a prewrite binlog is.
    #[arg(long, value_name = "SIZE", default_value = "300B")]
    payload: node::config::ByteSize,
    /// End after this many transactions.
    #[arg(long, value_name = "N")]
    transactions: Option<u64>,
    /// End after this long; without either, at SIGTERM.
    #[arg(long, value_name = "DURATION")]
    duration: Option<HumanDuration>,
    /// The share of transactions that fail and send a rollback, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    rollback_share: f64,
    /// The share of transactions that commit but never send their commit binlog, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    orphan_share: f64,
    /// Exit after the last transaction instead of standing in until SIGTERM.
    #[arg(long, visible_alias = "exit-when-done")]
    until_done_exit: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.01..=10_000_000.0).contains(&rate) { Ok(rate) } else { Err("must be from 0.01 to 10000000".into()) }
}

pub(super) async fn run(args: LoadArgs, console: &Console, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        args.stage.etcd.is_some(),
        "load needs --etcd URL: pumps register there, and PD's port hands their calls on to it"
    );
    let stage = Stage::live(&args.stage.options()).await?;
    let mut how = args.client.options();
    if how.strategy == Strategy::Recorded {
        how.strategy = Strategy::Range;
    }
    // Before anybody is told to go ahead, so that whoever ends etcd after that meets a client that waits for it.
    let client = PumpClient::connect(&stage.pd.url(), stage.cluster.id(), how).await?;
    console.print(&Ready::of(&stage))?;
    let Some(pumps) = shutdown.unless(client.wait_online(args.client.wait_pumps.into())).await else {
        return Ok(ExitCode::SUCCESS);
    };
    console.print(&Playing { event: "loading", pumps: pumps.iter().map(Pump::from).collect() })?;

    let options = LoadOptions {
        kind: args.workload,
        sessions: args.sessions as usize,
        rate: args.rate,
        payload: usize::try_from(args.payload.as_u64()).context("--payload is too large")?,
        transactions: args.transactions,
        duration: args.duration.map(|duration| duration.get()),
        rollback_share: args.rollback_share,
        orphan_share: args.orphan_share,
        seed: args.stage.seed,
    };
    let load = Load::new(stage.cluster.clone(), stage.schema.clone(), client, options);
    let begin = Instant::now();
    let shown = tokio::spawn(show(console.clone(), load.clone(), options));
    let ended = load.run(shutdown.child().token().clone()).await;
    shown.abort();
    let report = ended.context("load stopped")?;
    let seconds = begin.elapsed().as_secs_f64();
    let clean = report.lost == 0 && report.refused == 0 && report.aborted == 0;
    let per_second = report.committed as f64 / seconds;
    console.print(&Loaded { event: "loaded", seconds, per_second, clean, report })?;
    if !args.until_done_exit {
        shutdown.cancelled().await;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows how the load goes.
async fn show(console: Console, load: Load, options: LoadOptions) {
    let bar = console.bar(options.transactions.unwrap_or(0));
    let period = Duration::from_millis(if console.is_attended() { 200 } else { 5000 });
    let mut ticks = interval(period);
    ticks.tick().await;
    let (mut before, mut since) = (0, Instant::now());
    loop {
        ticks.tick().await;
        let report = load.report();
        let done = report.committed + report.rolled_back;
        let per_second = (done.saturating_sub(before) as f64 / since.elapsed().as_secs_f64()).round();
        (before, since) = (done, Instant::now());
        bar.set_position(done);
        let p99 = report.prewrite.quantile(0.99).as_secs_f64() * 1000.0;
        bar.set_message(format!("{per_second} transactions/s, prewrite p99 {p99:.1} ms"));
        if !console.is_attended() {
            tracing::info!(
                transactions = done,
                per_second,
                prewrite_p99_ms = p99,
                retries = report.retries,
                "loading"
            );
        }
    }
}

#[derive(Debug, Serialize)]
struct Loaded {
    event: &'static str,
    seconds: f64,
    per_second: f64,
    /// Everything that was sent was taken.
    clean: bool,
    #[serde(flatten)]
    report: LoadReport,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadReport { committed, rolled_back, aborted, refused, lost, retries, prewrite, commit, .. } =
            &self.report;
        let ms = |latency: Duration| latency.as_secs_f64() * 1000.0;
        write!(
            f,
            "{committed} transactions in {:.1} s ({:.0}/s), {rolled_back} rolled back, {retries} retries\n\
             prewrite p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; commit p50 {:.1} ms, p99 {:.1} ms",
            self.seconds,
            self.per_second,
            ms(prewrite.quantile(0.5)),
            ms(prewrite.quantile(0.99)),
            ms(prewrite.max()),
            ms(commit.quantile(0.5)),
            ms(commit.quantile(0.99)),
        )?;
        if !self.clean {
            write!(f, "\nNOT clean: {refused} refused, {lost} given up, {aborted} rolled back in TiKV")?;
        }
        Ok(())
    }
}
