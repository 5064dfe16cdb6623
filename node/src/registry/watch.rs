//! Following the list: every change yields the whole list anew.
//!
//! Nodes are few and the list is small, so a change is only a reason to read again; that makes compaction, lost connections
//! and missed events one case: read, then watch from the revision that was read. Both prefixes are read at one revision.

use std::time::Duration;

use etcd_client::{WatchOptions, WatchStream};
use tracing::{debug, warn};

use super::{Entry, NodeKind, Registry, RegistryError};

/// Pause before etcd is asked again after a failure; doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The list of one kind of node, followed.
pub struct Watch {
    registry: Registry,
    kind: NodeKind,
    stream: Option<WatchStream>,
    /// Revision of the list that was last read.
    seen: i64,
    /// A change was seen and the list not read since.
    changed: bool,
    pause: Duration,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("kind", &self.kind).field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Watch {
    pub(super) fn new(registry: Registry, kind: NodeKind) -> Self {
        Self { registry, kind, stream: None, seen: 0, changed: true, pause: FIRST_PAUSE }
    }

    /// The list: at once the first time, then after each change (several changes may yield one list). While etcd cannot be
    /// reached it keeps trying. An error is for good until somebody changes etcd: a value that is not understood; the next
    /// call waits for the next change. Cancel-safe: a change that was seen is reported by a later call.
    pub async fn next(&mut self) -> Result<Vec<Entry>, RegistryError> {
        loop {
            match self.advance().await {
                Ok(Some(entries)) => {
                    self.pause = FIRST_PAUSE;
                    return Ok(entries);
                }
                Ok(None) => {}
                Err(error) if error.is_retryable() => {
                    warn!(kind = %self.kind, %error, "cannot follow the registry, trying again");
                    // What happened meanwhile is unknown: read again.
                    self.stream = None;
                    self.changed = true;
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => {
                    self.changed = false;
                    return Err(error);
                }
            }
        }
    }

    /// One step: open the stream, wait for a change, or read the list. Every wait in it may be cut short.
    async fn advance(&mut self) -> Result<Option<Vec<Entry>>, RegistryError> {
        let Some(stream) = &mut self.stream else {
            // The stream is opened before the list is read, so that no change falls between; from the next revision on,
            // or from now if nothing was read yet.
            self.stream = Some(self.open().await?);
            self.changed = true;
            return Ok(None);
        };
        if self.changed {
            let listing = self.registry.listing(self.kind).await?;
            self.seen = listing.revision;
            self.changed = false;
            return Ok(Some(listing.entries));
        }
        let Some(message) = stream.message().await? else {
            return Err(etcd_client::Error::WatchError("the stream ended".to_owned()).into());
        };
        if message.canceled() {
            debug!(
                reason = message.cancel_reason(),
                compacted = message.compact_revision(),
                "a watch was cancelled"
            );
            self.stream = None;
            return Ok(None);
        }
        self.changed |= message
            .events()
            .iter()
            .filter_map(etcd_client::Event::kv)
            .any(|kv| kv.mod_revision() > self.seen);
        Ok(None)
    }

    async fn open(&self) -> Result<WatchStream, RegistryError> {
        let prefix = || Some(WatchOptions::new().with_prefix());
        let mut client = self.registry.etcd.watch_client();
        super::in_time(async {
            let mut stream = client.watch(self.kind.main_prefix(), prefix()).await?;
            stream.watch(self.kind.side_prefix(), prefix()).await?;
            // etcd confirms each; from then on nothing is missed.
            let mut confirmed = 0;
            while confirmed < 2 {
                match stream.message().await? {
                    Some(message) if message.canceled() => {
                        return Err(etcd_client::Error::WatchError(message.cancel_reason().to_owned()));
                    }
                    Some(message) if message.created() => confirmed += 1,
                    // A change before the list is read at all.
                    Some(_) => {}
                    None => return Err(etcd_client::Error::WatchError("the stream ended".to_owned())),
                }
            }
            Ok(stream)
        })
        .await
    }
}
