//! Timestamps from PD: the ticks that move the watermark.
//!
//! One every `tick-interval`, one at once when a drainer waits, one whenever somebody needs to know what PD's newest is.
//! PD going back (a restored backup, a wrong PD) ends the pump: order could not be kept.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use node::admin::Health;
use node::pd::{Pd, PdError};
use node::shutdown::Shutdown;
use tidb::ts::Tso;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::metrics;
use crate::progress::Progress;
use crate::writer::{Refusal, Write, WriteHandle};

/// How often an idle pump keeps its watermark.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// Fetches timestamps and hands them to the sorter.
pub struct Clock {
    pd: Pd,
    progress: Arc<Progress>,
    wanted: Notify,
}

impl Clock {
    /// On a connected PD.
    pub fn new(pd: Pd, progress: Arc<Progress>) -> Self {
        Self { pd, progress, wanted: Notify::new() }
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
        let mut saved = (tokio::time::Instant::now(), self.progress.watermark());
        loop {
            let due = async {
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = self.wanted.notified() => {}
                }
                self.fresh().await
            };
            match shutdown.unless(due).await {
                None => return Ok(()),
                Some(Ok(_)) => {
                    if failing {
                        info!("PD gives timestamps again");
                        failing = false;
                    }
                    health.set("pd", Ok(()));
                }
                Some(Err(error)) if error.is_retryable() => {
                    metrics::pd_failed();
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
                saved = (tokio::time::Instant::now(), watermark);
                match writer.write(Write::SaveWatermark, None).await {
                    // Without space it waits for the next time: a restart asks PD anyway.
                    Ok(_) | Err(Refusal::NoSpace) => {}
                    Err(refusal) => return Err(refusal.into()),
                }
            }
        }
    }
}
