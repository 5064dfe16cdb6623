//! Regions and stores: where PD says a key lives, and what TiKV refuses when it was asked in the wrong place. Pure.

use std::collections::VecDeque;

use bytes::Bytes;
use schemas::errorpb::{self, EpochNotMatch, NotLeader, RegionNotFound, ServerIsBusy};
use schemas::kvrpcpb;
use schemas::metapb::{Peer, Region, RegionEpoch, Store};

/// A region error to answer with, for tests of the asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The store does not lead the region and does not know who does.
    NotLeader,
    /// The store does not have the region.
    RegionNotFound,
    /// The region was split or moved since the asker looked.
    EpochNotMatch,
    /// Too much to do; try again.
    ServerIsBusy,
}

/// The one store and its regions, which together cover all keys.
#[derive(Debug)]
pub struct Topology {
    store: Store,
    /// In order of their (memcomparable-encoded) start keys.
    regions: Vec<Region>,
    faults: VecDeque<Fault>,
}

impl Default for Topology {
    fn default() -> Self {
        let region = Region {
            id: 2,
            start_key: Bytes::new(),
            end_key: Bytes::new(),
            region_epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
            peers: vec![Peer { id: 3, store_id: 1 }],
        };
        Self {
            store: Store { id: 1, address: String::new() },
            regions: vec![region],
            faults: VecDeque::new(),
        }
    }
}

impl Topology {
    /// Says at which `host:port` TiKV answers.
    pub fn set_store_address(&mut self, address: String) {
        self.store.address = address;
    }

    /// The store with this id.
    pub fn store(&self, id: u64) -> Option<&Store> {
        (self.store.id == id).then_some(&self.store)
    }

    /// The region of a memcomparable-encoded key.
    pub fn region(&self, encoded: &[u8]) -> &Region {
        &self.regions[self.index_of(encoded)]
    }

    fn index_of(&self, encoded: &[u8]) -> usize {
        self.regions.partition_point(|region| region.start_key.as_ref() <= encoded).saturating_sub(1)
    }

    /// Splits the region that holds a raw key just before that key.
    pub fn split(&mut self, raw_key: &[u8]) {
        let at = Bytes::from(encoded(raw_key));
        let index = self.index_of(&at);
        let next_id = self.regions.iter().map(|region| region.id).max().unwrap_or(0) + 2;
        let left = &mut self.regions[index];
        if left.start_key == at {
            return;
        }
        bump(left);
        let mut right = left.clone();
        left.end_key = at.clone();
        right.start_key = at;
        right.id = next_id;
        right.peers = vec![Peer { id: next_id + 1, store_id: self.store.id }];
        self.regions.insert(index + 1, right);
    }

    /// Gives every region a new epoch, as if each had been split and merged again.
    pub fn bump_epochs(&mut self) {
        self.regions.iter_mut().for_each(bump);
    }

    /// Answers the next questions with these errors, one each.
    pub fn inject(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
    }

    /// The error with which TiKV refuses a question put in this context about this raw key.
    pub fn refusal(&mut self, context: Option<&kvrpcpb::Context>, raw_key: &[u8]) -> Option<errorpb::Error> {
        let asked = context.map_or(0, |context| context.region_id);
        if let Some(fault) = self.faults.pop_front() {
            return Some(self.error(fault, asked));
        }
        let Some(region) = self.regions.iter().find(|region| region.id == asked) else {
            return Some(self.error(Fault::RegionNotFound, asked));
        };
        if context.and_then(|context| context.peer) != region.peers.first().copied() {
            return Some(self.error(Fault::NotLeader, asked));
        }
        let current = context.and_then(|context| context.region_epoch) == region.region_epoch;
        if !current || self.region(&encoded(raw_key)).id != asked {
            return Some(self.error(Fault::EpochNotMatch, asked));
        }
        None
    }

    fn error(&self, fault: Fault, region_id: u64) -> errorpb::Error {
        let mut error =
            errorpb::Error { message: format!("{fault:?}, region {region_id}"), ..errorpb::Error::default() };
        match fault {
            Fault::NotLeader => error.not_leader = Some(NotLeader { region_id, leader: None }),
            Fault::RegionNotFound => error.region_not_found = Some(RegionNotFound { region_id }),
            Fault::EpochNotMatch => {
                error.epoch_not_match = Some(EpochNotMatch { current_regions: self.regions.clone() });
            }
            Fault::ServerIsBusy => {
                error.server_is_busy = Some(ServerIsBusy { reason: "stand-in".into(), backoff_ms: 1 });
            }
        }
        error
    }
}

fn bump(region: &mut Region) {
    if let Some(epoch) = &mut region.region_epoch {
        epoch.version += 1;
    }
}

fn encoded(raw_key: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    tidb::memcomparable::encode(&mut out, raw_key);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(region: &Region) -> kvrpcpb::Context {
        kvrpcpb::Context {
            region_id: region.id,
            region_epoch: region.region_epoch,
            peer: region.peers.first().copied(),
        }
    }

    #[test]
    fn asks_in_the_right_place_only() {
        let mut topology = Topology::default();
        let before = context(topology.region(&encoded(b"m")));
        assert_eq!(topology.refusal(Some(&before), b"m"), None);
        topology.split(b"m");
        assert!(topology.refusal(Some(&before), b"m").unwrap().epoch_not_match.is_some());
        let (left, right) =
            (context(topology.region(&encoded(b"l"))), context(topology.region(&encoded(b"m"))));
        assert_ne!(left.region_id, right.region_id);
        assert_eq!(topology.refusal(Some(&right), b"m"), None);
        assert!(topology.refusal(Some(&left), b"m").unwrap().epoch_not_match.is_some());
        // A raw key sent to PD instead of the encoded one finds another region.
        assert_eq!(topology.region(b"l\xff").id, left.region_id);
        assert!(topology.refusal(None, b"m").unwrap().region_not_found.is_some());
        topology.inject([Fault::ServerIsBusy]);
        assert!(topology.refusal(Some(&right), b"m").unwrap().server_is_busy.is_some());
        assert_eq!(topology.refusal(Some(&right), b"m"), None);
    }
}
