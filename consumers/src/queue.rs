//! The queue between the thread that follows the log and the task that feeds a target: bounded in bytes.

use std::sync::Arc;

use node::shutdown::Shutdown;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::event::Event;

/// Bytes per permit, so that any budget fits the semaphore.
const UNIT: usize = 1024;
/// Events are never more than this many, however small.
const LENGTH: usize = 4096;

/// The other side is gone, or the end was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the queue is closed")]
pub struct Closed;

/// The sending side, for a blocking thread.
#[derive(Debug)]
pub struct EventSender {
    sender: mpsc::Sender<(Event, OwnedSemaphorePermit)>,
    permits: Arc<Semaphore>,
    capacity: u32,
    runtime: Handle,
    shutdown: Shutdown,
}

/// The receiving side.
#[derive(Debug)]
pub struct EventReceiver {
    receiver: mpsc::Receiver<(Event, OwnedSemaphorePermit)>,
}

/// A queue of up to `budget` bytes; one larger event passes alone. Must be called within a runtime.
pub fn channel(budget: usize, shutdown: &Shutdown) -> (EventSender, EventReceiver) {
    let capacity = (budget / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize)) as u32;
    let (sender, receiver) = mpsc::channel(LENGTH);
    let permits = Arc::new(Semaphore::new(capacity as usize));
    let sender =
        EventSender { sender, permits, capacity, runtime: Handle::current(), shutdown: shutdown.clone() };
    (sender, EventReceiver { receiver })
}

impl EventSender {
    /// Waits for room, then sends. Blocks: not for the runtime's own threads.
    pub fn send(&self, event: Event, cost: usize) -> Result<(), Closed> {
        let permits = u32::try_from(cost.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.capacity);
        let sending = async {
            let permit = self.permits.clone().acquire_many_owned(permits).await.map_err(|_| Closed)?;
            self.sender.send((event, permit)).await.map_err(|_| Closed)
        };
        self.runtime.block_on(self.shutdown.unless(sending)).unwrap_or(Err(Closed))
    }
}

impl EventReceiver {
    /// The next event; `None` when the follower ended. Its bytes are the receiver's from here on. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.receiver.recv().await.map(|(event, _)| event)
    }
}

#[cfg(test)]
mod tests {
    use schemas::sluice::v1::Gap;

    use super::*;

    fn event(from: u64) -> Event {
        Event::Gap { gap: Gap { from, to: 0, cause: String::new() }, after: None }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn holds_back_at_its_budget_and_ends_with_the_shutdown() {
        let shutdown = Shutdown::new();
        let (sender, mut receiver) = channel(4 * UNIT, &shutdown);
        let (sent, mut seen) = mpsc::channel(10);
        let thread = tokio::task::spawn_blocking(move || {
            // 3 + 1 units fit, the next one waits; one larger than all passes alone.
            for (number, cost) in [(0, 3 * UNIT), (1, 1), (2, 1), (3, 100 * UNIT), (4, 1)] {
                if sender.send(event(number), cost).is_err() {
                    return number;
                }
                sent.blocking_send(number).unwrap();
            }
            9
        });
        assert_eq!((seen.recv().await, seen.recv().await), (Some(0), Some(1)));
        assert!(seen.try_recv().is_err());
        assert!(matches!(receiver.recv().await, Some(Event::Gap { gap, .. }) if gap.from == 0));
        assert_eq!(seen.recv().await, Some(2));
        receiver.recv().await.unwrap();
        receiver.recv().await.unwrap();
        assert_eq!(seen.recv().await, Some(3));
        // The large one is in the queue and fills it.
        shutdown.cancel();
        assert_eq!(thread.await.unwrap(), 4);
    }
}
