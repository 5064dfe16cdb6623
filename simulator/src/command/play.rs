//! `tidb-sim play`: a recorded folder, to the pumps.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use node::shutdown::Shutdown;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{ClientArgs, Console, Playing, Pump, Ready, StageArgs};
use crate::client::PumpClient;
use crate::player::{PlayOptions, Player, Progress, Speed};
use crate::recording::Recording;
use crate::stage::Stage;

/// Arguments of `play`.
#[derive(Debug, Args)]
pub(super) struct PlayArgs {
    /// A folder with pump-N.rec(.gz), ddl-history.json(.gz) and, where commits are missing, txn-status.json.
    folder: PathBuf,
    #[command(flatten)]
    pub(super) stage: StageArgs,
    #[command(flatten)]
    client: ClientArgs,
    /// `recorded`, a factor of it such as 4, or `max`: as fast as the pumps acknowledge.
    #[arg(long, value_name = "SPEED", default_value = "recorded")]
    speed: Speed,
    /// Records under way at a time, at most: TiDB's sessions.
    #[arg(long, value_name = "N", default_value_t = PlayOptions::default().in_flight)]
    in_flight: usize,
    /// Exit after the last record instead of standing in until SIGTERM.
    #[arg(long, visible_alias = "exit-when-done")]
    until_done_exit: bool,
}

pub(super) async fn run(args: PlayArgs, console: &Console, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        args.stage.etcd.is_some(),
        "play needs --etcd URL: pumps register there, and PD's port hands their calls on to it"
    );
    let folder = args.folder.clone();
    let recording = tokio::task::spawn_blocking(move || Recording::load(&folder)).await??;
    let script = Arc::new(recording.script);
    let stage = Stage::for_playback(&script, args.speed.rate(), &args.stage.options()).await?;
    let ready =
        Ready { records: Some(script.records().len()), note: Some(recording.note), ..Ready::of(&stage) };
    // Before anybody is told to go ahead, so that whoever ends etcd after that meets a client that waits for it.
    let client = PumpClient::connect(&stage.pd.url(), stage.cluster.id(), args.client.options()).await?;
    console.print(&ready)?;
    let Some(pumps) = shutdown.unless(client.wait_online(args.client.wait_pumps.into())).await else {
        return Ok(ExitCode::SUCCESS);
    };
    console.print(&Playing { event: "playing", pumps: pumps.iter().map(Pump::from).collect() })?;

    let options = PlayOptions {
        speed: args.speed,
        in_flight: args.in_flight.max(1),
        seed: args.stage.seed,
        ..PlayOptions::default()
    };
    let begin = Instant::now();
    let player = Player::new(Arc::clone(&script), &stage, client, options);
    stage.schema.plays(player.progress());
    let shown = tokio::spawn(show(console.clone(), player.progress()));
    let progress = player.play(shutdown.token().clone()).await.context("playback stopped")?;
    shown.await?;
    let faithful = progress.is_faithful();
    let seconds = begin.elapsed().as_secs_f64();
    console.print(&Played {
        event: "played",
        seconds,
        faithful,
        tso: stage.cluster.tso().get(),
        progress,
    })?;
    if !args.until_done_exit {
        shutdown.cancelled().await;
    }
    Ok(if faithful { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows how the playback goes, on a bar or as a log line every few seconds, until it ends.
async fn show(console: Console, mut progress: watch::Receiver<Progress>) {
    let bar = console.bar(progress.borrow().records as u64);
    let mut ticks = interval(Duration::from_millis(if console.is_attended() { 100 } else { 5000 }));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let ended = tokio::select! {
            _ = ticks.tick() => false,
            // The sender goes with the player.
            () = async { while progress.changed().await.is_ok() {} } => true,
        };
        let now = progress.borrow().clone();
        let (transactions, lag) = (now.commits, now.lag_seconds());
        bar.set_position(now.done as u64);
        bar.set_message(format!("{transactions} transactions, {lag:.1} s left of the recording"));
        if ended {
            break;
        }
        if !console.is_attended() {
            let Progress { done, records, retries, newest_commit_ts, .. } = now;
            tracing::info!(done, records, transactions, retries, %newest_commit_ts, lag_seconds = lag, "playing");
        }
    }
    bar.finish_and_clear();
}

#[derive(Debug, Serialize)]
struct Played {
    event: &'static str,
    seconds: f64,
    /// Everything arrived as it was recorded.
    faithful: bool,
    /// PD's clock after the last record.
    tso: u64,
    #[serde(flatten)]
    progress: Progress,
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress {
            done,
            prewrites,
            commits,
            rollbacks,
            retries,
            lost,
            refused,
            aborted,
            newest_commit_ts,
            ..
        } = self.progress;
        write!(
            f,
            "played {done} records in {:.1} s: {prewrites} prewrites, {commits} commits, {rollbacks} rollbacks, {retries} \
             retries; newest commit_ts {newest_commit_ts}",
            self.seconds
        )?;
        if !self.faithful {
            write!(
                f,
                "\nNOT as recorded: {lost} given up, {refused} refused by pumps, {aborted} rolled back in TiKV"
            )?;
        }
        Ok(())
    }
}
