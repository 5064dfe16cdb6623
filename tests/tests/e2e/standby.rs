//! Two drainers for one feed: one writes, the other waits; whatever becomes of the first, the log adds up.

use anyhow::{Result, ensure};
use e2e::harness::{
    admin,
    process::{Process, eventually},
    site::{Service, Speed},
};
use nix::sys::signal::Signal;

use crate::cast::{Cast, DRAINER, ends_well};

async fn has_role(service: &Service, role: &str) -> Result<()> {
    eventually(&format!("the drainer at {} to be {role}", service.admin), async || {
        let status = admin::json(&service.admin, "/status").await.ok();
        Ok(status.filter(|status| status["role"] == role).map(drop))
    })
    .await
}

/// A leader in the middle of a recording, and a second drainer on standby.
async fn pair(name: &str) -> Result<(Cast, Service, Process)> {
    let cast = Cast::begin(name, "concurrent", Speed::Times(1.0)).await?;
    has_role(&cast.drainer.0, "leader").await?;
    let second = cast.site.second_drainer(DRAINER)?;
    let process = second.program.start()?;
    has_role(&second, "standby").await?;
    cast.await_share(0.4).await?;
    Ok((cast, second, process))
}

/// The second one leads now and brings the recording to its end.
async fn ends_as_one_log(cast: &mut Cast) -> Result<()> {
    let end = cast.site.recording().end().commit_ts.to_string();
    let mut apply = cast.site.apply()?.with(&["--until-commit-ts", &end]).program.start()?;
    cast.ends_well(&mut apply).await?;
    cast.compare_with_end().await?;
    let report = cast.verify_log().await?;
    ensure!(report.epochs == 2, "one took over from the other, but there are {} epochs", report.epochs);
    Ok(())
}

#[tokio::test]
async fn a_killed_leader_is_followed() -> Result<()> {
    let (mut cast, second, process) = pair("standby-kill").await?;
    cast.drainer.1.kill().await?;
    has_role(&second, "leader").await?;
    cast.drainer = (second, process);
    ends_as_one_log(&mut cast).await?;
    cast.finish().await
}

/// A leader that froze knows nothing of its successor when it wakes, in the middle of a Kafka transaction perhaps.
#[tokio::test]
async fn a_frozen_leader_writes_nothing_more() -> Result<()> {
    let (mut cast, second, process) = pair("standby-freeze").await?;
    cast.drainer.1.signal(Signal::SIGSTOP)?;
    has_role(&second, "leader").await?;
    let (first, mut frozen) = std::mem::replace(&mut cast.drainer, (second, process));
    frozen.signal(Signal::SIGCONT)?;
    has_role(&first, "standby").await?;
    ends_as_one_log(&mut cast).await?;
    frozen.signal(Signal::SIGTERM)?;
    ends_well(&mut frozen).await?;
    cast.finish().await
}
