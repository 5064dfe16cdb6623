//! kill -9 of one process after the other at seeded random moments of a replay; the end is the same.

use anyhow::{Result, ensure};
use e2e::harness::{
    admin,
    process::{Process, eventually},
    site::{Format, Service, Speed},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

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
    let mut random = StdRng::seed_from_u64(seed);
    let corpus = if seed.is_multiple_of(2) { "concurrent" } else { "shop" };
    let mut shares: Vec<f64> = (0..KILLS).map(|_| random.random_range(0.05..0.95)).collect();
    shares.sort_by(f64::total_cmp);
    eprintln!("{victim:?}, seed {seed}: {corpus}, killed at {shares:.2?} of the recording");

    let name = format!("kill-{victim:?}-{seed}").to_lowercase();
    let mut cast = Cast::begin(&name, corpus, Speed::Times(1.0)).await?;
    let end = cast.site.recording().end().commit_ts.to_string();
    let until = ["--until-commit-ts", end.as_str()];
    let mut apply = run(cast.site.apply()?.with(&until))?;
    let mut export = run(cast.site.export(Format::Jsonl)?.with(&until))?;
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
    exports::hold_the_log_once(&cast.site, Format::Jsonl).await?;
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
