//! What a service needs is not there when it starts: it waits, says for what, and can be ended meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    harness::{
        admin,
        process::{Process, eventually},
        site::{Service, Site, Speed},
    },
    recording::Recording,
};
use nix::sys::signal::Signal;

use crate::cast::{Cast, DRAINER, ends_well};

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

/// The calls in which librdkafka waits for a broker take a minute and cannot be cut short; the process does not wait for them.
#[tokio::test]
async fn a_drainer_without_kafka_ends_at_once() -> Result<()> {
    let mut site = Site::with_own_kafka("kafka-away", &Recording::open("shop")?).await?;
    let mut simulator = site.start_simulator(Speed::Max).await?;
    site.kafka.stop().await?;
    let drainer = site.drainer(DRAINER)?;
    let mut process = drainer.program.start()?;
    eventually("the drainer to open the log", async || {
        let status = admin::json(&drainer.admin, "/status").await.ok();
        Ok(status.filter(|status| status["role"] == "starting" && status["topic"] == site.topic()).map(drop))
    })
    .await?;
    process.signal(Signal::SIGTERM)?;
    let ended = process.wait(Duration::from_secs(30)).await?;
    ensure!(ended.success(), "it ended with {ended}:\n{}", process.log_tail());
    simulator.stop().await?;
    Ok(())
}

/// A client says the same several times a second while the brokers are away. The log says it now and then, with how often it
/// was not said, and says when it is over.
#[tokio::test]
async fn kafka_that_is_away_does_not_flood_the_logs() -> Result<()> {
    let site = Site::with_own_kafka("kafka-flood", &Recording::open("shop")?).await?;
    let mut cast = Cast::on(site, Speed::Max).await?;
    let apply = cast.site.apply()?;
    let mut applying = apply.start().await?;
    cast.site.kafka.stop().await?;
    for process in [&cast.drainer.1, &applying] {
        eventually("what was held back to be counted", async || {
            Ok(process.log_text().contains("held_back=").then_some(()))
        })
        .await?;
    }
    cast.site.kafka.restart().await?;
    for process in [&cast.drainer.1, &applying] {
        let over = eventually("word that it is over", async || {
            let log = process.log_text();
            Ok(log.lines().find(|line| line.contains("Kafka answers again")).map(str::to_owned))
        })
        .await?;
        let heard: u64 = over
            .split_once("complaints=")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
            .with_context(|| over.clone())?;
        let log = process.log_text();
        let before = log.lines().take_while(|line| *line != over);
        let said = before.filter(|line| complains(line)).count() as u64;
        ensure!(said > 0 && said < heard, "{said} of {heard} complaints are lines of\n{log}");
    }
    let end = cast.site.recording().end().commit_ts;
    eventually("everything to be applied", async || {
        let status = admin::json(&apply.admin, "/status").await?;
        Ok((status["progress"]["commit_ts"].as_u64() >= Some(end)).then_some(()))
    })
    .await?;
    applying.signal(Signal::SIGTERM)?;
    ends_well(&mut applying).await?;
    cast.compare_with_end().await?;
    cast.finish().await
}

fn complains(line: &str) -> bool {
    line.contains("Kafka client reports trouble") || line.contains("librdkafka: ")
}
