//! Latencies of one run: kept all, so that the percentiles are exact.

use std::time::Duration;

use serde::Serialize;

/// Latencies in microseconds, in the order they were measured. A run of a minute at 50,000/s is 12 MB.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u32>);

/// What is reported of them; milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of them were no slower.
    pub p50: f64,
    /// 99 of 100 were no slower.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds those of another measurer.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The percentiles; zero without any latency.
    pub fn percentiles(mut self) -> Percentiles {
        self.0.sort_unstable();
        // Nearest rank: the smallest latency that at least this share is no slower than.
        let rank = |share: f64| {
            let rank = (self.0.len() as f64 * share).ceil() as usize;
            self.0.get(rank.saturating_sub(1)).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
        };
        Percentiles { p50: rank(0.5), p99: rank(0.99), max: rank(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let mut latencies = Latencies::default();
        for ms in (1..=200).rev() {
            latencies.add(Duration::from_millis(ms));
        }
        assert_eq!(latencies.count(), 200);
        assert_eq!(latencies.percentiles(), Percentiles { p50: 100.0, p99: 198.0, max: 200.0 });
        assert_eq!(Latencies::default().percentiles(), Percentiles::default());
    }
}
