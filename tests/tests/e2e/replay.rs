//! Recordings go in at one end; at every recorded moment MariaDB is what TiDB was.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::harness::{
    admin,
    mariadb::connect,
    process::eventually,
    site::{Format, Site, Speed},
};
use e2e::recording::Recording;
use mysql_async::prelude::Queryable as _;

use crate::{cast::Cast, exports};

/// Applies up to each recorded moment and compares there; meanwhile everything is exported; in the end the log adds up and
/// the files hold what the log holds.
async fn every_state_is_reproduced(recording: &str, format: Format) -> Result<Cast> {
    every_state_of(Site::new(recording, &Recording::open(recording)?).await?, format).await
}

async fn every_state_of(site: Site, format: Format) -> Result<Cast> {
    let mut cast = Cast::on(site, Speed::Max).await?;
    let end = cast.site.recording().end().commit_ts;
    let mut export =
        cast.site.export(format)?.with(&["--until-commit-ts", &end.to_string()]).program.start()?;
    for checkpoint in cast.site.recording().checkpoints().to_vec() {
        cast.apply_until(checkpoint.commit_ts).await?;
        cast.compare_with(&checkpoint).await?;
    }
    cast.ends_well(&mut export).await?;
    let report = cast.verify_log().await?;
    ensure!(report.epochs == 1, "nobody restarted the drainer, but there are {} epochs", report.epochs);
    exports::hold_the_log_once(&cast.site, format).await?;
    Ok(cast)
}

#[tokio::test]
async fn shop() -> Result<()> {
    let cast = every_state_is_reproduced("shop", Format::Jsonl).await?;
    exports::makes_the_recorded_state(&cast.site, Format::Jsonl)?;
    cast.finish().await
}

#[tokio::test]
async fn shop_as_csv() -> Result<()> {
    let cast = every_state_is_reproduced("shop", Format::Csv).await?;
    exports::makes_the_recorded_state(&cast.site, Format::Csv)?;
    cast.finish().await
}

#[tokio::test]
async fn concurrent() -> Result<()> {
    every_state_is_reproduced("concurrent", Format::Jsonl).await?.finish().await
}

/// Every type at its extremes, hostile names among them; also as read in another time zone, and from files.
#[tokio::test]
async fn types() -> Result<()> {
    let cast = every_state_is_reproduced("types", Format::Jsonl).await?;
    exports::makes_the_recorded_state(&cast.site, Format::Jsonl)?;
    cast.compare_elsewhere().await?;
    cast.finish().await
}

#[tokio::test]
async fn types_as_csv() -> Result<()> {
    let cast = every_state_is_reproduced("types", Format::Csv).await?;
    exports::makes_the_recorded_state(&cast.site, Format::Csv)?;
    cast.finish().await
}

/// Every kind of key and of partition.
#[tokio::test]
async fn keys() -> Result<()> {
    every_state_is_reproduced("keys", Format::Jsonl).await?.finish().await
}

/// A transaction of 40,000 rows, and rows of megabytes.
#[tokio::test]
async fn large() -> Result<()> {
    every_state_is_reproduced("large", Format::Jsonl).await?.finish().await
}

/// Schema changes of every kind, alone and under concurrent writes.
#[tokio::test]
async fn ddl() -> Result<()> {
    every_state_is_reproduced("ddl", Format::Jsonl).await?.finish().await
}

/// The same while somebody holds the metadata lock for hours: not one job ever enters TiDB's history, each is read from its row
/// in `mysql.tidb_ddl_job`.
#[tokio::test]
async fn ddl_that_never_enters_the_history() -> Result<()> {
    let site = Site::new("ddl-late", &Recording::open("ddl")?).await?;
    let cast =
        every_state_of(site.with_upstream(&["--late-share", "1", "--late-by", "10h"]), Format::Jsonl).await?;
    let history = admin::json(cast.site.tidb_status(), "/ddl/history").await?;
    let jobs = history.as_array().context("no list of jobs")?;
    let types: Vec<&serde_json::Value> = jobs.iter().map(|job| &job["type"]).collect();
    ensure!(types.len() < 10, "the history has jobs of the types {types:?}");
    cast.finish().await
}

/// Schema changes and writes in a random mix.
#[tokio::test]
async fn random() -> Result<()> {
    every_state_is_reproduced("random", Format::Jsonl).await?.finish().await
}

