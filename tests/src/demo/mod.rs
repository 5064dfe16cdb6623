//! The demo: the whole path on a recording, shown in a terminal, judged at the end.
//!
//! It uses nothing but what a user has: the binaries with their flags and configuration files, `binlogctl`, SQL, the
//! admin listeners, and the log checker of the tests.

mod facts;
mod progress;
mod screen;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    checker,
    compare::compare,
    harness::{
        process::Process,
        scratch::Scratch,
        site::{Format, Service, Site, Speed},
    },
    recording::Recording,
};
use screen::Screen;

/// Plays a recording of TiDB's binlog through pumps, Kafka, apply-mysql and export-files, and compares MariaDB with the recorded state.
#[derive(Clone, Debug, Parser)]
#[command(name = "sluice-demo", version)]
pub struct Options {
    /// A folder's name under tests/fixtures, or a path to any folder of that form.
    #[arg(default_value = "shop")]
    corpus: String,
    /// Leave everything running afterwards and say how to look around.
    #[arg(long)]
    keep: bool,
    /// How many times as fast as it was recorded [default: as recorded, but at most some 15 s].
    #[arg(long, value_name = "FACTOR")]
    speed: Option<f64>,
}

/// What runs, in the order in which it is stopped.
struct Running {
    apply: (Service, Process),
    export: (Service, Process),
    drainer: (Service, Process),
    pumps: Vec<(Service, Process)>,
    simulator: Process,
}

/// Runs the demo. True: MariaDB equals the recorded state and the log adds up. An error or a signal ends everything that
/// was started and removes its folder, whether it was to stay or not.
pub async fn run(options: Options) -> Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        outcome = story(&options) => outcome,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
        _ = hang_up.recv() => bail!("the terminal is gone"),
    }
}

async fn story(options: &Options) -> Result<bool> {
    let started = Instant::now();
    let screen = Screen::new();
    let recording = Recording::open(&options.corpus)?;
    screen.title(&format!("Sluice demo: {}", recording.note()));

    let scratch = if options.keep { Scratch::lasting("demo") } else { Scratch::new("demo") }?;
    let step = screen.step("starting etcd, Kafka, MariaDB");
    let site = Site::in_scratch("demo", &recording, scratch).await?;
    step.done(&format!(
        "etcd {} · Kafka {} · MariaDB 127.0.0.1:{}",
        site.etcd.address(),
        site.kafka.brokers(),
        site.mariadb.port()
    ));
    let step = screen.step("starting tidb-sim, pumps, drainer-kafka, apply-mysql, export-files");
    let mut running = start(&site, options).await?;
    step.done(&format!("{} pumps", running.pumps.len()));

    progress::play(&site, &mut running, &screen).await?;

    screen.heading("Pumps and drainer, as binlogctl sees them");
    for what in ["pumps", "drainers"] {
        screen.block(&site.binlogctl(&["-cmd", what]).await?);
    }
    let log = checker::read::log(site.kafka.client(), site.topic()).await?;
    let report = checker::rules::verify(&log);
    screen.heading(&format!("Rows through Kafka, topic {}", site.topic()));
    screen.table(&facts::rows_by_partition(&report), &["table", "partition", "rows"].map(str::to_owned));
    screen.line(&facts::log_summary(&report));
    for violation in &report.violations {
        screen.bad(violation);
    }
    screen.heading("Read back from MariaDB");
    let mut session = site.mariadb.connect().await?;
    for query in facts::queries(&recording)? {
        screen.query(&query);
        let (names, rows) = facts::ask(&mut session, &query).await?;
        screen.table(&rows, &names);
    }
    screen.heading("Exported files");
    screen.table(&facts::exported(&site.exported())?, &[]);
    screen.heading("Lag behind PD's newest timestamp");
    screen.table(&facts::lags(&site, &running).await?, &[]);

    let state = recording.state(recording.end())?;
    let comparison = compare(&state, &mut session).await?;
    session.disconnect().await?;
    screen.heading("MariaDB against the recorded state, row by row");
    screen.table(&facts::verdicts(&comparison), &[]);
    for difference in facts::differences(&comparison) {
        screen.bad(&difference);
    }
    let equal = comparison.is_equal() && report.violations.is_empty();
    let verdict = if equal { "EQUAL" } else { "DIFFERENT" };
    screen.verdict(
        equal,
        &format!(
            "{verdict}: {} tables, {} rows at commit_ts {}, in {:.0} s",
            state.tables.len(),
            comparison.rows(),
            state.commit_ts,
            started.elapsed().as_secs_f64()
        ),
    );
    if options.keep {
        facts::leave_running(&site, &running, &screen)?;
    } else {
        stop(running).await?;
    }
    Ok(equal)
}

async fn start(site: &Site, options: &Options) -> Result<Running> {
    let speed = match options.speed {
        Some(factor) => factor,
        None => (site.recording().duration()?.as_secs_f64() / 15.0).max(1.0),
    };
    let simulator = site.start_simulator(Speed::Times(speed)).await?;
    // All pumps are started before one of them is waited for: the first commit_ts waits for the last pump.
    let mut pumps = Vec::new();
    for n in 0..site.pump_count() {
        let service = site.pump(n, "")?;
        let process = service.program.start()?;
        pumps.push((service, process));
    }
    for (service, process) in &mut pumps {
        service.await_ready(process).await?;
    }
    let drainer = site.drainer("")?;
    let drainer = (drainer.clone(), drainer.start().await?);
    let (apply, export) = (site.apply()?, site.export(Format::Jsonl)?);
    let apply = (apply.clone(), apply.program.start()?);
    let export = (export.clone(), export.program.start()?);
    Ok(Running { apply, export, drainer, pumps, simulator })
}

/// Stops everything as an operator would; who does not end well is named.
async fn stop(running: Running) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let Running { apply, export, drainer, pumps, mut simulator } = running;
    for (_, mut process) in [apply, export, drainer].into_iter().chain(pumps) {
        let status = tokio::time::timeout(PATIENCE, process.stop())
            .await
            .with_context(|| format!("{} does not stop", process.name()))??;
        if !status.success() {
            bail!("{} ended badly when asked to stop ({status}):\n{}", process.name(), process.log_tail());
        }
    }
    simulator.stop().await?;
    Ok(())
}
