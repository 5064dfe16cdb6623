//! kill -9 of one process after the other at seeded random moments of a replay; the end is the same.

use anyhow::{Result, ensure};
use e2e::{
    checker,
    harness::{
        admin,
        process::{PATIENCE, Process, eventually},
        site::{Format, Service, Site, Speed},
    },
};
use nix::sys::signal::Signal;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::{cast::Cast, exports};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Pump,
    Drainer,
    Apply,
    Export,
}

/// How often it is killed in one replay.
const KILLS: usize = 3;

async fn survives(victim: Victim, seed: u64) -> Result<()> {
    let corpus = if seed.is_multiple_of(2) { "concurrent" } else { "shop" };
    survives_on(corpus, Format::Jsonl, victim, seed).await
}

async fn survives_on(corpus: &str, format: Format, victim: Victim, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut shares: Vec<f64> = (0..KILLS).map(|_| random.random_range(0.05..0.95)).collect();
    shares.sort_by(f64::total_cmp);
    eprintln!("{victim:?}, seed {seed}: {corpus}, killed at {shares:.2?} of the recording");

    let name = format!("kill-{victim:?}-{corpus}-{seed}").to_lowercase();
    let mut cast = Cast::begin(&name, corpus, Speed::Times(1.0)).await?;
    let end = cast.site.recording().end().commit_ts.to_string();
    let until = ["--until-commit-ts", end.as_str()];
    let mut apply = run(cast.site.apply()?.with(&until))?;
    let mut export = run(cast.site.export(format)?.with(&until))?;
    let mut kills = 0_u64;
    for share in shares {
        cast.await_share(share).await?;
        if victim == Victim::Drainer {
            // So that each kill interrupts an epoch, however long a start takes on this machine.
            let admin = &cast.drainer.0.admin;
            eventually("the drainer to write", async || {
                let status = admin::json(admin, "/status").await;
                Ok(status.ok().filter(|status| status["epoch"].as_u64() > Some(kills)).map(drop))
            })
            .await?;
        }
        let pump = random.random_range(0..cast.pumps.len());
        let (service, process) = match victim {
            Victim::Pump => &mut cast.pumps[pump],
            Victim::Drainer => &mut cast.drainer,
            Victim::Apply => &mut apply,
            Victim::Export => &mut export,
        };
        ensure!(
            process.ended()?.is_none(),
            "{} ended before it was killed:\n{}",
            process.name(),
            process.log_tail()
        );
        process.kill().await?;
        *process = service.program.start()?;
        kills += 1;
    }
    cast.ends_well(&mut apply.1).await?;
    cast.ends_well(&mut export.1).await?;
    cast.compare_with_end().await?;
    let report = cast.verify_log().await?;
    if victim == Victim::Drainer {
        ensure!(report.epochs as u64 == kills + 1, "{kills} kills, {} epochs", report.epochs);
    }
    exports::hold_the_log_once(&cast.site, format).await?;
    cast.finish().await
}

fn run(service: Service) -> Result<(Service, Process)> {
    let process = service.program.start()?;
    Ok((service, process))
}

#[tokio::test]
async fn pump_1() -> Result<()> {
    survives(Victim::Pump, 1).await
}

#[tokio::test]
async fn pump_2() -> Result<()> {
    survives(Victim::Pump, 2).await
}

#[tokio::test]
async fn pump_3() -> Result<()> {
    survives(Victim::Pump, 3).await
}

#[tokio::test]
async fn drainer_1() -> Result<()> {
    survives(Victim::Drainer, 1).await
}

#[tokio::test]
async fn drainer_2() -> Result<()> {
    survives(Victim::Drainer, 2).await
}

#[tokio::test]
async fn drainer_3() -> Result<()> {
    survives(Victim::Drainer, 3).await
}

#[tokio::test]
async fn apply_1() -> Result<()> {
    survives(Victim::Apply, 1).await
}

#[tokio::test]
async fn apply_2() -> Result<()> {
    survives(Victim::Apply, 2).await
}

#[tokio::test]
async fn apply_3() -> Result<()> {
    survives(Victim::Apply, 3).await
}

#[tokio::test]
async fn export_1() -> Result<()> {
    survives(Victim::Export, 1).await
}

#[tokio::test]
async fn export_2() -> Result<()> {
    survives(Victim::Export, 2).await
}

#[tokio::test]
async fn export_3() -> Result<()> {
    survives(Victim::Export, 3).await
}

/// The resolver's knowledge dies with the pump: what never got its commit is asked for again.
#[tokio::test]
async fn pump_with_orphans() -> Result<()> {
    survives_on("orphans", Format::Jsonl, Victim::Pump, 4).await
}

/// A schema change that was under way is found done, or done.
#[tokio::test]
async fn apply_in_schema_changes() -> Result<()> {
    survives_on("ddl", Format::Jsonl, Victim::Apply, 5).await
}

/// An update is two lines of a file: never one of them.
#[tokio::test]
async fn export_as_csv() -> Result<()> {
    survives_on("shop", Format::Csv, Victim::Export, 6).await?;
    survives_on("concurrent", Format::Csv, Victim::Export, 7).await
}

/// Ends of the row topic's partitions, added up: of the log, and as `read_committed` sees it.
async fn ends(site: &Site) -> Result<(i64, i64)> {
    let (settings, topic) = (site.kafka.client(), site.topic().to_owned());
    let ask = move || -> Result<(i64, i64)> {
        let mut sums = [0, 0];
        for (sum, isolation) in sums.iter_mut().zip(["read_uncommitted", "read_committed"]) {
            let mut settings = settings.clone();
            let consumer: BaseConsumer = settings.set("isolation.level", isolation).create()?;
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE)?;
            let partitions =
                metadata.topics().first().map(|topic| topic.partitions().len()).unwrap_or_default();
            for partition in 0..i32::try_from(partitions)? {
                *sum += consumer.fetch_watermarks(&topic, partition, PATIENCE)?.1;
            }
        }
        Ok((sums[0], sums[1]))
    };
    tokio::task::spawn_blocking(ask).await?
}

/// A kill that is known to hit an open Kafka transaction: its rows are in the log and nobody ever reads them; they come again.
#[tokio::test]
async fn drainer_in_an_open_transaction() -> Result<()> {
    let mut cast = Cast::begin("kill-open", "concurrent", Speed::Times(1.0)).await?;
    cast.await_share(0.1).await?;
    let open = loop {
        // Stopped, it can neither commit nor abort while the brokers are asked.
        cast.drainer.1.signal(Signal::SIGSTOP)?;
        let (log, committed) = ends(&cast.site).await?;
        if log > committed {
            break log - committed;
        }
        cast.drainer.1.signal(Signal::SIGCONT)?;
        let (sent, total) = cast.progress().await?;
        ensure!(sent < total, "no transaction was ever seen open");
    };
    cast.drainer.1.kill().await?;
    let (log, committed) = ends(&cast.site).await?;
    ensure!(log - committed == open, "{open} offsets were open, {} are after the kill", log - committed);
    cast.drainer.1 = cast.drainer.0.start().await?;

    let end = cast.site.recording().end().commit_ts;
    cast.apply_until(end).await?;
    cast.compare_with_end().await?;
    let report = cast.verify_log().await?;
    ensure!(report.epochs == 2, "{} epochs", report.epochs);
    let aborted = checker::read::aborted_rows(cast.site.kafka.client(), cast.site.topic()).await?;
    ensure!(
        aborted > 0,
        "{open} offsets were open, and no row is in the log that read_committed does not show"
    );
    cast.finish().await
}
