//! What an operator says about a schema change that stopped: leave it out, or run another statement.
//!
//! Given through the admin listener (`binlogctl ddl …` asks there) while the process waits; nothing is restarted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::info;

/// The operator's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it out.
    Skip,
    /// Run this instead.
    Replace(String),
}

/// A schema change that waits for a word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stopped {
    /// The job.
    pub job_id: i64,
    /// The upstream's statement.
    pub statement: String,
    /// Why it stopped.
    pub reason: String,
}

/// Shared between the applier and the admin listener.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<Waiting>,
    given: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    stopped: Option<Stopped>,
    given: HashMap<i64, Verdict>,
}

impl Verdicts {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the word on a stopped change. Cancel-safe.
    pub async fn wait(&self, stopped: Stopped) -> Verdict {
        let job_id = stopped.job_id;
        self.state().stopped = Some(stopped);
        loop {
            let given = self.inner.given.notified();
            {
                let mut state = self.state();
                if let Some(verdict) = state.given.remove(&job_id) {
                    state.stopped = None;
                    return verdict;
                }
            }
            given.await;
        }
    }

    /// Gives the word on a change that waits for one; false if none of this job does.
    pub fn give(&self, job_id: i64, verdict: Verdict) -> bool {
        let mut state = self.state();
        if state.stopped.as_ref().is_none_or(|stopped| stopped.job_id != job_id) {
            return false;
        }
        info!(job = job_id, ?verdict, "an operator decided about a schema change");
        state.given.insert(job_id, verdict);
        drop(state);
        self.inner.given.notify_waiters();
        true
    }

    /// The change that waits, if one does.
    pub fn stopped(&self) -> Option<Stopped> {
        self.state().stopped.clone()
    }

    /// `GET /ddl`: what waits.
    pub fn reading(&self) -> Router {
        Router::new().route("/ddl", get(show)).with_state(self.clone())
    }

    /// `POST /ddl/{job}/skip`, and `POST /ddl/{job}/replace` with the statement as its body.
    pub fn changing(&self) -> Router {
        Router::new()
            .route("/ddl/{job}/skip", post(skip))
            .route("/ddl/{job}/replace", post(replace))
            .with_state(self.clone())
    }
}

type Answer = (StatusCode, Json<Value>);

fn show(State(verdicts): State<Verdicts>) -> std::future::Ready<Json<Value>> {
    std::future::ready(Json(json!({ "stopped": verdicts.stopped() })))
}

fn skip(State(verdicts): State<Verdicts>, Path(job): Path<i64>) -> std::future::Ready<Answer> {
    std::future::ready(answer(&verdicts, job, Verdict::Skip))
}

fn replace(
    State(verdicts): State<Verdicts>,
    Path(job): Path<i64>,
    statement: String,
) -> std::future::Ready<Answer> {
    let statement = statement.trim().to_owned();
    if statement.is_empty() {
        let error = json!({ "error": "the body must be the statement to run instead" });
        return std::future::ready((StatusCode::BAD_REQUEST, Json(error)));
    }
    std::future::ready(answer(&verdicts, job, Verdict::Replace(statement)))
}

fn answer(verdicts: &Verdicts, job: i64, verdict: Verdict) -> Answer {
    if verdicts.give(job, verdict) {
        return (StatusCode::OK, Json(json!({ "job_id": job })));
    }
    let waiting = verdicts.stopped().map(|stopped| stopped.job_id);
    let error =
        json!({ "error": format!("no schema change of job {job} is waiting"), "waiting_job_id": waiting });
    (StatusCode::NOT_FOUND, Json(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_word_is_taken_for_what_waits_only() {
        let verdicts = Verdicts::default();
        assert!(!verdicts.give(5, Verdict::Skip));
        let waiting = tokio::spawn({
            let verdicts = verdicts.clone();
            let stopped = Stopped { job_id: 7, statement: "s".into(), reason: "r".into() };
            async move { verdicts.wait(stopped).await }
        });
        while verdicts.stopped().is_none() {
            tokio::task::yield_now().await;
        }
        assert!(!verdicts.give(5, Verdict::Skip));
        assert!(verdicts.give(7, Verdict::Replace("x".into())));
        assert_eq!(waiting.await.unwrap(), Verdict::Replace("x".into()));
        assert_eq!(verdicts.stopped(), None);
    }
}
