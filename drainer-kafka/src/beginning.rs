//! Where a feed begins that has no log yet. Pure.
//!
//! Only an empty commit stream asks this; a feed that has begun goes on where its log ends, whatever is configured.

use tidb::ts::{CommitTs, Tso};

/// The place after which the first transaction of a feed comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// `initial-commit-ts`.
    Given(CommitTs),
    /// The savepoint in the data directory: what `generate_meta` wrote.
    Saved(CommitTs),
    /// PD's present.
    Now,
}

impl Beginning {
    /// `initial-commit-ts` unless it is negative, else what `saved` reads, else now. `saved` is read only if it matters.
    ///
    /// # Errors
    /// Those of `saved`: a savepoint that cannot be read is not the same as none.
    pub fn choose<E>(
        initial_commit_ts: i64,
        saved: impl FnOnce() -> Result<Option<CommitTs>, E>,
    ) -> Result<Self, E> {
        if initial_commit_ts >= 0 {
            return Ok(Self::Given(CommitTs(Tso::from_i64(initial_commit_ts))));
        }
        Ok(saved()?.map_or(Self::Now, Self::Saved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = Result<Option<CommitTs>, &'static str>;

    #[test]
    fn what_is_given_comes_before_what_is_saved_and_that_before_now() {
        let saved = || -> Read { Ok(Some(CommitTs::new(400))) };
        let nothing = || -> Read { Ok(None) };
        let unreadable = || -> Read { Err("unreadable") };
        assert_eq!(Beginning::choose(500, saved), Ok(Beginning::Given(CommitTs::new(500))));
        assert_eq!(Beginning::choose(500, nothing), Ok(Beginning::Given(CommitTs::new(500))));
        assert_eq!(Beginning::choose(500, unreadable), Ok(Beginning::Given(CommitTs::new(500))));
        // From the very beginning.
        assert_eq!(Beginning::choose(0, saved), Ok(Beginning::Given(CommitTs::new(0))));
        assert_eq!(Beginning::choose(-1, saved), Ok(Beginning::Saved(CommitTs::new(400))));
        assert_eq!(Beginning::choose(-1, nothing), Ok(Beginning::Now));
        assert_eq!(Beginning::choose(-1, unreadable), Err("unreadable"));
    }
}
