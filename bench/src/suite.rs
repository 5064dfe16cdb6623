//! Everything, on a site of its own: the disk, then the pump with each payload from an empty start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::command::{Load, Suite};
use crate::ingest;
use crate::pull::{self, Way};
use crate::report::{Report, Result};
use crate::site::{Pump, Site};
use crate::timestamps::Timestamps;

/// Sessions that fill the store for a pull.
const FILLERS: usize = 128;
/// Bytes that a backlog takes at most, however large its binlogs are.
const BACKLOG_BYTES: u64 = 4 << 30;

/// Runs the suite.
///
/// # Errors
/// Something could not be measured, or answered wrongly.
pub async fn run(suite: &Suite, report: &mut Report) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&suite.dir).with_context(|| suite.dir.display().to_string())?;
    let disk = crate::command::Disk {
        dir: dir.path().into(),
        bytes: vec![400, 4096, 65_536, 1 << 20],
        time: node::config::HumanDuration::from_secs(1),
    };
    crate::measure_disk(&disk, report)?;

    let binary = match &suite.pump {
        Some(binary) => binary.clone(),
        None => beside("pump")?,
    };
    let site = Site::start(dir.path()).await?;
    for &payload in &suite.load.payload {
        let home = dir.path().join(format!("pump-{payload}"));
        let pump = site.pump(&binary, &home, &suite.pump_args).await?;
        measure(suite, &site, &pump, payload, report).await.with_context(|| format!("payload {payload}"))?;
        pump.stop()?;
        std::fs::remove_dir_all(&home).with_context(|| home.display().to_string())?;
    }
    Ok(())
}

/// A program in the directory of this one.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new(".")).join(name))
}

async fn measure(
    suite: &Suite,
    site: &Site,
    pump: &Pump,
    payload: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let after = site.pd.tso().await?.get();
    let mut stored = 0;
    let mut last = 0;
    let mut fastest: f64 = 0.0;
    let timestamps = Timestamps::Own(site.cluster.clone());
    let mut write = async |load: ingest::Load| {
        let measured =
            ingest::measure(&pump.addr, site.pd.cluster_id(), &timestamps, load, Some(pump.process()))
                .await?;
        stored += measured.committed;
        last = last.max(measured.last_commit);
        anyhow::Ok((measured, stored, last))
    };
    for &sessions in &suite.load.sessions {
        let (measured, ..) = write(closed(sessions, payload, &suite.load)).await?;
        fastest = fastest.max(measured.per_second);
        report.add(&Result::Ingest(measured))?;
    }
    // What an operator should expect on an ordinary day: half of what the pump can do.
    let half = ingest::Load { rate: Some(fastest / 2.0), ..closed(0, payload, &suite.load) };
    let (measured, mut stored, mut last) = write(half).await?;
    report.add(&Result::Ingest(measured))?;

    let wanted = suite.backlog.min(BACKLOG_BYTES / payload.max(1) as u64);
    while stored < wanted {
        let time = Duration::from_secs(2);
        let fill = ingest::Load { warm_up: Duration::ZERO, time, ..closed(FILLERS, payload, &suite.load) };
        (_, stored, last) = write(fill).await?;
    }

    let range = pull::Range { after, upto: last, expected: Some(stored) };
    let ways: &[Way] = if suite.original_only { &[Way::Original] } else { &[Way::Batches, Way::Original] };
    for &way in ways {
        let cluster = site.pd.cluster_id();
        let measured = pull::measure(&pump.addr, cluster, way, range, Some(pump.process())).await?;
        report.add(&Result::Pull(measured))?;
    }
    Ok(())
}

fn closed(sessions: usize, payload: usize, load: &Load) -> ingest::Load {
    ingest::Load {
        sessions,
        rate: None,
        payload,
        connections: 1,
        warm_up: Duration::from_secs(1),
        time: load.time.0,
    }
}
