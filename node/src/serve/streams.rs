//! Runs the requests of an HTTP/2 connection on the connection's own task.
//!
//! A task for each request would be woken on whatever thread is free, and then wake the connection on another: for a call
//! that does little but wait for a disk, that is most of what it costs. On one task the answers of a group that became
//! durable together are one wake-up and one write to the socket. Connections still share the runtime's threads among them;
//! what is long belongs on tasks or threads of its own.
//!
//! A request that panics ends alone. Requests that run when their connection breaks are dropped.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use hyper::rt::Executor;

/// Where the HTTP layer puts requests that begin.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        // The panic was reported by the hook; the peer sees its stream reset.
        let stream = AssertUnwindSafe(stream).catch_unwind().map(drop).boxed();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }
}

impl Streams {
    fn begun(&self) -> Vec<BoxFuture<'static, ()>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `connection`, which was made with this executor, and its requests until the connection ends.
    pub(super) fn run<C: Future>(self, connection: C) -> Running<C> {
        Running { connection: Box::pin(connection), streams: self, running: FuturesUnordered::new() }
    }
}

/// A connection and its requests.
pub(super) struct Running<C> {
    connection: Pin<Box<C>>,
    streams: Streams,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl<C: Future> Future for Running<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.get_mut();
        // What requests have to send wakes this task again.
        if let Poll::Ready(ended) = this.connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        this.running.extend(this.streams.begun());
        while let Poll::Ready(Some(())) = this.running.poll_next_unpin(cx) {}
        Poll::Pending
    }
}
