//! Timestamps from PD: the ticks that move the watermark.
//!
//! One every `tick-interval`, one at once when a drainer waits, one whenever somebody needs to know what PD's newest is.
//! Whether PD answers is known from the ticks, so that nobody has to find out by waiting.
//! PD going back (a restored backup, a wrong PD) ends the pump: order could not be kept.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use node::admin::Health;
use node::pd::{Pd, PdError};
use node::shutdown::Shutdown;
use tidb::ts::Tso;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::metrics;
use crate::progress::Progress;
use crate::writer::{Refusal, Write, WriteHandle};

/// PD that has not answered for this long counts as silent.
const SILENT: Duration = Duration::from_secs(1);

/// How often an idle pump keeps its watermark.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// Fetches timestamps and hands them to the sorter.
pub struct Clock {
    pd: Pd,
    progress: Arc<Progress>,
    wanted: Notify,
    /// Since when PD does not answer the ticks.
    silent: watch::Sender<Option<Instant>>,
}

impl Clock {
    /// On a connected PD.
    pub fn new(pd: Pd, progress: Arc<Progress>) -> Self {
        Self { pd, progress, wanted: Notify::new(), silent: watch::Sender::new(None) }
    }

    /// A timestamp that PD gave out after this call began. The watermark has moved by it when this returns.
    ///
    /// # Errors
    /// PD does not answer, or went back.
    pub async fn fresh(&self) -> Result<Tso, PdError> {
        let now = self.pd.tso().await?;
        self.progress.tick(now);
        Ok(now)
    }

    /// As [`Self::fresh`]; `None` if PD does not answer, which is known at once where the ticks have found out already.
    pub async fn fresh_if_heard(&self) -> Option<Tso> {
        let mut silent = self.silent.subscribe();
        tokio::select! {
            biased;
            _ = silent.wait_for(Option::is_some) => None,
            now = self.fresh() => now.ok(),
        }
    }

    /// How long PD has been silent; `None` while it answers.
    pub fn silence(&self) -> Option<Duration> {
        self.silent.borrow().map(|since| since.elapsed())
    }

    /// The newest timestamp had so far.
    pub fn newest(&self) -> Tso {
        self.progress.newest()
    }

    /// A drainer's merge waits until the watermark reaches `commit_ts`: fetch a tick now unless it already has.
    pub fn want(&self, commit_ts: Tso) {
        if self.progress.watermark() < commit_ts {
            self.wanted.notify_one();
        }
    }

    /// The first tick; refuses a PD that is behind what the store knows: its watermark, saved now and then, and `newest`,
    /// the greatest timestamp stored.
    ///
    /// # Errors
    /// PD went back, or does not answer although it was connected.
    pub async fn start(&self, newest: Tso) -> anyhow::Result<Tso> {
        let known = self.progress.watermark().max(newest);
        let now = self.fresh().await.context("PD gave no timestamp")?;
        if now < known {
            bail!(
                "PD went back: it gives {now}, but this pump has stored {known}; a PD restored from a \
                 backup, or another cluster's, cannot continue this stream"
            );
        }
        Ok(now)
    }

    /// Ticks until the shutdown.
    ///
    /// # Errors
    /// PD went back.
    pub async fn run(
        self: Arc<Self>,
        interval: Duration,
        writer: WriteHandle,
        health: Health,
        shutdown: Shutdown,
    ) -> anyhow::Result<()> {
        let mut failing = false;
        let mut saved = (Instant::now(), self.progress.watermark());
        loop {
            let due = async {
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = self.wanted.notified() => {}
                }
                let mut answer = std::pin::pin!(self.fresh());
                match tokio::time::timeout(SILENT, &mut answer).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        self.is_silent(true);
                        health.set("pd", Err(format!("no timestamps for {SILENT:?}")));
                        answer.await
                    }
                }
            };
            match shutdown.unless(due).await {
                None => return Ok(()),
                Some(Ok(_)) => {
                    self.is_silent(false);
                    if failing {
                        info!("PD gives timestamps again");
                        failing = false;
                    }
                    health.set("pd", Ok(()));
                }
                Some(Err(error)) if error.is_retryable() => {
                    metrics::pd_failed();
                    self.is_silent(true);
                    if !failing {
                        warn!(%error, "PD gives no timestamps, the watermark stands still");
                        failing = true;
                    }
                    health.set("pd", Err(format!("no timestamps: {error}")));
                }
                Some(Err(error)) => return Err(error).context("PD gives no usable timestamps"),
            }
            let watermark = self.progress.watermark();
            if saved.0.elapsed() >= SAVE_EVERY && saved.1 < watermark {
                saved = (Instant::now(), watermark);
                match writer.write(Write::SaveWatermark, None).await {
                    // Without space it waits for the next time: a restart asks PD anyway.
                    Ok(_) | Err(Refusal::NoSpace) => {}
                    Err(refusal) => return Err(refusal.into()),
                }
            }
        }
    }

    fn is_silent(&self, silent: bool) {
        self.silent.send_if_modified(|since| {
            let changes = since.is_some() != silent;
            if changes {
                *since = silent.then(Instant::now);
            }
            changes
        });
    }
}
