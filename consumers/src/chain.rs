//! The commit stream, checked record by record. Pure.
//!
//! What is checked: the feed id never changes; an epoch begins with its START and records of a lower epoch are stale;
//! `seq` has no gaps, on through epochs; commit_ts grows and lies above the watermark before it; the watermark never
//! falls; an epoch goes on where the one before it ended. Whoever applies a feed can therefore say that nothing is
//! missing and nothing came twice, without trusting Kafka's transactions.
//!
//! A first attach names the place in the feed where the target stands ([`Start::Attach`]); a chain that does not reach
//! back to that place is refused.

use std::cmp::Ordering;

use schemas::CONTRACT_VERSION;
use schemas::sluice::v1::{
    CommitRecord, Part, Start as StartRecord, Txn, TxnKind, Txns, commit_record::Body,
};
use tidb::ts::CommitTs;

use crate::position::{FeedId, Position};

/// Where following begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Where the last run ended.
    Resume(Position),
    /// The first run. The target holds everything up to and including `initial`; with `None` it stands where the feed
    /// begins, which must then still be in the log (seq 1).
    Attach {
        /// Transactions with a commit_ts at or below it are skipped.
        initial: Option<CommitTs>,
    },
}

/// What became of a commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on with the chain.
    Accepted,
    /// It belongs to an epoch that was over: a writer that had been fenced. Ignore and report it.
    Stale,
}

/// The commit stream does not add up. Nothing here heals by trying again.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    /// Offsets only grow.
    #[error("the commit stream went back from offset {last} to {found}: was the topic made anew?")]
    OffsetsBack {
        /// The last offset read.
        last: i64,
        /// The one that came next.
        found: i64,
    },
    /// Another feed's record.
    #[error(
        "the commit stream holds feed {found} at offset {offset}, but this consumer follows feed {expected}: was the \
         topic made anew? A target loaded from one feed cannot go on with another"
    )]
    WrongFeed {
        /// The feed that progress names.
        expected: FeedId,
        /// The feed in the record.
        found: FeedId,
        /// Where.
        offset: i64,
    },
    /// Not a record of this contract.
    #[error("the commit record at offset {offset} is malformed: {what}")]
    Malformed {
        /// Where.
        offset: i64,
        /// What is wrong.
        what: String,
    },
    /// An epoch must begin with its START.
    #[error("epoch {found} appears at offset {offset} without its START (the epoch so far is {epoch})")]
    EpochWithoutStart {
        /// The epoch in force.
        epoch: u64,
        /// The one in the record.
        found: u64,
        /// Where.
        offset: i64,
    },
    /// Written for another contract.
    #[error(
        "epoch {epoch} is written in version {found} of the contract; this build reads version {CONTRACT_VERSION}"
    )]
    UnknownVersion {
        /// The epoch.
        epoch: u64,
        /// Its version.
        found: u32,
    },
    /// An epoch that goes on later than the one before it ended.
    #[error(
        "epoch {epoch} goes on after commit_ts {resumed_from}, but the commit stream before it ends at {watermark}: \
         transactions in ({watermark}, {resumed_from}] are missing"
    )]
    Hole {
        /// The epoch.
        epoch: u64,
        /// Its START says so.
        resumed_from: CommitTs,
        /// The last watermark before it.
        watermark: CommitTs,
    },
    /// A transaction is missing or came twice.
    #[error(
        "transaction {expected} should follow at offset {offset}, but it is {found}: transactions are missing or repeated"
    )]
    SeqGap {
        /// The next number.
        expected: u64,
        /// The number found.
        found: u64,
        /// Where.
        offset: i64,
    },
    /// A transaction at or below what was already complete.
    #[error("transaction {seq} at offset {offset} has commit_ts {commit_ts}, which is not above {above}")]
    OutOfOrder {
        /// The transaction.
        seq: u64,
        /// Its timestamp.
        commit_ts: CommitTs,
        /// The one before it.
        above: CommitTs,
        /// Where.
        offset: i64,
    },
    /// The watermark went back.
    #[error("the watermark fell from {from} to {to} at offset {offset}")]
    WatermarkFell {
        /// Before.
        from: CommitTs,
        /// In the record.
        to: CommitTs,
        /// Where.
        offset: i64,
    },
    /// A first attach without `initial-commit-ts` to a feed whose beginning is gone.
    #[error(
        "the commit stream no longer holds the beginning of its feed (it starts with transaction {next_seq}): load the \
         target from a backup and say where it stands with initial-commit-ts (at least {from})"
    )]
    BeginningGone {
        /// The first transaction that is left.
        next_seq: u64,
        /// The least timestamp to attach at.
        from: CommitTs,
    },
    /// A first attach at a timestamp from which the log no longer goes on.
    #[error(
        "initial-commit-ts {initial} lies before the log: it holds transactions after {from} only, those in \
         ({initial}, {from}] are not there. Load the target at {from} or later"
    )]
    BeforeLog {
        /// What was asked for.
        initial: CommitTs,
        /// The least timestamp to attach at.
        from: CommitTs,
    },
    /// Pieces of one large transaction do not follow each other.
    #[error("part {part} of transaction {seq} at offset {offset}: {what}")]
    BadPart {
        /// The transaction.
        seq: u64,
        /// The piece.
        part: u32,
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: i64,
    },
}

