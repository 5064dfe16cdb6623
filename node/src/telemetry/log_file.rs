//! A log file that is rotated by size.
//!
//! Past the limit the file is renamed to `<stem>-<UTC time><.ext>` and a new one is begun; old files are kept, as the
//! original does. Writes go to the page cache and are not synced: logs are no data.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// The original's limit.
const LIMIT: u64 = 300 << 20;

/// The file as a place to write lines to. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct LogFile {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl LogFile {
    /// Opens for appending; creates the file and its directory.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, LIMIT)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        let (file, size) = append(path)?;
        Ok(Self { open: Arc::new(Mutex::new(Open { path: path.to_path_buf(), file, size, limit })) })
    }
}

fn append(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

impl Open {
    fn rotate(&mut self) -> io::Result<()> {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let extension = self
            .path
            .extension()
            .map(|extension| format!(".{}", extension.to_string_lossy()))
            .unwrap_or_default();
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3f");
        let mut old = self.path.with_file_name(format!("{stem}-{now}{extension}"));
        let mut copy = 1;
        while old.try_exists()? {
            old = self.path.with_file_name(format!("{stem}-{now}-{copy}{extension}"));
            copy += 1;
        }
        std::fs::rename(&self.path, old)?;
        (self.file, self.size) = append(&self.path)?;
        Ok(())
    }
}

/// Writes one line.
#[derive(Debug)]
pub(super) struct Line(Arc<Mutex<Open>>);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.size > 0 && open.size + line.len() as u64 > open.limit {
            open.rotate()?;
        }
        open.file.write_all(line)?;
        open.size += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Arc::clone(&self.open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_between_lines_and_keeps_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/pump.log");
        let log = LogFile::with_limit(&path, 20).unwrap();
        for i in 0..5 {
            writeln!(log.make_writer(), "line number {i}").unwrap();
        }
        let mut texts: Vec<_> = std::fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        texts.sort();
        let expected: Vec<_> = (0..5).map(|i| format!("line number {i}\n")).collect();
        assert_eq!(texts, expected);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line number 4\n");
    }
}
