//! How long calls took: counts in buckets that grow by an eighth of a power of two, so within 9 %. Pure.

use std::time::Duration;

use serde::{Serialize, Serializer};

const PER_DOUBLING: f64 = 8.0;
const BUCKETS: usize = 280;

/// Latencies from a microsecond to hours.
#[derive(Clone, Debug)]
pub struct Latencies {
    buckets: Vec<u64>,
    max: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], max: Duration::ZERO }
    }
}

impl Latencies {
    /// Counts one call.
    pub fn add(&mut self, latency: Duration) {
        let micros = latency.as_secs_f64() * 1e6;
        let bucket = (micros.max(1.0).log2() * PER_DOUBLING) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.max = self.max.max(latency);
    }

    /// Calls counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The latency that this share (0 to 1) of the calls did not exceed; zero without calls.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                let upper = 2f64.powf((bucket + 1) as f64 / PER_DOUBLING) / 1e6;
                return Duration::from_secs_f64(upper).min(self.max);
            }
        }
        Duration::ZERO
    }

    /// The longest call.
    pub fn max(&self) -> Duration {
        self.max
    }
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Milliseconds {
            count: u64,
            p50_ms: f64,
            p99_ms: f64,
            max_ms: f64,
        }
        let ms = |latency: Duration| (latency.as_secs_f64() * 1e6).round() / 1e3;
        Milliseconds {
            count: self.count(),
            p50_ms: ms(self.quantile(0.5)),
            p99_ms: ms(self.quantile(0.99)),
            max_ms: ms(self.max),
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), Duration::ZERO);
        for ms in 1..=1000 {
            latencies.add(Duration::from_millis(ms));
        }
        for (share, ms) in [(0.5, 500.0), (0.99, 990.0), (0.001, 1.0)] {
            let quantile = latencies.quantile(share).as_secs_f64() * 1000.0;
            assert!((ms..ms * 1.1).contains(&quantile), "{share}: {quantile}");
        }
        assert_eq!((latencies.quantile(1.0), latencies.count()), (Duration::from_secs(1), 1000));
    }
}
