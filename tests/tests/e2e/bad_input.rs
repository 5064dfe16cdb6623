//! What does not fit is refused with the name of the thing and the place, what is away is waited for; nothing is lost.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use e2e::harness::{
    admin, binaries, pd,
    process::{PATIENCE, Process, eventually},
    scratch::Scratch,
    site::{Format, Site, Speed},
};
use e2e::recording::Recording;
use prost::Message as _;
use schemas::binlog::{
    Binlog, BinlogType, MutationType, PrewriteValue, TableMutation, WriteBinlogReq, pump_client::PumpClient,
};
use tonic::transport::Channel;

use crate::{
    cast::{Cast, ends_badly},
    exports,
};

/// Every binary, asked to start with a configuration that is no good, says what and where, and does not start.
#[tokio::test]
async fn bad_configurations_are_named() -> Result<()> {
    let scratch = Scratch::new("config")?;
    let missing = scratch.path().join("missing.toml");
    let (garbage, misspelt) = (scratch.path().join("garbage.toml"), scratch.path().join("misspelt.toml"));
    std::fs::write(&garbage, "addr = [\n")?;
    std::fs::write(&misspelt, "\npd-urlz = \"http://127.0.0.1:1\"\n")?;
    for binary in ["pump", "drainer-kafka", "apply-mysql", "export-files"] {
        for (file, words) in [
            (&missing, &["missing.toml"][..]),
            (&garbage, &["garbage.toml", "1"]),
            (&misspelt, &["misspelt.toml", "2", "pd-urlz"]),
        ] {
            let child = tokio::process::Command::new(binaries::path(binary)?)
                .arg("--config")
                .arg(file)
                .current_dir(scratch.path())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
                .await
                .with_context(|| format!("{binary} starts with {}", file.display()))??;
            let said = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            ensure!(!output.status.success(), "{binary} accepts {}", file.display());
            ensure!(!said.contains("panicked"), "{binary} panics: {said}");
            for word in words {
                ensure!(said.contains(word), "{binary} does not say {word:?}: {said}");
            }
        }
    }
    Ok(())
}

async fn client(cast: &Cast, pump: usize) -> Result<PumpClient<Channel>> {
    // TiDB finds a pump in the registry; a test reads it there too.
    let printed = cast.site.binlogctl(&["-cmd", "pumps", "--output", "json"]).await?;
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&printed)?;
    let text = nodes.get(pump).context("that pump is not registered")?.to_string();
    let address =
        text.split('"').find(|word| word.starts_with("127.0.0.1:")).with_context(|| text.clone())?;
    Ok(PumpClient::connect(format!("http://{address}")).await?.max_encoding_message_size(usize::MAX))
}

async fn cluster_id(cast: &Cast) -> Result<u64> {
    let status = admin::json(&cast.pumps[0].0.admin, "/status").await?;
    status["cluster_id"].as_u64().context("the pump tells no cluster id")
}

/// What a pump answers to a payload: its error message, empty if it took it.
async fn write(
    client: &mut PumpClient<Channel>,
    cluster_id: u64,
    payload: impl Into<Vec<u8>>,
) -> Result<String> {
    let request = WriteBinlogReq { cluster_id, payload: payload.into().into() };
    Ok(match client.write_binlog(request).await {
        Ok(answer) => answer.into_inner().errmsg,
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    })
}

/// A pump refuses garbage, another cluster's binlogs and oversize ones, each with a clear word, and serves on.
#[tokio::test]
async fn a_pump_refuses_what_is_not_for_it() -> Result<()> {
    let cast = Cast::begin("refusals", "shop", Speed::Max).await?;
    let cluster = cluster_id(&cast).await?;
    let mut pump = client(&cast, 0).await?;
    let answer = write(&mut pump, cluster, b"\xff\xfe this is no binlog".to_vec()).await?;
    ensure!(!answer.is_empty() && !answer.contains("Unavailable"), "garbage: {answer:?}");
    let now = pd::timestamp(cast.site.pd()).await? as i64;
    let prewrite = Binlog {
        tp: Some(BinlogType::Prewrite.into()),
        start_ts: Some(now),
        prewrite_key: Some(b"k".to_vec().into()),
        ..Binlog::default()
    };
    let answer = write(&mut pump, cluster + 1, prewrite.encode_to_vec()).await?;
    ensure!(answer.to_lowercase().contains("cluster"), "a wrong cluster id: {answer:?}");
    ensure!(write(&mut pump, cluster, Vec::new()).await?.is_empty(), "a liveness probe is refused");
    cast.apply_until(cast.site.recording().end().commit_ts).await?;
    cast.compare_with_end().await?;
    cast.verify_log().await?;
    cast.finish().await
}

