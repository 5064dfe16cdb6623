//! What the demo shows, gathered from where a user would look.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use mysql_async::{Conn, Row, Value, prelude::Queryable as _};

use super::{Running, screen::Screen};
use crate::{
    checker::Report,
    compare::Comparison,
    harness::{
        admin, binaries, kafka, mariadb, pd,
        site::{Service, Site},
    },
    recording::Recording,
};

/// Up to which commit_ts a service has got, as it says on its admin listener.
pub(super) async fn position(service: &Service) -> Option<u64> {
    let status = admin::json(&service.admin, "/status").await.ok()?;
    // Consumers, drainer and pumps each call it by the name that fits.
    ["/progress/commit_ts", "/position", "/watermark"]
        .iter()
        .find_map(|place| status.pointer(place)?.as_u64())
}

fn stages(running: &Running) -> Vec<(String, &Service)> {
    let pumps =
        running.pumps.iter().enumerate().map(|(n, (service, _))| (format!("pump-{n} watermark"), service));
    let rest =
        [("in Kafka", &running.drainer.0), ("applied", &running.apply.0), ("exported", &running.export.0)];
    pumps.chain(rest.map(|(stage, service)| (stage.to_owned(), service))).collect()
}

/// The stages' lags in one line, pumps left out.
pub(super) async fn lag_line(site: &Site, running: &Running) -> String {
    let Ok(now) = pd::timestamp(site.pd()).await else { return String::new() };
    let mut line = String::new();
    for (stage, service) in stages(running).into_iter().skip(running.pumps.len()) {
        if let Some(at) = position(service).await {
            // Writing to a String does not fail. At the start a position may be 0: nothing to measure.
            let _ = match at {
                0 => write!(line, "{stage} …  "),
                at => write!(line, "{stage} −{:.1} s  ", pd::seconds_between(at, now).max(0.0)),
            };
        }
    }
    line
}

/// The stages' lags, one a line.
pub(super) async fn lags(site: &Site, running: &Running) -> Result<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    for (stage, service) in stages(running) {
        let at = position(service).await.with_context(|| format!("{} tells no position", service.admin))?;
        let now = pd::timestamp(site.pd()).await?;
        rows.push(vec![stage, format!("{:.2}", pd::seconds_between(at, now).max(0.0)), "s".into()]);
    }
    Ok(rows)
}

/// Table, partition, rows.
pub(super) fn rows_by_partition(report: &Report) -> Vec<Vec<String>> {
    let lines = report.by_table.iter().flat_map(|(table, places)| {
        places
            .iter()
            .map(move |((_, partition), rows)| vec![table.clone(), partition.to_string(), rows.to_string()])
    });
    lines.collect()
}

/// The log in one line.
pub(super) fn log_summary(report: &Report) -> String {
    let soundness = match report.violations.len() {
        0 => "sequence, counts, offsets, checksums verified".to_owned(),
        broken => format!("{broken} promises broken"),
    };
    format!("{} transactions, {} DDL, {} rows: {soundness}", report.transactions, report.ddls, report.rows)
}

/// What to read back: a query that fits the recording, else the largest table.
pub(super) fn queries(recording: &Recording) -> Result<Vec<String>> {
    let state = recording.state(recording.end())?;
    if state.tables.contains_key("shop.orders") && state.tables.contains_key("shop.customers") {
        return Ok(vec![
            "SELECT o.id, c.name, o.status, o.total, o.placed_at FROM shop.orders o JOIN shop.customers c ON c.id = o.customer_id \
             ORDER BY o.placed_at DESC LIMIT 4"
                .into(),
            "SELECT id, title, price, tags FROM shop.products ORDER BY id LIMIT 3".into(),
        ]);
    }
    let mut queries = Vec::new();
    if state.tables.contains_key("bank.account") {
        queries.push("SELECT count(*) AS accounts, sum(balance) AS total FROM bank.account".into());
    }
    let tables = state.tables.iter().filter(|(_, table)| table.kind == "BASE TABLE");
    if let Some((name, _)) = tables.max_by_key(|(_, table)| table.rows.len()) {
        let quoted: Vec<String> =
            name.splitn(2, '.').map(|part| format!("`{}`", part.replace('`', "``"))).collect();
        queries.push(format!("SELECT * FROM {} LIMIT 4", quoted.join(".")));
    }
    Ok(queries)
}

