//! What was acknowledged is lost for good: the log says so, and nobody goes past it without being told to.

use anyhow::{Context as _, Result, ensure};
use e2e::{
    checker,
    harness::{
        admin,
        process::eventually,
        site::{Site, Speed},
    },
};
use nix::sys::signal::Signal;

use crate::cast::{Cast, ends_badly, ends_well};

/// Up to where a pump has told the registry that it is complete.
async fn registered(site: &Site, pump: &str) -> Result<u64> {
    let printed = site.binlogctl(&["-cmd", "pumps", "-show-offline-nodes", "--output", "json"]).await?;
    let pumps: serde_json::Value = serde_json::from_str(&printed).with_context(|| printed.clone())?;
    let found = pumps.as_array().and_then(|pumps| pumps.iter().find(|found| found["NodeID"] == pump));
    found.and_then(|found| found["MaxCommitTS"].as_u64()).with_context(|| printed.clone())
}

/// A pump dies with binlogs that no drainer has read, and an operator gives it up.
#[tokio::test]
async fn a_pump_given_up_leaves_a_gap_that_stops_consumers() -> Result<()> {
    let mut cast = Cast::begin("gap", "concurrent", Speed::Times(1.0)).await?;
    cast.await_share(0.4).await?;
    cast.drainer.1.signal(Signal::SIGTERM)?;
    ends_well(&mut cast.drainer.1).await?;
    cast.await_share(1.0).await?;
    let end = cast.site.recording().end().commit_ts;
    eventually("the pump to be past the end", async || {
        Ok((registered(&cast.site, "pump-0").await? >= end).then_some(()))
    })
    .await?;
    cast.pumps[0].1.kill().await?;
    cast.pumps.remove(0);
    cast.site.binlogctl(&["-cmd", "update-pump", "-node-id", "pump-0", "-state", "offline"]).await?;
    let stored = registered(&cast.site, "pump-0").await?;

    cast.drainer.1 = cast.drainer.0.start().await?;
    eventually("the drainer to pass the gap", async || {
        let status = admin::json(&cast.drainer.0.admin, "/status").await?;
        Ok((status["watermark"].as_u64() > Some(stored)).then_some(()))
    })
    .await?;
    let log = checker::read::log(cast.site.kafka.client(), cast.site.topic()).await?;
    let report = checker::rules::verify(&log);
    ensure!(report.violations.is_empty(), "the log does not add up: {report}");
    let [(from, to, cause)] = report.gaps.as_slice() else { anyhow::bail!("the gaps are {:?}", report.gaps) };
    ensure!(*from < end && *to == stored && cause.contains("pump-0"), "({from}, {to}] {cause}");
    ensure!(report.transactions > 0 && report.epochs == 2, "{report}");

    let mut apply = cast.site.apply()?.with(&["--until-commit-ts", &end.to_string()]).program.start()?;
    let said = ends_badly(&mut apply).await?;
    for word in [&format!("({from}, {to}]"), "pump-0", "on-gap", &format!("equals the upstream up to {from}")]
    {
        ensure!(said.contains(word), "nothing says {word:?} in\n{said}");
    }
    let config = cast.site.folder().join("apply-mysql.toml");
    let told = std::fs::read_to_string(&config)?.replace("[feed]\n", "[feed]\non-gap = \"continue\"\n");
    std::fs::write(&config, told)?;
    let mut apply = apply.program().start()?;
    ends_well(&mut apply).await?;
    let said = apply.log_text();
    ensure!(said.contains("going on without the transactions of a gap"), "{said}");
    cast.finish().await
}
