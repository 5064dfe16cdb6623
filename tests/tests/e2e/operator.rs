//! An operator decides about schema changes at which `apply-mysql` stopped; nothing is restarted.

use anyhow::{Context as _, Result, ensure};
use e2e::harness::{
    admin, binaries,
    process::eventually,
    site::{Service, Speed},
};
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::cast::{Cast, ends_well};

/// Runs `binlogctl ddl`; its exit status and everything it said.
async fn ddl(words: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(binaries::path("binlogctl")?).arg("ddl").args(words).output().await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Waits until a schema change stopped whose statement begins like this; its job and the reason.
async fn stopped(apply: &Service, statement: &str) -> Result<(String, String)> {
    eventually(&format!("a stop at {statement}"), async || {
        // Its listener may not be up yet.
        let Ok(waiting) = admin::json(&apply.admin, "/ddl").await else { return Ok(None) };
        let waiting = &waiting["stopped"];
        let found = waiting["statement"].as_str().is_some_and(|text| text.starts_with(statement));
        let text = |field: &str| waiting[field].as_str().unwrap_or_default().to_owned();
        Ok(found.then(|| (waiting["job_id"].to_string(), text("reason"))))
    })
    .await
}

/// The recording drops a table twice and brings it back twice. Each stops, says why, and goes on when told.
#[tokio::test]
async fn a_stopped_schema_change_goes_on_when_told() -> Result<()> {
    let cast = Cast::begin("operator", "ddl", Speed::Max).await?;
    let apply = cast.site.apply_with("recover-table = \"stop\"")?;
    let mut process = apply.program.start()?;
    let token = format!("file:{}", cast.site.apply_data().join("admin.token").display());
    let at = ["--addr", &apply.admin, "--token", &token];
    let (job, reason) = stopped(&apply, "RECOVER TABLE").await?;
    ensure!(reason.contains("no recycle bin") && reason.contains("recover-table"), "{reason}");
    ensure!(!admin::is_ready(&apply.admin).await, "ready while it waits for an operator");
    // What the message says is what works.
    let log = process.log_text();
    ensure!(log.contains(&format!("binlogctl ddl skip --job {job} --addr {} --token", apply.admin)), "{log}");
    ensure!(log.contains(&token), "{log}");
    let (done, said) = ddl(&["show", "--addr", &apply.admin]).await?;
    ensure!(done && said.contains(&job) && said.contains("RECOVER TABLE"), "{said}");
    for (words, expected) in [
        (vec!["skip", "--job", &job, "--addr", &apply.admin], "Authorization"),
        (vec!["skip", "--job", &job, "--addr", &apply.admin, "--token", "guessed"], "token is wrong"),
        ([&["skip", "--job", "1"][..], &at].concat(), "no schema change of job 1 is waiting"),
        ([&["replace", "--job", &job, "--statement", " "][..], &at].concat(), "the statement to run instead"),
    ] {
        let (done, said) = ddl(&words).await?;
        ensure!(!done && said.contains(expected), "{words:?}: {said}");
    }
    // One that the target refuses stops again, with what the target said.
    let (done, said) =
        ddl(&[&["replace", "--job", &job, "--statement", "CREATE NONSENSE"][..], &at].concat()).await?;
    ensure!(done, "{said}");
    eventually("the refusal of the replacement", async || {
        let waiting = admin::json(&apply.admin, "/ddl").await?;
        let reason = waiting["stopped"]["reason"].as_str().unwrap_or_default();
        Ok(reason.contains("CREATE NONSENSE").then_some(()))
    })
    .await?;
    let create = |table: &str| format!("CREATE TABLE `d1`.`{table}` (`id` INT NOT NULL PRIMARY KEY)");
    let (done, said) =
        ddl(&[&["replace", "--job", &job, "--statement", &create("dr")][..], &at].concat()).await?;
    ensure!(done, "{said}");
    let (job, _) = stopped(&apply, "FLASHBACK TABLE").await?;
    let charset = format!("{} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", create("dr_back"));
    let (done, said) = ddl(&[&["replace", "--job", &job, "--statement", &charset][..], &at].concat()).await?;
    ensure!(done, "{said}");
    let end = cast.site.recording().end().commit_ts;
    eventually("everything to be applied", async || {
        let status = admin::json(&apply.admin, "/status").await?;
        Ok((status["progress"]["commit_ts"].as_u64() >= Some(end)).then_some(()))
    })
    .await?;
    ensure!(admin::is_ready(&apply.admin).await, "not ready although it goes on");
    process.signal(Signal::SIGTERM)?;
    ends_well(&mut process).await.context("apply-mysql")?;
    cast.compare_with_end().await?;
    cast.finish().await
}

/// Without anybody there (`--until-commit-ts`) the cause is the last word, not what broke because of it.
#[tokio::test]
async fn the_cause_is_the_last_word() -> Result<()> {
    let cast = Cast::begin("cause", "ddl", Speed::Max).await?;
    let end = cast.site.recording().end().commit_ts.to_string();
    let apply = cast.site.apply_with("recover-table = \"stop\"")?.with(&["--until-commit-ts", &end]);
    let mut process = apply.program.start()?;
    let log = crate::cast::ends_badly(&mut process).await?;
    ensure!(log.contains("schema change stopped: job") && log.contains("RECOVER TABLE"), "{log}");
    ensure!(log.contains("binlogctl ddl replace --job"), "{log}");
    ensure!(!log.contains("channel closed") && !log.contains("the applier ended"), "{log}");
    cast.finish().await
}
