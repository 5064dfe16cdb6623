//! Before a drainer's pull is even read: a place among the streams, and a time limit on saying what it wants.
//!
//! A place comes first, so that requests that say nothing are bounded like streams, by either protocol. It is given back
//! when the stream ends, or with the refusal.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tracing::warn;

/// How long a drainer may take to say what it wants.
const SILENCE: Duration = Duration::from_secs(10);

/// A place among the pull streams, until its last clone is dropped.
#[derive(Clone)]
pub(super) struct Slot {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Hands a pull on with its [`Slot`] in the extensions.
pub(super) async fn pull(State(slots): State<Arc<Semaphore>>, mut request: Request, next: Next) -> Response {
    let Ok(permit) = slots.try_acquire_owned() else {
        warn!("a pull stream was refused: max-pull-streams are open");
        return Status::unavailable(
            "max-pull-streams of this pump are open; a drainer that is not needed any more may hold one",
        )
        .into_http();
    };
    request.extensions_mut().insert(Slot { _permit: Arc::new(permit) });
    // The answer begins once the request was read.
    match tokio::time::timeout(SILENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Status::deadline_exceeded(format!("the peer did not say within {SILENCE:?} what to pull"))
            .into_http(),
    }
}
