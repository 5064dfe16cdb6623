//! A temporary folder per test or demo, and where prepared software is cached.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};

/// A temporary folder and what is started in it. Both end with this value, unless it was let go.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    leash: Option<Leash>,
    /// `SLUICE_KEEP_TMP` is set: the folder stays for a look at the logs, whatever happens.
    folder_stays: bool,
}

/// What ties processes that can outlive us to us: an error or a signal ends them all the same, until [`Scratch::let_go`].
#[derive(Clone, Debug, Default)]
pub struct Leash(Arc<AtomicBool>);

impl Leash {
    /// Whether they may stay.
    pub fn is_off(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Scratch {
    /// A new folder `/tmp/sluice-<name>-…`. `SLUICE_KEEP_TMP` set: it stays for a look at the logs.
    pub fn new(name: &str) -> Result<Self> {
        Self::create(name, None)
    }

    /// One whose folder and processes can outlive this process: they do once they are let go.
    pub fn lasting(name: &str) -> Result<Self> {
        Self::create(name, Some(Leash::default()))
    }

    fn create(name: &str, leash: Option<Leash>) -> Result<Self> {
        let prefix = format!("sluice-{name}-");
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().context("create a temporary folder")?;
        let folder_stays = std::env::var_os("SLUICE_KEEP_TMP").is_some();
        Ok(Self { path: dir.keep(), leash, folder_stays })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of a lasting one, what its processes hang on.
    pub fn leash(&self) -> Option<&Leash> {
        self.leash.as_ref()
    }

    /// Folder and processes of a lasting one stay from now on.
    pub fn let_go(&self) {
        if let Some(leash) = &self.leash {
            leash.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.folder_stays && !self.leash.as_ref().is_some_and(Leash::is_off) {
            // Whoever still writes into it was killed before; what cannot be removed is only a temporary folder.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// `$SLUICE_CACHE`, else `~/.cache/sluice`: what `scripts/setup.sh` prepared.
pub fn cache() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_CACHE") {
        return Ok(path.into());
    }
    let home = std::env::var_os("HOME").context("neither SLUICE_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/sluice"))
}

/// A folder inside [`cache`] that `scripts/setup.sh` finished.
pub fn prepared(relative: &str) -> Result<PathBuf> {
    let path = cache()?.join(relative);
    if !path.join("ready").try_exists()? {
        bail!("{} is not prepared: run `make setup`", path.display());
    }
    Ok(path)
}

/// Copies a folder's files and folders, recursively.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)
                .with_context(|| format!("copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}
