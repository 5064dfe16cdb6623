//! Benchmarks, side by side: whatever speaks the protocol is measured with the same client in the same run.
//!
//! A measurement counts only if the answer was right: every store and every pull must return what was written, in order.

pub mod binlogs;
pub mod command;
pub mod disk;
pub mod ingest;
pub mod latency;
pub mod link;
pub mod process;
pub mod pull;
pub mod report;
pub mod site;
pub mod store;
pub mod suite;
pub mod timestamps;

use command::{Arguments, What};
use node::pd::Pd;
use node::tls::Security;
use process::Process;
use report::{Report, Result};
use timestamps::Timestamps;

/// Measures what was asked for.
///
/// # Errors
/// Something could not be measured, or answered wrongly.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut report = Report::new(arguments.output, arguments.raw.as_deref())?;
    match arguments.what {
        What::Disk(disk) => measure_disk(&disk, &mut report),
        What::Store(store) => measure_stores(&store, &mut report),
        What::Ingest(ingest) => measure_ingest(&ingest, &mut report).await,
        What::Pull(pull) => measure_pull(&pull, &mut report).await,
        What::Suite(suite) => suite::run(&suite, &mut report).await,
    }
}

fn measure_disk(asked: &command::Disk, report: &mut Report) -> anyhow::Result<()> {
    for &bytes in &asked.bytes {
        for space in [disk::Space::Appended, disk::Space::Reserved, disk::Space::Written] {
            report.add(&Result::Disk(disk::measure(&asked.dir, space, bytes, asked.time.0)?))?;
        }
    }
    Ok(())
}

fn measure_stores(asked: &command::Store, report: &mut Report) -> anyhow::Result<()> {
    for &payload in &asked.load.payload {
        for &sessions in &asked.load.sessions {
            let load = store::Load { sessions, payload, time: asked.load.time.0 };
            report.add(&Result::Store(store::measure(load, &asked.dir)?))?;
        }
    }
    Ok(())
}

async fn measure_ingest(asked: &command::Ingest, report: &mut Report) -> anyhow::Result<()> {
    let pd = Pd::connect(&asked.pd_urls, &Security::default()).await?;
    let url = asked.pd_urls.first().map_or("", String::as_str);
    let timestamps = Timestamps::connect(url, pd.cluster_id()).await?;
    for &payload in &asked.load.payload {
        let load = |sessions, rate| ingest::Load {
            sessions,
            rate,
            payload,
            connections: asked.connections,
            warm_up: asked.warm_up.0,
            time: asked.load.time.0,
        };
        let loads: Vec<_> = match asked.rate.as_slice() {
            [] => asked.load.sessions.iter().map(|&sessions| load(sessions, None)).collect(),
            rates => rates.iter().map(|&rate| load(0, Some(rate))).collect(),
        };
        for load in loads {
            let measured =
                ingest::measure(&asked.addr, pd.cluster_id(), &timestamps, load, asked.pid.map(Process))
                    .await?;
            report.add(&Result::Ingest(measured))?;
        }
    }
    Ok(())
}

async fn measure_pull(asked: &command::Pull, report: &mut Report) -> anyhow::Result<()> {
    let pd = Pd::connect(&asked.pd_urls, &Security::default()).await?;
    let upto = match asked.upto {
        Some(upto) => upto,
        None => pd.tso().await?.get(),
    };
    let range = pull::Range { after: asked.after, upto, expected: asked.expect };
    for &way in &asked.ways {
        let pump = asked.pid.map(Process);
        let measured = pull::measure(&asked.addr, pd.cluster_id(), way, range, pump).await?;
        report.add(&Result::Pull(measured))?;
    }
    Ok(())
}
