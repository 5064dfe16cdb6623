//! A site with the upstream half running: simulator, pumps, drainer. The tests start consumers themselves.

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    checker::{self, Report},
    compare::{compare, zone::compare_east},
    harness::{
        admin,
        process::{PATIENCE, Process, eventually},
        site::{Service, Site, Speed},
    },
    recording::{Checkpoint, Recording},
};

/// A drainer's lease is short in tests, so that a killed one does not keep its successor waiting for long.
pub(crate) const DRAINER: &str = "lease = \"2s\"\n";

/// The upstream half of a site. Processes are declared before the site: they end before it.
pub(crate) struct Cast {
    pub(crate) drainer: (Service, Process),
    pub(crate) pumps: Vec<(Service, Process)>,
    pub(crate) simulator: Process,
    pub(crate) site: Site,
}

impl Cast {
    /// Starts everything on a recording; it begins to play as soon as all pumps are online.
    pub(crate) async fn begin(name: &str, recording: &str, speed: Speed) -> Result<Self> {
        Self::on(Site::new(name, &Recording::open(recording)?).await?, speed).await
    }

    /// The same on a site that is there.
    pub(crate) async fn on(site: Site, speed: Speed) -> Result<Self> {
        let drainer = site.drainer(DRAINER)?;
        Self::with_drainer(site, speed, drainer).await
    }

    /// The same with a drainer of the test's own making.
    pub(crate) async fn with_drainer(site: Site, speed: Speed, drainer: Service) -> Result<Self> {
        Self::start(site, speed, drainer, "").await
    }

    /// The same with more configuration for the drainer and for each pump.
    pub(crate) async fn with(site: Site, speed: Speed, drainer: &str, pump: &str) -> Result<Self> {
        let drainer = site.drainer(&format!("{DRAINER}{drainer}"))?;
        Self::start(site, speed, drainer, pump).await
    }

    async fn start(site: Site, speed: Speed, drainer: Service, pump: &str) -> Result<Self> {
        let simulator = site.start_simulator(speed).await?;
        let mut pumps = Vec::new();
        for n in 0..site.pump_count() {
            let service = site.pump(n, pump)?;
            let process = service.program.start()?;
            pumps.push((service, process));
        }
        for (service, process) in &mut pumps {
            service.await_ready(process).await?;
        }
        let process = drainer.start().await?;
        Ok(Self { drainer: (drainer, process), pumps, simulator, site })
    }

    /// Waits for a consumer that is to end with 0. A process of the upstream half that ends meanwhile is told at once; when
    /// all run and nothing comes, what each of them wrote last.
    pub(crate) async fn ends_well(&mut self, process: &mut Process) -> Result<()> {
        let waited = eventually(&format!("{} to end", process.name()), async || {
            for other in self.upstream() {
                if let Some(status) = other.ended()? {
                    bail!("{} ended with {status}; its log ends:\n{}", other.name(), other.log_tail());
                }
            }
            Ok(process.ended()?.map(drop))
        })
        .await;
        waited.with_context(|| {
            let all = self.upstream().map(|process| &*process);
            let tails: Vec<_> =
                all.chain([&*process]).map(|each| format!("{}:\n{}", each.name(), each.log_tail())).collect();
            format!("the logs end:\n{}", tails.concat())
        })?;
        ends_well(process).await
    }

    /// The processes that a consumer depends on.
    fn upstream(&mut self) -> impl Iterator<Item = &mut Process> {
        let pumps = self.pumps.iter_mut().map(|(_, pump)| pump);
        pumps.chain([&mut self.drainer.1, &mut self.simulator])
    }

    /// Applies up to and including `commit_ts` with a process that ends there.
    pub(crate) async fn apply_until(&self, commit_ts: u64) -> Result<()> {
        let mut apply =
            self.site.apply()?.with(&["--until-commit-ts", &commit_ts.to_string()]).program.start()?;
        ends_well(&mut apply).await
    }

