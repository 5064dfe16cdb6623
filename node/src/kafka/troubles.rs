//! What a Kafka client complains of, without the flood: while the brokers are away, it says the same several times a second,
//! from every connection.
//!
//! A complaint of a new cause is a line at once. After that a cause gets a line every ten seconds, with the newest reason and
//! how many were held back; and when the brokers answer and nothing was complained of for a while, one line says that it is
//! over. What cannot pass by itself is never held back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

/// A cause has one line in this time.
const EVERY: Duration = Duration::from_secs(10);
/// It is over when nothing was complained of for this long. Longer than the ten seconds after which a client tries again to
/// reach a broker that is away: one broker of three that stays away is not over each time another one answers.
const QUIET: Duration = Duration::from_secs(15);

/// Severities that librdkafka has from syslog.
const ERROR: i32 = 3;
const WARNING: i32 = 4;
const NOTICE: i32 = 5;
const INFO: i32 = 6;

/// The complaints of all Kafka clients of a process. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct Troubles(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    /// So that answers, of which there are many, need not look at the ledger.
    any: AtomicBool,
    ledger: Mutex<Ledger>,
}

impl Default for Troubles {
    fn default() -> Self {
        let shared = Shared { began: Instant::now(), any: AtomicBool::new(false), ledger: Mutex::default() };
        Self(Arc::new(shared))
    }
}

impl Troubles {
    /// The client reports an error; `code` is its kind. `fatal`: it will do nothing any more.
    pub fn reported(&self, code: &str, fatal: bool, reason: &str) {
        if fatal {
            error!(code, reason, "the Kafka client failed for good");
        } else if let Some(held_back) = self.heard(code) {
            let held_back = (held_back > 0).then_some(held_back);
            warn!(code, reason, held_back, "Kafka client reports trouble");
        }
    }

    /// The client logs a line, of a severity as syslog numbers them: what is worse than an error comes once and is never held
    /// back.
    pub fn logged(&self, severity: i32, facility: &str, message: &str) {
        let held_back = match severity {
            ERROR | WARNING => {
                let Some(held_back) = self.heard(facility) else { return };
                (held_back > 0).then_some(held_back)
            }
            _ => None,
        };
        match severity {
            ..=ERROR => error!(facility, held_back, "librdkafka: {message}"),
            WARNING => warn!(facility, held_back, "librdkafka: {message}"),
            NOTICE | INFO => info!(facility, "librdkafka: {message}"),
            _ => debug!(facility, "librdkafka: {message}"),
        }
    }

    /// A broker has answered just now: something that is not in a queue since earlier.
    pub fn answered(&self) {
        if !self.0.any.load(Ordering::Relaxed) {
            return;
        }
        let over = {
            let mut ledger = self.ledger();
            let over = ledger.answered(self.0.began.elapsed());
            self.0.any.store(ledger.is_any(), Ordering::Relaxed);
            over
        };
        if let Some(Over { lasted, complaints }) = over {
            info!(seconds = lasted.as_secs(), complaints, "Kafka answers again");
        }
    }

    fn heard(&self, cause: &str) -> Option<u64> {
        let mut ledger = self.ledger();
        self.0.any.store(true, Ordering::Relaxed);
        ledger.heard(cause, self.0.began.elapsed())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which complaint is said. Pure: the time is given. Causes are few, for they are kinds of error.
#[derive(Debug, Default)]
struct Ledger {
    causes: BTreeMap<String, Cause>,
    spell: Option<Spell>,
}

#[derive(Debug)]
struct Cause {
    said: Duration,
    held_back: u64,
}

/// From the first complaint to the last one so far.
#[derive(Debug)]
struct Spell {
    first: Duration,
    last: Duration,
    complaints: u64,
}

/// A spell of trouble that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Over {
    lasted: Duration,
    complaints: u64,
}

impl Ledger {
    /// Say it, and that so many of this cause were held back since it was last said? `None`: hold it back.
    fn heard(&mut self, cause: &str, now: Duration) -> Option<u64> {
        let spell = self.spell.get_or_insert(Spell { first: now, last: now, complaints: 0 });
        spell.last = now;
        spell.complaints += 1;
        let Some(known) = self.causes.get_mut(cause) else {
            self.causes.insert(cause.to_owned(), Cause { said: now, held_back: 0 });
            return Some(0);
        };
        if now.saturating_sub(known.said) < EVERY {
            known.held_back += 1;
            return None;
        }
        known.said = now;
        Some(std::mem::take(&mut known.held_back))
    }

    /// What is over, if anything.
    fn answered(&mut self, now: Duration) -> Option<Over> {
        let spell = self.spell.take_if(|spell| now.saturating_sub(spell.last) >= QUIET)?;
        self.causes.clear();
        Some(Over { lasted: spell.last - spell.first, complaints: spell.complaints })
    }

    fn is_any(&self) -> bool {
        self.spell.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_line_per_cause_and_one_when_it_is_over() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.answered(at(0)), None);
        assert_eq!(ledger.heard("down", at(1)), Some(0));
        assert_eq!(ledger.heard("transport", at(1)), Some(0));
        for second in 2..11 {
            assert_eq!(ledger.heard("down", at(second)), None);
        }
        assert_eq!(ledger.heard("down", at(11)), Some(9));
        assert_eq!(ledger.heard("down", at(12)), None);
        // One broker answers while another one is still away.
        assert_eq!(ledger.answered(at(26)), None);
        assert_eq!(ledger.answered(at(27)), Some(Over { lasted: at(11), complaints: 13 }));
        assert_eq!(ledger.answered(at(99)), None);
        // The next time everything is news again.
        assert_eq!(ledger.heard("down", at(100)), Some(0));
    }

    proptest! {
        /// Against a list of everything that happened: each complaint is said or counted in a later line or in the end; lines
        /// of a cause stand ten seconds apart; the first of a spell is always said.
        #[test]
        fn nothing_is_lost_and_nothing_floods(
            story in proptest::collection::vec((0..4_u8, 0..6_000_u64), 0..300)
        ) {
            let mut ledger = Ledger::default();
            let mut now = Duration::ZERO;
            // Of the spell at hand: complaints, and by cause when it was said and what was held back since.
            let mut heard = 0;
            let mut first = None;
            let mut last = Duration::ZERO;
            let mut model: BTreeMap<u8, (Duration, u64)> = BTreeMap::new();
            for (what, later) in story {
                now += Duration::from_millis(later);
                if what == 3 {
                    let over = ledger.answered(now);
                    let expected = first.filter(|_| now - last >= QUIET);
                    prop_assert_eq!(over, expected.map(|first| Over { lasted: last - first, complaints: heard }));
                    if over.is_some() {
                        (heard, first, model) = (0, None, BTreeMap::new());
                    }
                    prop_assert_eq!(ledger.is_any(), first.is_some());
                    continue;
                }
                first = first.or(Some(now));
                (heard, last) = (heard + 1, now);
                let said = ledger.heard(&what.to_string(), now);
                match (model.get_mut(&what), said) {
                    (None, Some(0)) => {
                        model.insert(what, (now, 0));
                    }
                    (Some((before, held)), Some(counted)) => {
                        prop_assert!(now - *before >= EVERY);
                        prop_assert_eq!(*held, counted);
                        (*before, *held) = (now, 0);
                    }
                    (Some((before, held)), None) => {
                        prop_assert!(now - *before < EVERY);
                        *held += 1;
                    }
                    (None, said) => prop_assert!(false, "the first of its cause: {:?}", said),
                }
            }
        }
    }
}