/// A message over the limit is refused with the words that make TiDB fail that one transaction and nothing else.
#[tokio::test]
async fn an_oversize_message_fails_alone() -> Result<()> {
    let mut cast = Cast::begin("oversize", "shop", Speed::Max).await?;
    let cluster = cluster_id(&cast).await?;
    let (service, process) = &mut cast.pumps[0];
    process.kill().await?;
    *service = service.with(&["--max-message-size", "1MiB"]);
    *process = service.start().await?;
    let mut pump = client(&cast, 0).await?;
    let large = Binlog {
        tp: Some(BinlogType::Prewrite.into()),
        start_ts: Some(pd::timestamp(cast.site.pd()).await? as i64),
        prewrite_key: Some(b"k".to_vec().into()),
        prewrite_value: Some(vec![7; 2 << 20].into()),
        ..Binlog::default()
    };
    let answer = write(&mut pump, cluster, large.encode_to_vec()).await?;
    ensure!(answer.contains("ResourceExhausted") && answer.contains("message larger than max"), "{answer:?}");
    let answer = write(&mut pump, cluster, Vec::new()).await?;
    ensure!(answer.is_empty(), "the connection is not usable any more: {answer}");
    cast.apply_until(cast.site.recording().end().commit_ts).await?;
    cast.compare_with_end().await?;
    cast.finish().await
}

/// A row of a table that no schema knows stops the drainer, which names table and transaction; what came before is safe.
#[tokio::test]
async fn an_unknown_table_stops_the_drainer() -> Result<()> {
    const STRANGE: i64 = 987_654;
    let mut cast = Cast::begin("stranger", "shop", Speed::Max).await?;
    cast.apply_until(cast.site.recording().end().commit_ts).await?;
    let cluster = cluster_id(&cast).await?;
    let mut pump = client(&cast, 0).await?;
    let start_ts = pd::timestamp(cast.site.pd()).await? as i64;
    let mutation = TableMutation {
        table_id: Some(STRANGE),
        inserted_rows: vec![vec![8, 2].into()],
        sequence: vec![MutationType::Insert.into()],
        ..TableMutation::default()
    };
    let value = PrewriteValue { schema_version: Some(1), mutations: vec![mutation] };
    let prewrite = Binlog {
        tp: Some(BinlogType::Prewrite.into()),
        start_ts: Some(start_ts),
        prewrite_key: Some(b"k".to_vec().into()),
        prewrite_value: Some(value.encode_to_vec().into()),
        ..Binlog::default()
    };
    let answer = write(&mut pump, cluster, prewrite.encode_to_vec()).await?;
    ensure!(answer.is_empty(), "{answer}");
    let commit_ts = pd::timestamp(cast.site.pd()).await? as i64;
    let commit = Binlog {
        tp: Some(BinlogType::Commit.into()),
        commit_ts: Some(commit_ts),
        prewrite_value: None,
        ..prewrite.clone()
    };
    let answer = write(&mut pump, cluster, commit.encode_to_vec()).await?;
    ensure!(answer.is_empty(), "{answer}");
    let log = ends_badly(&mut cast.drainer.1).await?;
    ensure!(log.contains(&STRANGE.to_string()), "nothing names table {STRANGE}:\n{log}");
    ensure!(log.contains(&commit_ts.to_string()), "nothing names transaction {commit_ts}:\n{log}");
    cast.compare_with_end().await
}

/// What librdkafka says of a broker that is not there.
fn refused(site: &Site) -> String {
    format!("Connect to ipv4#{} failed: Connection refused", site.kafka.brokers())
}

/// Whether one warning has all of these words.
fn has_warned(process: &Process, words: &[&str]) -> bool {
    let log = process.log_text();
    log.lines().any(|line| line.contains(" WARN ") && words.iter().all(|word| line.contains(word)))
}

async fn warns(process: &mut Process, words: &[&str]) -> Result<()> {
    eventually(&format!("{} to warn of {words:?}", process.name()), async || {
        ensure!(process.ended()?.is_none(), "{} ended:\n{}", process.name(), process.log_tail());
        Ok(has_warned(process, words).then_some(()))
    })
    .await
    .with_context(|| process.log_tail())
}

