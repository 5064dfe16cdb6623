//! Kafka and MariaDB behind TLS, client certificates and passwords.

use anyhow::{Context as _, Result, ensure};
use e2e::{
    harness::{
        authority::Identity,
        kafka, mariadb,
        process::{Process, eventually},
        site::{Format, Site, Speed},
    },
    recording::Recording,
};

use crate::cast::Cast;

/// Everything goes through; passwords are in no log; who shows a certificate of another authority, or meets a server with
/// one, does not get through.
#[tokio::test]
async fn every_link_downstream() -> Result<()> {
    let site = Site::secured("secured", &Recording::open("shop")?).await?;
    let mut cast = Cast::on(site, Speed::Max).await?;
    let end = cast.site.recording().end().commit_ts.to_string();
    let until = ["--until-commit-ts", end.as_str()];
    let mut export = cast.site.export(Format::Jsonl)?.with(&until).program.start()?;
    let mut apply = cast.site.apply()?.with(&until).program.start()?;
    cast.ends_well(&mut apply).await?;
    cast.ends_well(&mut export).await?;
    cast.compare_with_end().await?;
    cast.verify_log().await?;
    for process in [&apply, &export, &cast.drainer.1] {
        let log = process.log_text();
        ensure!(!log.is_empty(), "{} logged nothing", process.name());
        for secret in [kafka::PASSWORD, mariadb::PASSWORD] {
            ensure!(!log.contains(secret), "{} logs a password", process.name());
        }
    }

    let ours = cast.site.identity.clone().context("a secured site has an identity")?;
    let scratch = e2e::harness::scratch::Scratch::new("stranger")?;
    let stranger = Identity::new(&scratch, "stranger")?;
    // Without an end: who is there already may say so without asking anybody. Both are tried again, certificates do get replaced; but nothing goes through, and the reason is told.
    cast.site.identity =
        Some(Identity { cert: stranger.cert.clone(), key: stranger.key.clone(), ..ours.clone() });
    stays_outside(cast.site.apply()?.program.start()?, "UnknownCA").await?;
    cast.site.identity = Some(Identity { ca: stranger.ca.clone(), ..ours });
    stays_outside(cast.site.export(Format::Jsonl)?.program.start()?, "certificate").await?;
    cast.finish().await
}

/// A consumer says why it gets nowhere, and goes on trying.
async fn stays_outside(mut process: Process, reason: &str) -> Result<()> {
    let what = format!("{} to say {reason:?}", process.name());
    let said = eventually(&what, async || {
        ensure!(process.ended()?.is_none(), "{} ended", process.name());
        Ok(process.log_text().contains(reason).then_some(()))
    });
    said.await.with_context(|| process.log_tail())?;
    process.kill().await
}
