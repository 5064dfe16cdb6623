//! Where our own binaries are: beside the one that runs.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The path of a binary of this workspace. `cargo build --workspace --bins` (which `make test` and `make demo` begin with)
/// makes them; Cargo offers no way to depend on another package's binaries.
pub fn path(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // target/debug/sluice-demo, or target/debug/deps/e2e-0123456789abcdef
    let folder = own.parent().context("the running binary has no folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(name);
    if !path.is_file() {
        bail!("{} is not built: run `make build`", path.display());
    }
    Ok(path)
}