/// Nothing at all is there: each says what it waits for, and where that should be, and ends when asked.
#[tokio::test]
async fn what_is_missing_is_named() -> Result<()> {
    let mut site = Site::with_own_kafka("missing", &Recording::open("shop")?).await?;
    site.kafka.stop().await?;
    site.mariadb.kill().await?;
    let mut pump = site.pump(0, "")?.program.start()?;
    let mut drainer = site.drainer(crate::cast::DRAINER)?.program.start()?;
    let mut apply = site.apply()?.program.start()?;
    let mut export = site.export(Format::Jsonl)?.program.start()?;
    warns(&mut pump, &[site.pd()]).await?;
    warns(&mut drainer, &[site.pd()]).await?;
    let target = format!("cannot connect to 127.0.0.1:{} as", site.mariadb.port());
    warns(&mut apply, &["cannot reach the target, trying again", &target]).await?;
    warns(&mut export, &[&refused(&site)]).await?;
    for process in [&mut pump, &mut drainer, &mut apply, &mut export] {
        process.signal(nix::sys::signal::Signal::SIGTERM)?;
        crate::cast::ends_well(process).await?;
    }
    Ok(())
}

/// Kafka, etcd and MariaDB are away at the start, and go away later; everyone waits and heals.
#[tokio::test]
async fn what_is_away_is_waited_for() -> Result<()> {
    let recording = Recording::open("concurrent")?;
    let mut site = Site::with_own_kafka("away", &recording).await?;
    site.kafka.stop().await?;
    site.mariadb.kill().await?;
    let end = recording.end().commit_ts.to_string();
    let simulator = site.start_simulator(Speed::Times(0.5)).await?;
    let mut pumps = Vec::new();
    for n in 0..site.pump_count() {
        let service = site.pump(n, "")?;
        let process = service.program.start()?;
        pumps.push((service, process));
    }
    let service = site.drainer("lease = \"2s\"\n")?;
    let drainer = (service.clone(), service.program.start()?);
    let mut apply = site.apply()?.with(&["--until-commit-ts", &end]).program.start()?;
    let mut export = site.export(Format::Jsonl)?.with(&["--until-commit-ts", &end]).program.start()?;
    let mut cast = Cast { drainer, pumps, simulator, site };

    cast.await_share(0.1).await?;
    cast.site.kafka.restart().await?;
    cast.await_share(0.2).await?;
    cast.site.mariadb.restart().await?;
    cast.await_share(0.3).await?;
    cast.site.etcd.kill().await?;
    cast.await_share(0.35).await?;
    cast.site.etcd.restart().await?;
    cast.await_share(0.5).await?;
    cast.site.kafka.stop().await?;
    cast.await_share(0.6).await?;
    cast.site.kafka.restart().await?;
    cast.await_share(0.7).await?;
    cast.site.mariadb.restart().await?;

    cast.ends_well(&mut apply).await?;
    cast.ends_well(&mut export).await?;
    let kafka = refused(&cast.site);
    for process in [&cast.drainer.1, &apply, &export] {
        ensure!(
            has_warned(process, &[&kafka]),
            "{} did not miss Kafka:\n{}",
            process.name(),
            process.log_text()
        );
    }
    let target = format!("cannot connect to 127.0.0.1:{} as", cast.site.mariadb.port());
    ensure!(has_warned(&apply, &["cannot reach the target", &target]), "{}", apply.log_text());
    cast.compare_with_end().await?;
    cast.verify_log().await?;
    exports::hold_the_log_once(&cast.site, Format::Jsonl).await?;
    eventually("the drainer to be well again", async || {
        Ok(admin::is_ready(&cast.drainer.0.admin).await.then_some(()))
    })
    .await?;
    cast.finish().await
}

/// Who waits for Kafka ends when asked to, and well.
#[tokio::test]
async fn without_kafka_drainer_and_consumer_end_when_asked() -> Result<()> {
    let mut site = Site::with_own_kafka("nokafka", &Recording::open("shop")?).await?;
    let simulator = site.start_simulator(Speed::Max).await?;
    site.kafka.stop().await?;
    let mut drainer = site.drainer("")?.program.start()?;
    let mut apply = site.apply()?.program.start()?;
    for process in [&mut drainer, &mut apply] {
        warns(process, &[&refused(&site)]).await?;
        process.signal(nix::sys::signal::Signal::SIGTERM)?;
        crate::cast::ends_well(process).await?;
    }
    drop(simulator);
    Ok(())
}