/// Column names and rows of a query.
pub(super) async fn ask(session: &mut Conn, query: &str) -> Result<(Vec<String>, Vec<Vec<String>>)> {
    let rows: Vec<Row> = session.query(query).await.with_context(|| query.to_owned())?;
    let names = rows
        .first()
        .map(|row| row.columns_ref().iter().map(|column| column.name_str().into_owned()).collect());
    let text = |value: Value| match value {
        Value::NULL => "NULL".into(),
        Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        other => format!("{other:?}"),
    };
    Ok((
        names.unwrap_or_default(),
        rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect(),
    ))
}

/// Files of rows with lines and size, then the rest in one line.
pub(super) fn exported(folder: &Path) -> Result<Vec<Vec<String>>> {
    const SHOWN: usize = 10;
    let mut files = Vec::new();
    walk(folder, &mut files)?;
    files.sort();
    let rows_only =
        |file: &&PathBuf| file.components().any(|part| part.as_os_str() == "data") && !is_definition(file);
    let (rows, rest): (Vec<&PathBuf>, Vec<&PathBuf>) = files.iter().partition(rows_only);
    let mut lines = Vec::new();
    for file in rows.iter().take(SHOWN) {
        let bytes = fs::read(file)?;
        let count = bytes.iter().filter(|byte| **byte == b'\n').count();
        lines.push(vec![
            file.strip_prefix(folder)?.display().to_string(),
            count.to_string(),
            "lines".into(),
            size(bytes.len() as u64),
        ]);
    }
    if rows.len() > SHOWN {
        lines.push(vec![format!("… and {} more files of rows", rows.len() - SHOWN)]);
    }
    let definitions = rest.iter().filter(|file| is_definition(file)).count();
    lines.push(vec![format!("and {definitions} table definitions, the DDL, manifest.jsonl")]);
    Ok(lines)
}

fn is_definition(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("schema-"))
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Table, rows, verdict.
pub(super) fn verdicts(comparison: &Comparison) -> Vec<Vec<String>> {
    let verdict = |count: usize| if count == 0 { "equal".into() } else { format!("{count} differences") };
    let tables = comparison.tables.iter();
    tables
        .map(|(name, table)| {
            vec![name.clone(), table.rows.to_string(), "rows".into(), verdict(table.differences.len())]
        })
        .collect()
}

/// The first differences of each table.
pub(super) fn differences(comparison: &Comparison) -> Vec<String> {
    const SHOWN: usize = 5;
    let tables = comparison.tables.iter();
    tables
        .flat_map(|(name, table)| {
            table.differences.iter().take(SHOWN).map(move |difference| format!("{name}: {difference}"))
        })
        .collect()
}

/// Says how to look around in what stays, and writes the script that ends it.
pub(super) fn leave_running(site: &Site, running: &Running, screen: &Screen) -> Result<()> {
    let folder = site.folder().display();
    let ours = [&running.apply.1, &running.export.1, &running.drainer.1];
    let processes =
        ours.into_iter().chain(running.pumps.iter().map(|(_, process)| process)).chain([&running.simulator]);
    let pids: Vec<String> = processes
        .chain(site.processes())
        .filter_map(|process| process.pid())
        .map(|pid| pid.to_string())
        .collect();
    let stop = site.folder().join("stop.sh");
    fs::write(&stop, format!("kill -9 {}\nrm -rf {folder}\n", pids.join(" ")))?;
    site.let_go();
    let tools = kafka::home()?.display().to_string();
    screen.heading("Everything is still running; look around");
    let hints = [
        ("logs, data, configuration", format!("ls {folder}")),
        (
            "pumps",
            format!("{} -pd-urls http://{} -cmd pumps", binaries::path("binlogctl")?.display(), site.pd()),
        ),
        (
            "MariaDB",
            format!(
                "mariadb -h 127.0.0.1 -P {} -u {} -p{}",
                site.mariadb.port(),
                mariadb::USER,
                quoted(mariadb::PASSWORD)
            ),
        ),
        (
            "Kafka",
            format!(
                "java -cp '{tools}/lib/*' org.apache.kafka.tools.GetOffsetShell --bootstrap-server {} --topic-partitions '{}.*'",
                site.kafka.brokers(),
                site.topic()
            ),
        ),
        ("state of a process", format!("curl -s http://{}/status", running.drainer.0.admin)),
        ("exported files", format!("ls -R {}", site.exported().display())),
        ("stop and remove", format!("sh {}", stop.display())),
    ];
    for (what, command) in hints {
        screen.line(&format!("{what:<26} {command}"));
    }
    Ok(())
}

/// For a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
