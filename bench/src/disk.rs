//! What the disk allows: synced writes per second, by kind and size. Everything else is stated as a share of this.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::latency::{Latencies, Percentiles};

/// Bytes of the file that is written to.
const FILE: u64 = 256 << 20;

/// How space was prepared before it is written and synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Space {
    /// Not at all: every write makes the file longer.
    Appended,
    /// Reserved, never written.
    Reserved,
    /// Written over before.
    Written,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// How space was prepared.
    pub space: Space,
    /// Bytes of each write.
    pub bytes: usize,
    /// Writes with their sync, per second.
    pub per_second: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Milliseconds of a write with its sync.
    pub latency: Percentiles,
}

/// Writes and syncs in `dir` for `time`.
///
/// # Errors
/// The file system refused.
pub fn measure(dir: &Path, space: Space, bytes: usize, time: Duration) -> anyhow::Result<Measured> {
    let path = dir.join("sluice-bench.disk");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    let result = run(&file, space, bytes, time).with_context(|| path.display().to_string());
    std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
    result
}

fn run(file: &File, space: Space, bytes: usize, time: Duration) -> io::Result<Measured> {
    // Not zeros: some disks are quicker with those.
    let block: Vec<u8> = (0..bytes).map(|i| (i * 31 + i / 251) as u8).collect();
    match space {
        Space::Appended => {}
        Space::Reserved => nix::fcntl::posix_fallocate(file, 0, FILE as i64)?,
        Space::Written => {
            let zeros = vec![0; 1 << 20];
            for at in (0..FILE).step_by(zeros.len()) {
                file.write_all_at(&zeros, at)?;
            }
        }
    }
    file.sync_all()?;

    let mut latencies = Latencies::default();
    let mut at = 0;
    let began = Instant::now();
    while began.elapsed() < time {
        let before = Instant::now();
        file.write_all_at(&block, at)?;
        file.sync_data()?;
        latencies.add(before.elapsed());
        at += bytes as u64;
        if at + bytes as u64 > FILE {
            if space != Space::Written {
                break;
            }
            at = 0;
        }
    }
    let per_second = latencies.count() as f64 / began.elapsed().as_secs_f64();
    let latency = latencies.percentiles();
    Ok(Measured { space, bytes, per_second, bytes_per_second: per_second * bytes as f64, latency })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for space in [Space::Appended, Space::Reserved, Space::Written] {
            let measured = measure(dir.path(), space, 700, Duration::from_millis(20)).unwrap();
            assert!(measured.per_second > 0.0 && measured.latency.max > 0.0);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
