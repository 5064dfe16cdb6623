//! etcd is not there when a service starts: the service waits, says for what, and can be ended meanwhile.

use anyhow::{Result, ensure};
use e2e::{
    harness::{
        process::Process,
        site::{Service, Site, Speed},
    },
    recording::Recording,
};
use nix::sys::signal::Signal;

use crate::cast::{DRAINER, ends_well};

/// Starts a service that cannot register itself, and waits until it has said so twice.
async fn start_in_vain(site: &Site, service: &Service) -> Result<Process> {
    let said = || {
        let log = std::fs::read_to_string(service.program.log()).unwrap_or_default();
        log.lines().filter(|line| line.contains("cannot register") && line.contains(site.pd())).count()
    };
    let before = said();
    let mut process = service.program.start()?;
    process.ready("word about etcd", async || (said() >= before + 2).then_some(())).await?;
    Ok(process)
}

#[tokio::test]
async fn services_that_start_before_etcd_come_up_with_it() -> Result<()> {
    let mut site = Site::new("etcd-later", &Recording::open("shop")?).await?;
    let mut simulator = site.start_simulator(Speed::Max).await?;
    site.etcd.kill().await?;
    let mut services = vec![site.drainer(DRAINER)?];
    for n in 0..site.pump_count() {
        services.push(site.pump(n, "")?);
    }
    for service in &services[..2] {
        let mut process = start_in_vain(&site, service).await?;
        process.signal(Signal::SIGTERM)?;
        ends_well(&mut process).await?;
    }
    let mut waiting = Vec::new();
    for service in &services {
        waiting.push((service, start_in_vain(&site, service).await?));
    }
    site.etcd.restart().await?;
    for (service, process) in &mut waiting {
        service.await_ready(process).await?;
        ensure!(process.ended()?.is_none(), "{} ended", process.name());
    }
    for (_, process) in &mut waiting {
        process.signal(Signal::SIGTERM)?;
        ends_well(process).await?;
    }
    simulator.stop().await?;
    Ok(())
}
