//! How long to wait before the next epoch. Pure.

use std::time::Duration;

/// The first wait; it doubles up to the last.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// Grows from failure to failure; an epoch that went well is no part of that row.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after an epoch that led for `led` (zero if it never came to that) and failed.
    pub fn after(&mut self, led: Duration) -> Duration {
        if led >= LONGEST {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_while_nothing_works_and_begins_anew_after_a_long_run() {
        let mut backoff = Backoff::default();
        let mut after = |led_seconds: u64| backoff.after(Duration::from_secs(led_seconds)).as_millis();
        assert_eq!([after(0), after(0), after(9), after(0)], [200, 400, 800, 1600]);
        assert_eq!([after(0), after(0), after(0), after(0)], [3200, 6400, 10_000, 10_000]);
        // A blip after an hour's work.
        assert_eq!([after(3600), after(0)], [200, 400]);
    }
}
