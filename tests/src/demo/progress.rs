//! Live progress while the recording plays: binlogs sent, and how far behind every stage is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Running, facts, screen::Screen};
use crate::harness::{admin, process::Process, site::Site};

/// How often the numbers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Longest time without any progress at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns when the recording is played and both consumers have passed its end.
pub(super) async fn play(site: &Site, running: &mut Running, screen: &Screen) -> Result<()> {
    let started = Instant::now();
    let end = site.recording().end().commit_ts;
    let bar = screen.bar(0);
    let (mut last, mut moved) = ((0, 0, 0), Instant::now());
    let (sent, total) = loop {
        for process in processes(running) {
            if let Some(status) = process.ended()? {
                bail!("{} ended ({status}):\n{}", process.name(), process.log_tail());
            }
        }
        let played = admin::json(site.tidb_status(), "/sluice/progress").await.context("ask tidb-sim")?;
        let number = |name: &str| played[name].as_u64().unwrap_or(0);
        let (sent, total) = (number("done"), number("records"));
        let applied = facts::position(&running.apply.0).await.unwrap_or(0);
        let exported = facts::position(&running.export.0).await.unwrap_or(0);
        if total > 0 && sent == total && applied >= end && exported >= end {
            break (sent, total);
        }
        bar.set_length(total);
        bar.set_position(sent);
        bar.set_message(facts::lag_line(site, running).await);
        let now = (sent, applied, exported);
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            let logs: String = processes(running)
                .map(|process| format!("{}:\n{}", process.name(), process.log_tail()))
                .collect();
            bail!(
                "nothing moves: {sent} of {total} sent, applied {applied}, exported {exported}, end {end}\n{logs}"
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    bar.finish_and_clear();
    let done = format!("played {sent} of {total} binlogs, applied and exported all of them");
    screen.line(&format!(
        "{} {done}  {}",
        screen.green("✓"),
        screen.dim(&format!("{:.1} s", started.elapsed().as_secs_f64()))
    ));
    Ok(())
}

fn processes(running: &mut Running) -> impl Iterator<Item = &mut Process> {
    let services = [&mut running.apply.1, &mut running.export.1, &mut running.drainer.1];
    services
        .into_iter()
        .chain(running.pumps.iter_mut().map(|(_, process)| process))
        .chain([&mut running.simulator])
}
