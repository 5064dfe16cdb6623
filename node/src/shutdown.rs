//! How a process ends: one signal cancels one token, every task lives in one supervised set, draining has a deadline.
//!
//! ```text
//! signal ──▶ Shutdown ◀── first exit, error or panic of any task
//!               │
//!               └──▶ every task sees it, finishes what it holds, returns;  after the deadline it is aborted and named
//! ```

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// The wish to end, as seen by everybody. Cheap to clone; clones are the same wish.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// One that only [`Self::cancel`] triggers: for tests and embedding.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM, SIGINT, SIGQUIT or SIGHUP trigger (the original's pump treats all four alike). A second such
    /// signal ends the process at once with status 1: everything here survives `kill -9`. Needs a running runtime.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let mut signals = Vec::new();
        for (name, kind) in [
            ("SIGTERM", SignalKind::terminate()),
            ("SIGINT", SignalKind::interrupt()),
            ("SIGQUIT", SignalKind::quit()),
            ("SIGHUP", SignalKind::hangup()),
        ] {
            signals.push((name, signal(kind)?));
        }
        for (name, mut stream) in signals {
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if shutdown.is_cancelled() {
                        error!(signal = name, "asked again to end, ending at once");
                        std::process::exit(1);
                    }
                    info!(signal = name, "asked to end");
                    shutdown.cancel();
                }
            });
        }
        Ok(shutdown)
    }

    /// Asks everybody to end.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Resolves once the end was asked for. Cancel-safe.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// True once the end was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// One that ends with this one, but can be cancelled alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token() }
    }

    /// For libraries that want tokio-util's type.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs `future` unless and until the end is asked for; `None` then.
    pub async fn unless<F: Future>(&self, future: F) -> Option<F::Output> {
        self.token.run_until_cancelled(future).await
    }
}

/// A supervised set of tasks. The first one to return, fail or panic cancels the [`Shutdown`] for all.
#[derive(Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, String>,
}

impl Tasks {
    /// An empty set that cancels `shutdown` when a task ends.
    pub fn new(shutdown: &Shutdown) -> Self {
        Self { shutdown: shutdown.clone(), set: JoinSet::new(), names: HashMap::new() }
    }

    /// The wish to end, for handing to tasks.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Starts a task. Its name stands in errors and logs.
    pub fn spawn(
        &mut self,
        name: impl Into<String>,
        future: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let id = self.set.spawn(future).id();
        self.names.insert(id, name.into());
    }

    /// Starts a task on a thread of its own, for work that blocks. It cannot be aborted: it has to watch the shutdown.
    pub fn spawn_blocking(
        &mut self,
        name: impl Into<String>,
        work: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) {
        let id = self.set.spawn_blocking(work).id();
        self.names.insert(id, name.into());
    }

    /// Waits for the end (asked for, or because a task ended), then gives the tasks `deadline` to drain and aborts what is
    /// left. Returns the first error; tasks that had to be aborted are an error too. An empty set ends at once.
    pub async fn join(mut self, deadline: Duration) -> anyhow::Result<()> {
        let mut first_error = None;
        let shutdown = self.shutdown.clone();
        if let Some(Some(ended)) = shutdown.unless(self.set.join_next_with_id()).await {
            self.settle(ended, &mut first_error);
        }
        self.shutdown.cancel();
        let drained = tokio::time::timeout(deadline, async {
            while let Some(ended) = self.set.join_next_with_id().await {
                self.settle(ended, &mut first_error);
            }
        })
        .await;
        if drained.is_err() {
            let mut stuck: Vec<_> = self.names.drain().map(|(_, name)| name).collect();
            stuck.sort();
            self.set.abort_all();
            let stuck = stuck.join(", ");
            warn!(tasks = stuck, seconds = deadline.as_secs_f64(), "did not end in time, aborted");
            first_error.get_or_insert_with(|| {
                anyhow!("these tasks did not end within {deadline:?} and were aborted: {stuck}")
            });
        }
        first_error.map_or(Ok(()), Err)
    }

    fn settle(
        &mut self,
        ended: Result<(Id, anyhow::Result<()>), JoinError>,
        first_error: &mut Option<anyhow::Error>,
    ) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let name = self.names.remove(&id).unwrap_or_default();
        let result = match ended {
            Ok((_, result)) => result.with_context(|| name.clone()),
            Err(join) if join.is_panic() => Err(anyhow!("{name} panicked: {}", panic_text(join))),
            Err(_) => Err(anyhow!("{name} was aborted")),
        };
        match result {
            Ok(()) if self.shutdown.is_cancelled() => tracing::debug!(task = name, "task ended"),
            Ok(()) => info!(task = name, "task ended, ending the others"),
            Err(failure) => {
                error!(task = name, error = format!("{failure:#}"), "task failed");
                first_error.get_or_insert(failure);
            }
        }
        self.shutdown.cancel();
    }
}

fn panic_text(join: JoinError) -> String {
    match join.try_into_panic() {
        Ok(payload) => payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned()),
        Err(join) => join.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_first_error_ends_everybody_and_is_returned() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(&shutdown);
        let other = shutdown.clone();
        tasks.spawn("patient", async move {
            other.cancelled().await;
            Ok(())
        });
        tasks.spawn("broken", async { Err(anyhow!("disk on fire")) });
        let error = tasks.join(LONG).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "broken: disk on fire");
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test]
    async fn a_panic_is_an_error_with_the_tasks_name() {
        let mut tasks = Tasks::new(&Shutdown::new());
        tasks.spawn("careless", async { panic!("index out of bounds") });
        let error = tasks.join(LONG).await.unwrap_err().to_string();
        assert_eq!(error, "careless panicked: index out of bounds");
    }

    #[tokio::test]
    async fn a_task_that_returns_ends_everybody_without_error() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(&shutdown);
        let other = tasks.shutdown();
        tasks.spawn_blocking("done", || Ok(()));
        tasks.spawn("patient", async move {
            other.cancelled().await;
            Ok(())
        });
        tasks.join(LONG).await.unwrap();
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test]
    async fn stragglers_are_aborted_and_named() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(&shutdown);
        tasks.spawn("deaf", std::future::pending());
        shutdown.cancel();
        let error = tasks.join(Duration::from_millis(20)).await.unwrap_err().to_string();
        assert!(error.contains("deaf") && error.contains("20ms"), "{error}");
    }

    #[tokio::test]
    async fn a_child_ends_alone() {
        let shutdown = Shutdown::new();
        let child = shutdown.child();
        child.cancel();
        assert!(!shutdown.is_cancelled());
        let other = shutdown.child();
        shutdown.cancel();
        assert!(other.is_cancelled());
        assert_eq!(other.unless(std::future::pending::<()>()).await, None);
    }
}
