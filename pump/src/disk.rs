//! Free space on the data volume, polled.
//!
//! Below the soft limit prewrites are refused; a tenth of it stays reserved for commits and rollbacks, which cost little
//! and complete what is stored already.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use nix::sys::statvfs::statvfs;
use node::admin::Health;
use node::shutdown::Shutdown;
use tracing::{info, warn};

use crate::metrics;

const POLL: Duration = Duration::from_secs(3);

/// What is asked for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A prewrite: refused below the soft limit.
    Prewrite,
    /// Anything else: refused only when the reserve is gone.
    Settlement,
}

/// The data volume.
pub struct Disk {
    path: PathBuf,
    capacity: u64,
    soft: u64,
    available: AtomicU64,
}

impl Disk {
    /// Looks at the volume of `path`. Without `limit`: 10 GiB, or a tenth of a smaller volume.
    ///
    /// # Errors
    /// The volume cannot be examined, or is smaller than the limit.
    pub fn examine(path: &Path, limit: Option<ByteSize>) -> std::io::Result<Self> {
        let (capacity, available) = measure(path)?;
        let soft = limit.map_or_else(|| default_limit(capacity), |limit| limit.as_u64());
        if soft >= capacity {
            let reason = format!(
                "storage.stop-write-at-available-space is {}, but the volume of {} has {} in all: every prewrite would be \
                 refused; lower it, or leave it out for a tenth of the volume",
                ByteSize(soft),
                path.display(),
                ByteSize(capacity)
            );
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, reason));
        }
        Ok(Self { path: path.to_owned(), capacity, soft, available: AtomicU64::new(available) })
    }

    /// Free bytes and the limit they fell below, if they did.
    pub fn shortage(&self, need: Need) -> Option<(u64, u64)> {
        let available = self.available.load(Ordering::Relaxed);
        let limit = match need {
            Need::Prewrite => self.soft,
            Need::Settlement => self.soft / 10,
        };
        // A limit of zero switches the check off.
        (limit > 0 && available <= limit).then_some((available, limit))
    }

    /// Free bytes when last polled.
    pub fn available(&self) -> u64 {
        self.available.load(Ordering::Relaxed)
    }

    /// Bytes of the volume.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Polls until the shutdown.
    ///
    /// # Errors
    /// None; a volume that cannot be examined counts as full.
    pub async fn watch(self: std::sync::Arc<Self>, health: Health, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut short = false;
        loop {
            let path = self.path.clone();
            let measured = tokio::task::spawn_blocking(move || measure(&path)).await?;
            let available = match measured {
                Ok((_, available)) => available,
                Err(error) => {
                    warn!(%error, path = %self.path.display(), "cannot tell the free space, taken as none");
                    0
                }
            };
            self.available.store(available, Ordering::Relaxed);
            metrics::volume(self.capacity, available);
            let now_short = self.shortage(Need::Prewrite).is_some();
            if now_short != short {
                short = now_short;
                if short {
                    warn!(available, limit = self.soft, "no available space, prewrites are refused");
                } else {
                    info!(available, limit = self.soft, "space is available again");
                }
            }
            let state =
                if short { Err(format!("{available} bytes free, limit {}", self.soft)) } else { Ok(()) };
            health.set("disk", state);
            if shutdown.unless(tokio::time::sleep(POLL)).await.is_none() {
                return Ok(());
            }
        }
    }
}

fn default_limit(capacity: u64) -> u64 {
    (10 << 30).min(capacity / 10)
}

fn measure(path: &Path) -> std::io::Result<(u64, u64)> {
    let stat = statvfs(path)?;
    Ok((stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_may_use_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::examine(dir.path(), Some(ByteSize(1_000))).unwrap();
        assert_eq!(disk.shortage(Need::Prewrite), None);
        disk.available.store(1_000, Ordering::Relaxed);
        assert_eq!(disk.shortage(Need::Prewrite), Some((1_000, 1_000)));
        assert_eq!(disk.shortage(Need::Settlement), None);
        disk.available.store(100, Ordering::Relaxed);
        assert_eq!(disk.shortage(Need::Settlement), Some((100, 100)));
        assert_eq!(Disk::examine(dir.path(), Some(ByteSize(0))).unwrap().shortage(Need::Prewrite), None);
    }

    #[test]
    fn a_limit_that_the_volume_cannot_keep_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Disk::examine(dir.path(), Some(ByteSize(u64::MAX))).err().unwrap().to_string();
        assert!(error.contains("stop-write-at-available-space"), "{error}");
    }

    #[test]
    fn the_default_limit_fits_small_volumes() {
        assert_eq!(default_limit(1 << 40), 10 << 30);
        assert_eq!(default_limit(20 << 30), 2 << 30);
    }
}
