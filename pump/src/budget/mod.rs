//! The receive budget: bytes of binlogs received and not yet durable, over all connections.
//!
//! Small messages have a quarter of it for themselves, so that a commit never waits for the transfer of somebody's large
//! transaction. Large ones hold what has arrived of them, step by step; the order in which steps are granted (`bank`)
//! keeps half-received messages from waiting for each other. A message larger than all there is holds all there is, and
//! so is received alone. Whoever waits does so without a limit of its own; its caller sets one.
//!
//! A share is given back when it is dropped, wherever it has got to by then. In memory only.

mod bank;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use bank::{Bank, Ticket};

/// A message up to this many bytes is a small one: TiDB's commits, rollbacks, and ordinary prewrites.
pub const SMALL: u32 = 64 << 10;

/// The largest step in which large messages are held. The first is [`SMALL`], and each doubles what is held: a few bytes
/// do not hold much.
const STEP: u64 = 1 << 20;

/// The budget. Clones are the same.
#[derive(Clone)]
pub struct ReceiveBudget {
    small: Arc<Semaphore>,
    small_total: u32,
    large: Arc<Large>,
}

impl ReceiveBudget {
    /// Of so many bytes.
    pub fn new(bytes: u32) -> Self {
        let small_total = (bytes / 4).max(1);
        let large = Large { desk: Mutex::new(Desk::new(u64::from(bytes - bytes / 4))) };
        Self { small: Arc::new(Semaphore::new(small_total as usize)), small_total, large: Arc::new(large) }
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        let free = u64::try_from(self.small.available_permits()).unwrap_or(u64::MAX);
        u64::from(self.small_total).saturating_sub(free) + self.large.desk().bank.held()
    }

    /// The whole of a small message, if there is room now and nobody waits.
    pub fn try_small(&self, length: u32) -> Option<Share> {
        let permit = Arc::clone(&self.small).try_acquire_many_owned(length.min(self.small_total)).ok()?;
        Some(Share::Small { _permit: permit })
    }

    /// The whole of a small message, waited for.
    ///
    /// # Errors
    /// The pump is going down.
    pub async fn small(&self, length: u32) -> Result<Share, AcquireError> {
        let permit = Arc::clone(&self.small).acquire_many_owned(length.min(self.small_total)).await?;
        Ok(Share::Small { _permit: permit })
    }

    /// A large message of `length` bytes begins to arrive. It holds nothing yet.
    pub fn large(&self, length: u64) -> Receiving {
        let ticket = self.large.desk().bank.announce(length);
        Receiving { large: self.large.clone(), ticket, length, held: 0 }
    }
}

/// The share of a message that was received, until it is dropped.
pub enum Share {
    /// Out of the small messages' part.
    Small {
        /// Gives it back.
        _permit: OwnedSemaphorePermit,
    },
    /// Out of the large ones'.
    Large {
        /// Gives it back.
        _received: Receiving,
    },
}

/// The share of a large message that is being received.
pub struct Receiving {
    large: Arc<Large>,
    ticket: Ticket,
    length: u64,
    held: u64,
}

impl Receiving {
    /// Whether there is room for the first `upto` bytes.
    pub fn holds(&self, upto: u64) -> bool {
        self.held >= upto.min(self.length)
    }

    /// Room for the first `upto` bytes, waited for. Who gives up waiting has to drop it.
    pub async fn room(&mut self, upto: u64) {
        while !self.holds(upto) {
            let step = self.held.clamp(u64::from(SMALL), STEP).min(self.length - self.held);
            let granted = {
                let mut desk = self.large.desk();
                let (told, granted) = oneshot::channel();
                desk.told.insert(self.ticket, told);
                desk.bank.ask(self.ticket, step);
                desk.tell();
                granted
            };
            // Only a desk that is gone tells nobody.
            let _ = granted.await;
            self.held += step;
        }
    }

    /// All of it has arrived.
    pub fn whole(self) -> Share {
        self.large.desk().bank.complete(self.ticket);
        Share::Large { _received: self }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut desk = self.large.desk();
        desk.bank.leave(self.ticket);
        desk.told.remove(&self.ticket);
        desk.tell();
    }
}

struct Large {
    desk: Mutex<Desk>,
}

impl Large {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bank and whom to tell of a granted step.
struct Desk {
    bank: Bank,
    told: HashMap<Ticket, oneshot::Sender<()>>,
}

impl Desk {
    fn new(bytes: u64) -> Self {
        Self { bank: Bank::new(bytes), told: HashMap::new() }
    }

    fn tell(&mut self) {
        for ticket in self.bank.granted() {
            if let Some(told) = self.told.remove(&ticket) {
                // Who gave up leaves by being dropped.
                let _ = told.send(());
            }
        }
    }
}
