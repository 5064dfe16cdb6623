//! Who may hold how much of a fixed amount, so that those who were promised the rest of what they need always get it.
//!
//! A message is held as it arrives, not when it is announced: an announcement costs its sender nothing. Half-received
//! messages could then wait for each other for ever. So a step is granted only if afterwards there still is an order in
//! which all can be completed, each with what is free and what those before it give back (the banker's algorithm). What has
//! been received whole needs nothing more and comes back by itself, as soon as it is durable.
//!
//! Pure: knows no clock, lock or task.

use std::collections::{BTreeMap, VecDeque};

/// A message that is being received, or has been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

#[derive(Debug, Clone, Copy)]
struct Claim {
    held: u64,
    /// What it may still ask for.
    rest: u64,
}

/// The amount, and who holds what of it.
#[derive(Debug)]
pub(super) struct Bank {
    total: u64,
    free: u64,
    next: u64,
    claims: BTreeMap<Ticket, Claim>,
    /// Steps asked for and not granted yet, in order.
    waiting: VecDeque<(Ticket, u64)>,
}

impl Bank {
    pub(super) fn new(total: u64) -> Self {
        Self { total, free: total, next: 0, claims: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// What is held by all together.
    pub(super) fn held(&self) -> u64 {
        self.total - self.free
    }

    /// Announces a message that needs `need` in all; more than there is counts as all there is. It holds nothing yet.
    pub(super) fn announce(&mut self, need: u64) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.claims.insert(ticket, Claim { held: 0, rest: need.min(self.total) });
        ticket
    }

    /// Asks for a step, at most what is left of the need. Granted by [`Self::granted`], now or later.
    pub(super) fn ask(&mut self, ticket: Ticket, step: u64) {
        let rest = self.claims.get(&ticket).map_or(0, |claim| claim.rest);
        self.waiting.push_back((ticket, step.min(rest)));
    }

    /// It has arrived whole and asks for nothing more; what it holds comes back with [`Self::leave`].
    pub(super) fn complete(&mut self, ticket: Ticket) {
        if let Some(claim) = self.claims.get_mut(&ticket) {
            claim.rest = 0;
        }
    }

    /// It holds nothing any more, and waits for nothing.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        if let Some(claim) = self.claims.remove(&ticket) {
            self.free += claim.held;
        }
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
    }

    /// Grants what can be granted now, in the order of asking.
    pub(super) fn granted(&mut self) -> Vec<Ticket> {
        let mut granted = Vec::new();
        let mut kept = VecDeque::new();
        while let Some((ticket, step)) = self.waiting.pop_front() {
            if !self.is_safe(ticket, step) {
                // It has to wait for others, who may be behind it.
                kept.push_back((ticket, step));
                continue;
            }
            if self.free < step {
                // It will be its turn once something is durable; nobody overtakes it until then.
                self.waiting.push_front((ticket, step));
                break;
            }
            self.free -= step;
            if let Some(claim) = self.claims.get_mut(&ticket) {
                claim.held += step;
                claim.rest -= step;
            }
            granted.push(ticket);
        }
        kept.append(&mut self.waiting);
        self.waiting = kept;
        granted
    }

    /// Whether all could still be completed, one after the other, if this step were granted.
    fn is_safe(&self, asking: Ticket, step: u64) -> bool {
        let mut unfinished = Vec::new();
        let mut work = self.total;
        for (&ticket, &Claim { mut held, mut rest }) in &self.claims {
            if rest == 0 {
                continue;
            }
            if ticket == asking {
                (held, rest) = (held + step, rest - step);
            }
            let Some(left) = work.checked_sub(held) else { return false };
            work = left;
            unfinished.push((rest, held));
        }
        unfinished.sort_unstable();
        unfinished.into_iter().all(|(rest, held)| {
            let possible = rest <= work;
            work += held;
            possible
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether a step is granted at once.
    fn asks(bank: &mut Bank, ticket: Ticket, step: u64) -> bool {
        bank.ask(ticket, step);
        bank.granted().contains(&ticket)
    }

    #[test]
    fn an_announcement_holds_nothing() {
        let mut bank = Bank::new(100);
        let silent = bank.announce(100);
        assert!(asks(&mut bank, silent, 1));
        let other = bank.announce(99);
        for _ in 0..99 {
            assert!(asks(&mut bank, other, 1));
        }
        bank.complete(other);
        assert_eq!(bank.held(), 100);
        // What the first may still send fits once the other is durable.
        assert!(!asks(&mut bank, silent, 10));
        bank.leave(other);
        assert_eq!(bank.granted(), [silent]);
    }

    #[test]
    fn two_halves_do_not_wait_for_each_other() {
        let mut bank = Bank::new(100);
        let (first, second) = (bank.announce(80), bank.announce(80));
        assert!(asks(&mut bank, first, 40));
        // Thirty would leave neither with what it needs.
        assert!(!asks(&mut bank, second, 61));
        assert!(asks(&mut bank, first, 40));
        bank.complete(first);
        bank.leave(first);
        assert_eq!(bank.granted(), [second]);
    }

    #[test]
    fn a_small_one_does_not_overtake_what_waits_for_room_only() {
        let mut bank = Bank::new(100);
        let received = bank.announce(90);
        assert!(asks(&mut bank, received, 90));
        bank.complete(received);
        let (large, small) = (bank.announce(50), bank.announce(5));
        assert!(!asks(&mut bank, large, 50));
        assert!(!asks(&mut bank, small, 5));
        bank.leave(received);
        assert_eq!(bank.granted(), [large, small]);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Announce(u64),
        Ask(usize, u64),
        /// The writer is done with one that was received.
        Durable(usize),
        /// Its caller gave up, or was given up.
        Abandon(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1..150u64).prop_map(Op::Announce),
            (any::<usize>(), 1..40u64).prop_map(|(which, step)| Op::Ask(which, step)),
            any::<usize>().prop_map(Op::Durable),
            any::<usize>().prop_map(Op::Abandon),
        ]
    }

    /// One message as its caller sees it.
    #[derive(Debug)]
    struct Message {
        ticket: Ticket,
        need: u64,
        held: u64,
        asked: Option<u64>,
    }

    struct World {
        bank: Bank,
        receiving: Vec<Message>,
        received: Vec<Message>,
    }

    impl World {
        fn heed(&mut self, granted: &[Ticket]) {
            for ticket in granted {
                let at = self.receiving.iter().position(|message| message.ticket == *ticket).unwrap();
                let message = &mut self.receiving[at];
                message.held += message.asked.take().expect("it asked");
                if message.held == message.need {
                    let message = self.receiving.remove(at);
                    self.bank.complete(message.ticket);
                    self.received.push(message);
                }
            }
            let held: u64 = self.receiving.iter().chain(&self.received).map(|message| message.held).sum();
            assert_eq!(held, self.bank.held());
            assert!(held <= 100);
        }

        fn ask(&mut self, at: usize, step: u64) {
            let message = &mut self.receiving[at];
            let step = step.min(message.need - message.held);
            message.asked = Some(step);
            let ticket = message.ticket;
            self.bank.ask(ticket, step);
            let granted = self.bank.granted();
            self.heed(&granted);
        }

        fn leave(&mut self, ticket: Ticket) {
            self.bank.leave(ticket);
            let granted = self.bank.granted();
            self.heed(&granted);
        }
    }

    proptest! {
        /// Whatever came before: once nobody gives up any more and peers send on, every message is received.
        #[test]
        fn all_are_received_in_the_end(ops in prop::collection::vec(op(), 0..80)) {
            let mut world = World { bank: Bank::new(100), receiving: Vec::new(), received: Vec::new() };
            for op in ops {
                match op {
                    Op::Announce(need) => {
                        let ticket = world.bank.announce(need);
                        world.receiving.push(Message { ticket, need: need.min(100), held: 0, asked: None });
                    }
                    Op::Ask(which, step) => {
                        let idle: Vec<_> =
                            (0..world.receiving.len()).filter(|&at| world.receiving[at].asked.is_none()).collect();
                        if let Some(&at) = idle.get(which % idle.len().max(1)) {
                            world.ask(at, step);
                        }
                    }
                    Op::Durable(which) if !world.received.is_empty() => {
                        let message = world.received.remove(which % world.received.len());
                        world.leave(message.ticket);
                    }
                    Op::Abandon(which) if !world.receiving.is_empty() => {
                        let message = world.receiving.remove(which % world.receiving.len());
                        world.leave(message.ticket);
                    }
                    Op::Durable(_) | Op::Abandon(_) => {}
                }
            }
            while !(world.receiving.is_empty() && world.received.is_empty()) {
                let before = (world.receiving.len(), world.received.len(), world.bank.held());
                if let Some(at) = world.receiving.iter().position(|message| message.asked.is_none()) {
                    world.ask(at, 7);
                    continue;
                }
                // All that are not whole wait: something received must be there to make room.
                prop_assert!(!world.received.is_empty(), "a deadlock: {:?}", world.receiving);
                let message = world.received.remove(0);
                world.leave(message.ticket);
                prop_assert_ne!(before, (world.receiving.len(), world.received.len(), world.bank.held()));
            }
            prop_assert_eq!(world.bank.held(), 0);
        }
    }
}
