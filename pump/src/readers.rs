//! Who pulls by our own protocol, and how far: for the status page and for leaving in good order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tidb::ts::Tso;

/// The open pull streams.
#[derive(Debug, Default)]
pub struct Readers {
    open: Mutex<(u64, BTreeMap<u64, Puller>)>,
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Puller {
    /// The drainer's node id, as it says.
    pub drainer: String,
    /// The watermark last handed to it (what it made of it is in its registry entry).
    pub sent: Tso,
}

/// A stream's entry; gone when dropped.
#[derive(Debug)]
pub struct Registration {
    readers: Arc<Readers>,
    id: u64,
}

impl Readers {
    /// Lists a stream.
    pub fn join(self: &Arc<Self>, drainer: &str, position: Tso) -> Registration {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 += 1;
        let id = open.0;
        open.1.insert(id, Puller { drainer: drainer.to_owned(), sent: position });
        Registration { readers: self.clone(), id }
    }

    /// All open streams.
    pub fn list(&self) -> Vec<Puller> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).1.values().cloned().collect()
    }
}

impl Registration {
    /// Everything up to `watermark` was handed over.
    pub fn sent(&self, watermark: Tso) {
        let mut open = self.readers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(puller) = open.1.get_mut(&self.id) {
            puller.sent = watermark;
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.readers.open.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.id);
    }
}
