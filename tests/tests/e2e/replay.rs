//! Recordings go in at one end; at every recorded moment MariaDB is what TiDB was.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::harness::{
    admin,
    mariadb::connect,
    process::eventually,
    site::{Format, Speed},
};
use mysql_async::prelude::Queryable as _;

use crate::{cast::Cast, exports};

/// Applies up to each recorded moment and compares there; meanwhile everything is exported; in the end the log adds up and
/// the files hold what the log holds.
async fn every_state_is_reproduced(recording: &str, format: Format) -> Result<Cast> {
    let mut cast = Cast::begin(recording, recording, Speed::Max).await?;
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
    every_state_is_reproduced("shop", Format::Jsonl).await?.finish().await
}

#[tokio::test]
async fn shop_as_csv() -> Result<()> {
    every_state_is_reproduced("shop", Format::Csv).await?.finish().await
}

#[tokio::test]
async fn concurrent() -> Result<()> {
    every_state_is_reproduced("concurrent", Format::Jsonl).await?.finish().await
}

/// Every type at its extremes, hostile names among them; also as read in another time zone.
#[tokio::test]
async fn types() -> Result<()> {
    let cast = every_state_is_reproduced("types", Format::Jsonl).await?;
    cast.compare_elsewhere().await?;
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
            // Before the table is there, or before its one filling transaction.
            Err(mysql_async::Error::Server(error)) if [1049, 1146].contains(&error.code) => {}
            Ok(Some((None, 0, None))) => {}
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