/// State of the check: everything that must be remembered of the records before.
#[derive(Clone, Debug)]
pub struct Chain {
    feed_id: Option<FeedId>,
    epoch: u64,
    seq: u64,
    watermark: CommitTs,
    /// Transactions at or below these two are in the target already.
    done_seq: u64,
    floor: CommitTs,
    begin: Begin,
    last_offset: Option<i64>,
}

/// What the next record is to the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// The first one of a first attach.
    Attach(Option<CommitTs>),
    /// The first one after a stop, which may have been in the middle of it.
    Resume,
    /// One that follows another.
    Over,
}

impl Chain {
    /// A chain that begins at `start`.
    pub fn new(start: &Start) -> Self {
        match start {
            Start::Resume(at) => Self {
                feed_id: Some(at.feed_id),
                epoch: at.epoch,
                seq: at.seq,
                watermark: at.commit_ts,
                done_seq: at.seq,
                floor: at.commit_ts,
                begin: Begin::Resume,
                last_offset: None,
            },
            Start::Attach { initial } => Self {
                feed_id: None,
                epoch: 0,
                seq: 0,
                watermark: CommitTs::default(),
                done_seq: 0,
                floor: initial.unwrap_or_default(),
                begin: Begin::Attach(*initial),
                last_offset: None,
            },
        }
    }

    /// True until the first record of a first attach was accepted.
    pub fn is_attaching(&self) -> bool {
        matches!(self.begin, Begin::Attach(_))
    }

    /// The newest watermark.
    pub fn watermark(&self) -> CommitTs {
        self.watermark
    }

    /// Transactions at or below it are in the target already.
    pub fn floor(&self) -> CommitTs {
        self.floor
    }

    /// The last complete transaction.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The epoch in force.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// True for a transaction that the target does not have yet.
    pub fn wants(&self, seq: u64, commit_ts: CommitTs) -> bool {
        seq > self.done_seq && commit_ts > self.floor
    }

    /// The point after everything that was accepted, if reading goes on at `commits_offset`. `None` before the feed is
    /// known.
    pub fn position(&self, commits_offset: i64) -> Option<Position> {
        let commit_ts = self.watermark.max(self.floor);
        Some(Position { feed_id: self.feed_id?, epoch: self.epoch, seq: self.seq, commit_ts, commits_offset })
    }

    /// The point after transaction `txn` of a record at `offset` that holds more transactions after it.
    pub fn position_within(&self, txn: &Txn, offset: i64) -> Option<Position> {
        let commit_ts = CommitTs::new(txn.commit_ts).max(self.floor);
        Some(Position {
            feed_id: self.feed_id?,
            epoch: self.epoch,
            seq: txn.seq,
            commit_ts,
            commits_offset: offset,
        })
    }

    /// Checks the record at `offset` and moves on past it. After an error the chain must not be used.
    pub fn accept(&mut self, offset: i64, record: &CommitRecord) -> Result<Verdict, ChainError> {
        if let Some(last) = self.last_offset.filter(|last| offset <= *last) {
            return Err(ChainError::OffsetsBack { last, found: offset });
        }
        self.last_offset = Some(offset);
        let malformed = |what: &str| ChainError::Malformed { offset, what: what.to_owned() };
        let found =
            FeedId::from_bytes(&record.feed_id).ok_or_else(|| malformed("its feed id is not 16 bytes"))?;
        let expected = *self.feed_id.get_or_insert(found);
        if expected != found {
            return Err(ChainError::WrongFeed { expected, found, offset });
        }
        let body = record.body.as_ref().ok_or_else(|| malformed("its kind is unknown to this build"))?;
        let begin = std::mem::replace(&mut self.begin, Begin::Over);
        if let Begin::Attach(initial) = begin {
            self.attach(offset, initial, record, body)?;
        }
        match (record.epoch.cmp(&self.epoch), body) {
            (Ordering::Less, _) => return Ok(Verdict::Stale),
            (Ordering::Greater, Body::Start(start)) => self.start(offset, record.epoch, start)?,
            (Ordering::Equal, Body::Start(start)) if matches!(begin, Begin::Attach(_)) => {
                self.start(offset, record.epoch, start)?;
            }
            (Ordering::Greater, _) => {
                return Err(ChainError::EpochWithoutStart { epoch: self.epoch, found: record.epoch, offset });
            }
            (Ordering::Equal, Body::Start(_)) => return Err(malformed("its epoch begins twice")),
            (Ordering::Equal, _) => {}
        }
        let watermark = CommitTs::new(record.watermark);
        if watermark < self.watermark {
            return Err(ChainError::WatermarkFell { from: self.watermark, to: watermark, offset });
        }
        match body {
            Body::Txns(txns) => self.txns(offset, watermark, txns, begin == Begin::Resume)?,
            Body::Part(part) => self.part(offset, watermark, part)?,
            Body::Gap(gap) if gap.from > gap.to => return Err(malformed("its gap ends before it begins")),
            Body::Start(_) | Body::Tick(_) | Body::Layout(_) | Body::Gap(_) => {}
        }
        self.watermark = watermark;
        if record.next_seq != 0 && record.next_seq != self.seq + 1 {
            return Err(ChainError::SeqGap { expected: self.seq + 1, found: record.next_seq, offset });
        }
        Ok(Verdict::Accepted)
    }

