//! What a process used, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// Kernel clock ticks per second in `/proc/<pid>/stat`: 100 on every Linux that runs this.
const TICKS: f64 = 100.0;

/// A process that is watched.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// The most that ever was.
    pub peak: u64,
}

impl Process {
    /// This one.
    pub fn own() -> Self {
        Self(std::process::id())
    }

    /// Time that it had a processor, in its own code and in the kernel on its behalf.
    ///
    /// # Errors
    /// It is gone.
    pub fn cpu(self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.0);
        let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
        parse_cpu(&stat).with_context(|| format!("{path} is not understood"))
    }

    /// Its memory.
    ///
    /// # Errors
    /// It is gone.
    pub fn memory(self) -> anyhow::Result<Memory> {
        let path = format!("/proc/{}/status", self.0);
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = |name| kib(&status, name).with_context(|| format!("{path} has no {name}"));
        Ok(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
    }

    /// Bytes that it caused to be written to disks.
    ///
    /// # Errors
    /// It is gone, or belongs to somebody else.
    pub fn written(self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/io", self.0);
        let io = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        line.and_then(|bytes| bytes.parse().ok()).with_context(|| format!("{path} is not understood"))
    }

    /// Restarts the count of its peak memory.
    ///
    /// # Errors
    /// It is gone, or belongs to somebody else.
    pub fn reset_peak(self) -> anyhow::Result<()> {
        let path = format!("/proc/{}/clear_refs", self.0);
        fs::write(&path, "5").context(path)
    }
}

fn parse_cpu(stat: &str) -> Option<Duration> {
    // The second field is the name, which may have spaces and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_secs_f64(ticks as f64 / TICKS))
}

fn kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let stat = "1234 (a (b) c) S 1 1 1 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 9 0 77 1 2 3";
        assert_eq!(parse_cpu(stat), Some(Duration::from_secs(2)));
        assert_eq!(kib("VmHWM:\t     300 kB\nVmRSS:\t     200 kB\n", "VmRSS:"), Some(200 * 1024));
        assert_eq!(kib("VmRSS: many kB\n", "VmRSS:"), None);
        let own = Process::own();
        assert!(own.memory().unwrap().peak >= own.memory().unwrap().resident / 2);
        own.cpu().unwrap();
    }
}
