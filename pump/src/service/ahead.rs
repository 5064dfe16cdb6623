//! Reads the next stretch of the stream from the store, on a thread of its own, while the last one is being sent.

use prost::DecodeError;
use tidb::ts::{StartTs, Tso};
use tokio::task::JoinHandle;
use tonic::Status;
use tracing::error;

use crate::metrics;
use crate::store::{Reader, StoreError, Stored};

/// Transactions in order of commit_ts, in the form that a protocol sends.
pub(super) struct Stretch<T> {
    pub(super) transactions: Vec<T>,
    /// The last one's commit_ts.
    pub(super) last: Option<Tso>,
    /// Everything up to here is in it, or was in one before.
    pub(super) reached: Tso,
}

/// Why a stream cannot go on.
pub(super) enum Ended {
    /// What comes next was collected; what is left begins above this.
    Collected(Tso),
    /// Anything else, which was logged.
    Broken(Status),
}

enum Failure {
    Store(StoreError),
    Decode(StartTs, DecodeError),
}

type Scanned<T> = Result<Stretch<T>, Failure>;

/// One stream's reading.
pub(super) struct Ahead<T> {
    reader: Reader,
    /// Of one stretch: half of what the stream may hold, since two may be there at a time.
    budget: usize,
    protocol: &'static str,
    shape: fn(&Stored) -> Result<T, DecodeError>,
    running: Option<JoinHandle<Scanned<T>>>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Two stretches of this stream, read from `reader` and brought into form by `shape`, take about `budget` bytes together.
    pub(super) fn new(
        reader: Reader,
        budget: usize,
        protocol: &'static str,
        shape: fn(&Stored) -> Result<T, DecodeError>,
    ) -> Self {
        Self { reader, budget: budget / 2, protocol, shape, running: None }
    }

    /// What follows `after`, which is where the last stretch ended; everything up to `watermark` if it fits into the budget.
    pub(super) async fn next(&mut self, after: Tso, watermark: Tso) -> Result<Stretch<T>, Ended> {
        let running = self.running.take().unwrap_or_else(|| self.begin(after, watermark));
        let scanned = running.await.map_err(|_| Ended::Broken(Status::aborted("reading was cut off")))?;
        let text = match scanned {
            Ok(stretch) => {
                if stretch.reached < watermark {
                    self.running = Some(self.begin(stretch.reached, watermark));
                }
                return Ok(stretch);
            }
            Err(Failure::Store(StoreError::Collected { oldest, .. })) => {
                return Err(Ended::Collected(oldest.0));
            }
            Err(Failure::Store(error)) => error.to_string(),
            Err(Failure::Decode(start_ts, error)) => {
                format!("stored binlog {start_ts} does not decode: {error}")
            }
        };
        metrics::read_failed();
        error!(error = text, %after, "a pull stream ends: the store cannot be read");
        Err(Ended::Broken(Status::data_loss(text)))
    }

    fn begin(&self, after: Tso, upto: Tso) -> JoinHandle<Scanned<T>> {
        let (reader, budget, protocol, shape) = (self.reader.clone(), self.budget, self.protocol, self.shape);
        tokio::task::spawn_blocking(move || {
            let scan = reader.scan(after, upto, budget).map_err(Failure::Store)?;
            let bytes = scan.transactions.iter().map(|stored| stored.prewrite.len()).sum();
            metrics::pulled(protocol, scan.transactions.len(), bytes);
            let last = scan.transactions.last().map(|stored| stored.commit_ts.0);
            let shaped = scan
                .transactions
                .iter()
                .map(|stored| shape(stored).map_err(|error| Failure::Decode(stored.start_ts, error)));
            Ok(Stretch { transactions: shaped.collect::<Result<_, _>>()?, last, reached: scan.reached })
        })
    }
}
