//! Transactions of tens of thousands of rows and rows of megabytes: they pass with the brokers' default limits, in the
//! memory that the configuration allows, under each policy for rows larger than a record.

use anyhow::{Context as _, Result, ensure};
use e2e::harness::admin;
use e2e::harness::process::{Process, eventually};
use e2e::harness::site::{Format, Service, Site, Speed};
use e2e::recording::Recording;

use crate::cast::{Cast, ends_badly};
use crate::exports;

/// Budgets far below the recording's 80 MB and its largest transaction.
const MIB: u64 = 1 << 20;
const DRAINER_PULL: u64 = 8;
const DRAINER_TRANSACTION: u64 = 4;
const CONSUMER: u64 = 32;
const PUMP: u64 = 24;

/// What a process takes beside its budget: code, librdkafka, the allocator's slack; see `docs/memory.md`.
const BASE: u64 = 64;

/// The most memory that a running process had at any time, in bytes.
fn peak(process: &Process) -> Result<u64> {
    let pid = process.pid().context("it has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

fn stays_below(process: &Process, limit: u64) -> Result<()> {
    let peak = peak(process)?;
    eprintln!("{}: {} MiB of {}", process.name(), peak / MIB, limit / MIB);
    ensure!(peak < limit, "{} took {} MiB, allowed were {}", process.name(), peak / MIB, limit / MIB);
    Ok(())
}

/// Puts `keys` before everything else in the configuration that the site wrote for a service.
fn configure(site: &Site, name: &str, keys: &str) -> Result<()> {
    let file = site.folder().join(format!("{name}.toml"));
    let text = std::fs::read_to_string(&file)?;
    Ok(std::fs::write(&file, format!("{keys}\n{text}"))?)
}

async fn reaches(service: &Service, process: &mut Process, commit_ts: u64) -> Result<()> {
    eventually(&format!("{} to reach the end", process.name()), async || {
        ensure!(process.ended()?.is_none(), "it ended:\n{}", process.log_tail());
        // Until it listens it has nothing to say.
        let Ok(status) = admin::json(&service.admin, "/status").await else { return Ok(None) };
        Ok((status["progress"]["commit_ts"].as_u64() >= Some(commit_ts)).then_some(()))
    })
    .await
}

#[tokio::test]
async fn large_rows_and_transactions_pass_in_little_memory() -> Result<()> {
    let site = Site::new("large", &Recording::open("large")?).await?;
    let budgets = format!(
        "pull-budget = \"{DRAINER_PULL} MiB\"\n[output]\nmax-kafka-transaction = \"{DRAINER_TRANSACTION} MiB\"\n"
    );
    let cast = Cast::with(site, Speed::Max, &budgets, &format!("receive-budget = \"{PUMP} MiB\"\n")).await?;
    let end = cast.site.recording().end().commit_ts;
    let (apply, export) = (cast.site.apply()?, cast.site.export(Format::Jsonl)?);
    let budget = format!("memory-budget = \"{CONSUMER} MiB\"");
    configure(&cast.site, "apply-mysql", &budget)?;
    configure(&cast.site, "export-files", &budget)?;
    let (mut applying, mut exporting) = (apply.program.start()?, export.program.start()?);
    reaches(&apply, &mut applying, end).await?;
    reaches(&export, &mut exporting, end).await?;
    cast.compare_with_end().await?;
    let report = cast.verify_log().await?;
    ensure!(report.parts > 0, "no transaction came in parts: {report}");

    // The largest row is 5 MB; three times that is in every limit, once as it came, once read, once on its way out.
    let row = 3 * 6;
    stays_below(&applying, (BASE + CONSUMER + row) * MIB)?;
    stays_below(&exporting, (BASE + CONSUMER + row) * MIB)?;
    let pumps = cast.pumps.len() as u64;
    stays_below(&cast.drainer.1, (BASE + DRAINER_PULL * pumps + 4 * DRAINER_TRANSACTION + row) * MIB)?;
    for (_, pump) in &cast.pumps {
        stays_below(pump, (BASE + 3 * PUMP) * MIB)?;
    }
    ensure!(applying.stop().await?.success() && exporting.stop().await?.success());
    exports::hold_the_log_once(&cast.site, Format::Jsonl).await?;
    cast.finish().await
}

#[tokio::test]
async fn large_rows_wait_in_files_under_claim_check() -> Result<()> {
    let site = Site::new("claims", &Recording::open("large")?).await?;
    let base = site.folder().join("claims");
    let policy = format!("[output]\nlarge-row = \"claim-check\"\nclaim-check-dir = {base:?}\n");
    let mut cast = Cast::with(site, Speed::Max, &policy, "").await?;
    let end = cast.site.recording().end().commit_ts.to_string();
    let until = ["--until-commit-ts", end.as_str()];

    // A consumer that was not told where the files are says so, and which.
    let mut blind = cast.site.apply()?.with(&until).program.start()?;
    let said = ends_badly(&mut blind).await?;
    ensure!(said.contains("feed.claim-check-dir"), "{said}");

    let key = format!("[feed]\nclaim-check-dir = {base:?}");
    let service = cast.site.apply()?;
    let file = cast.site.folder().join("apply-mysql.toml");
    let text = std::fs::read_to_string(&file)?.replace("[feed]", &key);
    std::fs::write(&file, text)?;
    let mut apply = service.with(&until).program.start()?;
    cast.ends_well(&mut apply).await?;
    cast.compare_with_end().await?;
    cast.verify_log().await?;
    let feed = base.join(cast.site.topic());
    let mut files = 0;
    for day in std::fs::read_dir(&feed).with_context(|| format!("no {}", feed.display()))? {
        for file in std::fs::read_dir(day?.path())? {
            let length = file?.metadata()?.len();
            ensure!(length > 900_000, "a value of {length} bytes would have fit a record");
            files += 1;
        }
    }
    ensure!(files > 0, "no row was that large");
    cast.finish().await
}

#[tokio::test]
async fn a_large_row_stops_the_feed_if_it_is_to() -> Result<()> {
    let site = Site::new("toolarge", &Recording::open("large")?).await?;
    let mut cast = Cast::with(site, Speed::Max, "[output]\nlarge-row = \"stop\"\n", "").await?;
    let said = ends_badly(&mut cast.drainer.1).await?;
    for words in ["a row of ", "max.message.bytes", "output.large-row", "commit_ts"] {
        ensure!(said.contains(words), "it does not say {words:?}: {said}");
    }
    Ok(())
}
