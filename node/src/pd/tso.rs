//! Timestamps: one stream to PD's leader, one request under way, everybody who waits shares the next one.
//!
//! A request that is sent answers exactly those who began to wait before it was sent, all with the same timestamp: what PD
//! gives out then is at or above everything that any of them can have seen. Who comes later waits for the next request.
//! A broken stream loses nothing: the waiting are served by the next one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemas::pdpb::{TsoRequest, TsoResponse};
use tidb::ts::Tso;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::debug;

use super::PdError;
use super::link::Link;

/// How long a caller waits in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// One request.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Between streams.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
];
/// Callers that may queue before they wait for a place.
const QUEUE: usize = 4096;

/// PD's answer, or the two timestamps by which it went back.
type Outcome = Result<Tso, (Tso, Tso)>;
type Waiter = oneshot::Sender<Outcome>;

#[derive(Clone)]
pub(super) struct Handle {
    waiters: mpsc::Sender<Waiter>,
    last_failure: Arc<Mutex<Option<String>>>,
}

impl Handle {
    pub(super) async fn fetch(&self) -> Result<Tso, PdError> {
        let (waiter, outcome) = oneshot::channel();
        let wait = async {
            self.waiters.send(waiter).await.map_err(|_| PdError::Ended)?;
            match outcome.await {
                Ok(Ok(ts)) => Ok(ts),
                Ok(Err((last, got))) => Err(PdError::WentBack { last, got }),
                Err(_) => Err(PdError::Ended),
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| {
            let last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Err(PdError::Timeout { call: "Tso", limit: PATIENCE, last })
        })
    }
}

/// Starts the task; it ends when the last handle is gone. If it ever ends otherwise, callers get [`PdError::Ended`].
pub(super) fn start(link: Arc<Link>) -> Handle {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let last_failure = Arc::new(Mutex::new(None));
    let fetcher = Fetcher {
        link,
        queue: receiver,
        waiting: Vec::new(),
        last: Tso::ZERO,
        last_failure: Arc::clone(&last_failure),
        failures: 0,
    };
    tokio::spawn(fetcher.run());
    Handle { waiters: sender, last_failure }
}

struct Fetcher {
    link: Arc<Link>,
    queue: mpsc::Receiver<Waiter>,
    waiting: Vec<Waiter>,
    /// The largest timestamp seen.
    last: Tso,
    last_failure: Arc<Mutex<Option<String>>>,
    /// Streams that broke since the last answer.
    failures: usize,
}

impl Fetcher {
    async fn run(mut self) {
        loop {
            // A stream is opened only when somebody waits.
            if !self.gather().await {
                return;
            }
            let Err(error) = self.stream().await else {
                return;
            };
            debug!(%error, "PD's timestamp stream broke");
            *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            tokio::time::sleep(PAUSES[self.failures.min(PAUSES.len() - 1)]).await;
            self.failures += 1;
            if let Err(error) = self.link.find_leader().await {
                *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
        }
    }

    /// Waits until somebody waits, and takes everybody who does. False when all handles are gone.
    async fn gather(&mut self) -> bool {
        self.waiting.retain(|waiter| !waiter.is_closed());
        if self.waiting.is_empty() {
            match self.queue.recv().await {
                None => return false,
                Some(waiter) => self.waiting.push(waiter),
            }
        }
        while let Ok(waiter) = self.queue.try_recv() {
            self.waiting.push(waiter);
        }
        true
    }

    /// Serves over one stream until it breaks; returns only when all handles are gone. Called with somebody waiting.
    async fn stream(&mut self) -> Result<(), PdError> {
        let failed = |status| PdError::Call { call: "Tso", status: Box::new(status) };
        let (requests, stream) = mpsc::channel(1);
        let mut answers: Option<Streaming<TsoResponse>> = None;
        let mut stream = Some(ReceiverStream::new(stream));
        loop {
            let request = TsoRequest { header: self.link.header(), count: 1, dc_location: String::new() };
            requests.send(request).await.map_err(|_| PdError::NoLeader)?;
            let exchange = async {
                // The server may answer the call only with its first message, so the first request goes ahead of it.
                if let Some(stream) = stream.take() {
                    answers = Some(self.link.client().tso(stream).await.map_err(failed)?.into_inner());
                }
                let answer = match &mut answers {
                    None => None,
                    Some(answers) => answers.message().await.map_err(failed)?,
                };
                answer.ok_or(PdError::NoLeader)
            };
            let answer = tokio::time::timeout(ATTEMPT, exchange).await.map_err(|_| PdError::Timeout {
                call: "Tso",
                limit: ATTEMPT,
                last: None,
            })??;
            let outcome = self.judge(&answer)?;
            self.failures = 0;
            for waiter in self.waiting.drain(..) {
                // Who gave up does not listen any more.
                let _ = waiter.send(outcome);
            }
            if !self.gather().await {
                return Ok(());
            }
        }
    }

    fn judge(&mut self, answer: &TsoResponse) -> Result<Outcome, PdError> {
        self.link.check(answer.header.as_ref(), "Tso")?;
        let ts = answer.timestamp.as_ref().ok_or(PdError::NoLeader)?;
        let (Ok(physical), Ok(logical)) = (u64::try_from(ts.physical), u64::try_from(ts.logical)) else {
            return Err(PdError::Refused {
                call: "Tso",
                message: format!("negative timestamp ({}, {})", ts.physical, ts.logical),
                transient: false,
            });
        };
        let got = Tso::from_parts(physical, logical);
        if got < self.last {
            return Ok(Err((self.last, got)));
        }
        self.last = got;
        Ok(Ok(got))
    }
}
