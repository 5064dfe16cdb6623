//! A temporary folder per test or demo, and where prepared software is cached.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A temporary folder and what is started in it. Both end with this value, unless it is a lasting one.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    lasting: bool,
    /// Removes the folder when dropped.
    _guard: Option<tempfile::TempDir>,
}

impl Scratch {
    /// A new folder `/tmp/sluice-<name>-…`. `SLUICE_KEEP_TMP` set: it stays for a look at the logs.
    pub fn new(name: &str) -> Result<Self> {
        let dir = Self::create(name)?;
        if std::env::var_os("SLUICE_KEEP_TMP").is_some() {
            return Ok(Self { path: dir.keep(), lasting: false, _guard: None });
        }
        Ok(Self { path: dir.path().to_owned(), lasting: false, _guard: Some(dir) })
    }

    /// A folder that stays, and whose processes outlive this one.
    pub fn lasting(name: &str) -> Result<Self> {
        Ok(Self { path: Self::create(name)?.keep(), lasting: true, _guard: None })
    }

    fn create(name: &str) -> Result<tempfile::TempDir> {
        let prefix = format!("sluice-{name}-");
        tempfile::Builder::new().prefix(&prefix).tempdir().context("create a temporary folder")
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether folder and processes stay.
    pub fn is_lasting(&self) -> bool {
        self.lasting
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