/// Commits that never arrived and committed transactions that sent a rollback are in the states; true rollbacks are not.
/// Nothing stays undecided.
#[tokio::test]
async fn orphans() -> Result<()> {
    let cast = every_state_is_reproduced("orphans", Format::Jsonl).await?;
    for (service, _) in &cast.pumps {
        eventually("every prewrite to be settled", async || {
            let status = admin::json(&service.admin, "/status").await?;
            Ok((status["pending"].as_u64() == Some(0)).then_some(()))
        })
        .await?;
    }
    cast.finish().await
}

/// No prewrite without a commit holds the stream for longer than the resolver needs to ask: played as it was recorded, the
/// pumps' watermarks stay within seconds of the newest timestamp, while the recording's orphans stay open far longer.
#[tokio::test]
async fn orphans_hold_the_stream_up_for_moments_only() -> Result<()> {
    const MOMENTS: f64 = 4.0;
    let cast = Cast::begin("orphans-lag", "orphans", Speed::Times(1.0)).await?;
    let (mut longest, mut samples, mut open) = (0_f64, 0_u32, 0_u32);
    loop {
        let mut pending = 0;
        for (service, _) in &cast.pumps {
            let status = admin::json(&service.admin, "/status").await?;
            let lag =
                status["watermark_lag_seconds"].as_f64().with_context(|| format!("no lag in {status}"))?;
            pending += status["pending"].as_u64().with_context(|| format!("nothing pending in {status}"))?;
            ensure!(lag < MOMENTS, "{} is {lag} s behind: {status}", service.admin);
            longest = longest.max(lag);
        }
        samples += 1;
        open += u32::from(pending > 0);
        let (sent, total) = cast.progress().await?;
        if total > 0 && sent == total && pending == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("longest lag {longest} s in {samples} samples, {open} of them with something open");
    ensure!(samples > 100 && open > 50, "{samples} samples, {open} of them with something open");
    cast.apply_until(cast.site.recording().end().commit_ts).await?;
    cast.compare_with_end().await?;
    cast.finish().await
}

/// Sum of balances, number of accounts, sum of versions.
type Bank = (Option<i64>, u64, Option<u64>);

/// Money neither appears nor vanishes in any read of MariaDB while transfers are being applied.
#[tokio::test]
async fn the_bank_always_adds_up() -> Result<()> {
    let mut cast = Cast::begin("bank", "concurrent", Speed::Times(1.0)).await?;
    let end = cast.site.recording().end().commit_ts;
    let mut apply = cast.site.apply()?.with(&["--until-commit-ts", &end.to_string()]).program.start()?;
    let mut session = connect(cast.site.mariadb.port()).await?;
    let (mut reads, mut states, mut last) = (0, BTreeSet::new(), 0_u64);
    while apply.ended()?.is_none() {
        let query =
            "SELECT CAST(SUM(balance) AS SIGNED), COUNT(*), CAST(SUM(version) AS UNSIGNED) FROM bank.account";
        match session.query_first::<Bank, _>(query).await {
            // Before the table is there, or before its one filling transaction; never again after that.
            Err(mysql_async::Error::Server(error)) if reads == 0 && [1049, 1146].contains(&error.code) => {}
            Ok(Some((None, 0, None))) if reads == 0 => {}
            Ok(Some((total, accounts, Some(version)))) => {
                ensure!(total == Some(100_000) && accounts == 100, "read {total:?} in {accounts} accounts");
                ensure!(version >= last, "the state went back from version {last} to {version}");
                last = version;
                reads += 1;
                states.insert(version);
            }
            other => anyhow::bail!("a read that says nothing: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    cast.ends_well(&mut apply).await?;
    ensure!(
        reads >= 200 && states.len() >= 20,
        "only {reads} reads of {} states: this proves nothing",
        states.len()
    );
    cast.compare_with_end().await?;
    cast.verify_log().await?;
    cast.finish().await
}

/// What binlogctl prints is what runs: every pump and the drainer, online, with their positions.
#[tokio::test]
async fn binlogctl_sees_everyone() -> Result<()> {
    let cast = Cast::begin("ctl", "shop", Speed::Max).await?;
    cast.apply_until(cast.site.recording().end().commit_ts).await?;
    for (command, expected) in [("pumps", cast.pumps.len()), ("drainers", 1)] {
        let printed = cast.site.binlogctl(&["-cmd", command, "--output", "json"]).await?;
        let nodes: serde_json::Value = serde_json::from_str(&printed).with_context(|| printed.clone())?;
        let nodes = nodes.as_array().with_context(|| printed.clone())?;
        ensure!(nodes.len() == expected, "{command}: {printed}");
        for node in nodes {
            let text = node.to_string();
            ensure!(text.contains("online"), "{command}: {text}");
        }
    }
    cast.finish().await
}