    /// Compares MariaDB with the recorded state.
    pub(crate) async fn compare_with(&self, checkpoint: &Checkpoint) -> Result<()> {
        let state = self.site.recording().state(checkpoint)?;
        let mut session = self.site.mariadb.connect().await?;
        let outcome = compare(&state, &mut session).await?;
        ensure!(outcome.rows() > 0, "nothing was compared");
        ensure!(outcome.is_equal(), "at {} ({}):\n{outcome}", checkpoint.label, checkpoint.commit_ts);
        Ok(session.disconnect().await?)
    }

    /// Compares MariaDB with the last recorded state.
    pub(crate) async fn compare_with_end(&self) -> Result<()> {
        self.compare_with(self.site.recording().end()).await
    }

    /// Compares with the last recorded state as a session in Nepal reads it.
    pub(crate) async fn compare_elsewhere(&self) -> Result<()> {
        let state = self.site.recording().state(self.site.recording().end())?;
        let mut session = self.site.mariadb.connect().await?;
        let outcome = compare_east(&state, 5 * 60 + 45, &mut session).await?;
        ensure!(outcome.is_equal(), "at +05:45:\n{outcome}");
        Ok(session.disconnect().await?)
    }

    /// Waits until the drainer has passed the end of the recording, then verifies the whole log.
    pub(crate) async fn verify_log(&self) -> Result<Report> {
        let end = self.site.recording().end().commit_ts;
        eventually("the drainer to pass the end", async || {
            let status = admin::json(&self.drainer.0.admin, "/status").await?;
            Ok((status["watermark"].as_u64() >= Some(end)).then_some(()))
        })
        .await?;
        let log = checker::read::log(self.site.kafka.client(), self.site.topic()).await?;
        let report = checker::rules::verify(&log);
        ensure!(report.violations.is_empty(), "the log does not add up: {report}");
        ensure!(report.transactions > 0 && report.rows > 0, "an empty log proves nothing: {report}");
        ensure!(report.gaps.is_empty() && report.watermark >= end, "{report}");
        Ok(report)
    }

    /// Binlogs sent so far, and of how many.
    pub(crate) async fn progress(&self) -> Result<(u64, u64)> {
        let played = admin::json(self.site.tidb_status(), "/sluice/progress").await?;
        let number = |name: &str| played[name].as_u64().with_context(|| format!("no {name} in {played}"));
        Ok((number("done")?, number("records")?))
    }

    /// Waits until this share of the recording is sent.
    pub(crate) async fn await_share(&self, share: f64) -> Result<()> {
        eventually(&format!("{:.0} % of the recording to be sent", share * 100.0), async || {
            let (sent, total) = self.progress().await?;
            Ok((total > 0 && sent as f64 >= share * total as f64).then_some(()))
        })
        .await
    }

    /// Stops the upstream half as an operator would; each process has to end well.
    pub(crate) async fn finish(self) -> Result<()> {
        let Self { mut drainer, mut pumps, mut simulator, site: _site } = self;
        drainer.1.signal(nix::sys::signal::Signal::SIGTERM)?;
        ends_well(&mut drainer.1).await?;
        for (_, pump) in &mut pumps {
            pump.signal(nix::sys::signal::Signal::SIGTERM)?;
            ends_well(pump).await?;
        }
        simulator.stop().await?;
        Ok(())
    }
}

/// Waits for a process that is to end with 0.
pub(crate) async fn ends_well(process: &mut Process) -> Result<()> {
    let status = process.wait(PATIENCE).await?;
    ensure!(
        status.success(),
        "{} ended with {status}; its log ends:\n{}",
        process.name(),
        process.log_tail()
    );
    Ok(())
}

/// Waits for a process that is to stop because of what it found, and returns its log.
pub(crate) async fn ends_badly(process: &mut Process) -> Result<String> {
    let status = process.wait(PATIENCE).await?;
    ensure!(
        !status.success(),
        "{} ended as if nothing were wrong; its log ends:\n{}",
        process.name(),
        process.log_tail()
    );
    ensure!(
        status.code().is_some_and(|code| code != 101),
        "{} panicked or was killed: {status}",
        process.name()
    );
    Ok(process.log_text())
}
