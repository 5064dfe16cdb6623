//! Where a feed begins that has no log yet: at `initial-commit-ts`, else at the savepoint.

use anyhow::{Context as _, Result, ensure};
use e2e::{
    checker,
    compare::load::load,
    harness::site::{Site, Speed},
    recording::Recording,
};
use schemas::sluice::v1::{CommitRecord, commit_record::Body};

use crate::cast::{Cast, DRAINER, ends_well};

/// Every commit record so far; the first is the START of the first epoch.
async fn commit_stream(cast: &Cast) -> Result<(u64, Vec<CommitRecord>)> {
    let log = checker::read::log(cast.site.kafka.client(), cast.site.topic()).await?;
    let records: Vec<_> = log.commits.into_iter().map(|commit| commit.record).collect();
    match records.first().and_then(|record| record.body.as_ref()) {
        Some(Body::Start(start)) => Ok((start.resumed_from, records)),
        other => anyhow::bail!("the commit stream begins with {other:?}"),
    }
}

fn transactions(records: &[CommitRecord]) -> impl Iterator<Item = u64> {
    records.iter().flat_map(|record| match &record.body {
        Some(Body::Txns(txns)) => txns.txns.iter().map(|txn| txn.commit_ts).collect(),
        _ => Vec::new(),
    })
}

/// The way of quick-start.md: the target is loaded from a backup, drainer and consumer begin at its commit_ts.
#[tokio::test]
async fn a_backup_and_what_follows_it() -> Result<()> {
    let site = Site::new("backup", &Recording::open("shop")?).await?;
    let backup = site.recording().checkpoints()[0].clone();
    let end = site.recording().end().commit_ts;
    ensure!(backup.commit_ts < end, "the recording has to go on after the backup");
    let mut session = site.mariadb.connect().await?;
    load(&site.recording().state(&backup)?, &mut session).await?;
    let drainer = site.drainer_from(i64::try_from(backup.commit_ts)?, DRAINER)?;
    let cast = Cast::with_drainer(site, Speed::Max, drainer).await?;

    let begin = backup.commit_ts.to_string();
    let flags = ["--initial-commit-ts", &begin, "--until-commit-ts", &end.to_string()];
    ends_well(&mut cast.site.apply()?.with(&flags).program.start()?).await?;
    cast.compare_with_end().await?;
    cast.verify_log().await?;
    let (from, records) = commit_stream(&cast).await?;
    ensure!(from == backup.commit_ts, "the feed begins at {from}, the backup is of {}", backup.commit_ts);
    let earlier = transactions(&records).filter(|&commit_ts| commit_ts <= from).count();
    ensure!(earlier == 0, "{earlier} transactions are in the backup and in the log");
    cast.finish().await
}

/// `generate_meta` before the first transaction, then everything.
#[tokio::test]
async fn a_savepoint_of_generate_meta() -> Result<()> {
    let site = Site::new("savepoint", &Recording::open("shop")?).await?;
    // It stands before the first record until the pumps are there.
    let mut simulator = site.start_simulator(Speed::Max).await?;
    let folder = site.drainer_data();
    let folder = folder.to_str().context("a folder that is no text")?;
    let printed = site.binlogctl(&["-cmd", "generate_meta", "-data-dir", folder, "--output", "json"]).await?;
    simulator.kill().await?;
    let printed: serde_json::Value = serde_json::from_str(&printed).with_context(|| printed.clone())?;
    let savepoint = printed["CommitTS"].as_u64().with_context(|| printed.to_string())?;
    let drainer = site.drainer_from(-1, DRAINER)?;
    let cast = Cast::with_drainer(site, Speed::Max, drainer).await?;
    cast.apply_until(cast.site.recording().end().commit_ts).await?;
    cast.compare_with_end().await?;
    cast.verify_log().await?;
    let (from, _) = commit_stream(&cast).await?;
    ensure!(from == savepoint, "the feed begins at {from}, the savepoint is {savepoint}");
    cast.finish().await
}