    /// The first record of a first attach: does the log reach back to where the target stands?
    fn attach(
        &mut self,
        offset: i64,
        initial: Option<CommitTs>,
        record: &CommitRecord,
        body: &Body,
    ) -> Result<(), ChainError> {
        let watermark = CommitTs::new(record.watermark);
        let before = |commit_ts| CommitTs(CommitTs::new(commit_ts).0.prev());
        // (the next transaction, the timestamp after which the log has them all, the watermark before this record)
        let (next_seq, from, above) = match body {
            Body::Start(start) => {
                let from = CommitTs::new(start.resumed_from);
                (start.next_seq, from, from)
            }
            Body::Txns(Txns { txns, .. }) if !txns.is_empty() => {
                // The parts of a parted one came before the log's start.
                let from =
                    if txns[0].parted { CommitTs::new(txns[0].commit_ts) } else { before(txns[0].commit_ts) };
                (txns[0].seq, from, before(txns[0].commit_ts))
            }
            Body::Part(part) => {
                let from = if part.part > 0 { CommitTs::new(part.commit_ts) } else { before(part.commit_ts) };
                (part.seq, from, watermark.min(before(part.commit_ts)))
            }
            _ => (record.next_seq, watermark, watermark),
        };
        if next_seq == 0 {
            return Err(ChainError::Malformed { offset, what: "it does not say how seq goes on".to_owned() });
        }
        match initial {
            None if next_seq == 1 && matches!(body, Body::Start(_)) => self.floor = from,
            None => return Err(ChainError::BeginningGone { next_seq, from }),
            Some(initial) if initial < from => return Err(ChainError::BeforeLog { initial, from }),
            Some(_) => {}
        }
        self.seq = next_seq - 1;
        self.epoch = record.epoch;
        self.watermark = above;
        Ok(())
    }

    fn start(&mut self, offset: i64, epoch: u64, start: &StartRecord) -> Result<(), ChainError> {
        if start.contract_version != CONTRACT_VERSION {
            return Err(ChainError::UnknownVersion { epoch, found: start.contract_version });
        }
        let resumed_from = CommitTs::new(start.resumed_from);
        if resumed_from > self.watermark {
            return Err(ChainError::Hole { epoch, resumed_from, watermark: self.watermark });
        }
        if start.next_seq != self.seq + 1 {
            return Err(ChainError::SeqGap { expected: self.seq + 1, found: start.next_seq, offset });
        }
        self.epoch = epoch;
        Ok(())
    }

    fn txns(
        &mut self,
        offset: i64,
        watermark: CommitTs,
        txns: &Txns,
        resumed: bool,
    ) -> Result<(), ChainError> {
        let mut above = self.watermark;
        for txn in &txns.txns {
            if txn.kind() == TxnKind::Unspecified {
                let what = format!("transaction {} is of a kind unknown to this build", txn.seq);
                return Err(ChainError::Malformed { offset, what });
            }
            // The first transactions of the record at which a resumed chain begins were dealt with in the last run.
            if resumed && txn.seq <= self.done_seq && CommitTs::new(txn.commit_ts) <= self.floor {
                continue;
            }
            if txn.seq != self.seq + 1 {
                return Err(ChainError::SeqGap { expected: self.seq + 1, found: txn.seq, offset });
            }
            let commit_ts = CommitTs::new(txn.commit_ts);
            if commit_ts <= above || commit_ts > watermark {
                let above = if commit_ts <= above { above } else { watermark };
                return Err(ChainError::OutOfOrder { seq: txn.seq, commit_ts, above, offset });
            }
            above = commit_ts;
            self.seq = txn.seq;
        }
        Ok(())
    }

    fn part(&mut self, offset: i64, watermark: CommitTs, part: &Part) -> Result<(), ChainError> {
        if part.seq != self.seq + 1 {
            return Err(ChainError::SeqGap { expected: self.seq + 1, found: part.seq, offset });
        }
        let commit_ts = CommitTs::new(part.commit_ts);
        if commit_ts <= watermark || commit_ts <= self.watermark {
            return Err(ChainError::OutOfOrder {
                seq: part.seq,
                commit_ts,
                above: watermark.max(self.watermark),
                offset,
            });
        }
        Ok(())
    }
}
