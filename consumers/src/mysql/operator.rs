//! How an operator reaches this process: the address and the token that a stopped schema change names.
//!
//! A decision must be possible without a restart, and nothing may change state without a token. So where the configuration
//! names none, each start writes one of its own into the data directory, readable by its owner only: whoever may read that
//! directory may decide.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use node::admin::AdminConfig;
use node::config::Secret;

use super::config::Config;

/// Name of the token's file in the data directory.
const FILE: &str = "admin.token";

fn file(data_dir: &Path) -> PathBuf {
    // Absolute, so that the command can be run from anywhere.
    std::fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned()).join(FILE)
}

fn own(data_dir: &Path) -> Secret {
    Secret::from(format!("file:{}", file(data_dir).display()))
}

/// True if changes are let in by the client's certificate.
fn by_certificate(admin: &AdminConfig) -> bool {
    admin.security.enabled() && !admin.security.cert_allowed_cn.is_empty()
}

/// Writes a token of our own, if none is configured and no certificate stands in for one.
pub(super) fn ensure_token(config: &mut Config) -> std::io::Result<()> {
    if config.admin.token.is_some() || by_certificate(&config.admin) {
        return Ok(());
    }
    let token = uuid::Uuid::new_v4().simple().to_string();
    // A temporary file is its owner's alone.
    let mut temporary = tempfile::NamedTempFile::new_in(&config.data_dir)?;
    writeln!(temporary, "{token}")?;
    temporary.as_file().sync_all()?;
    temporary.persist(file(&config.data_dir)).map_err(|error| error.error)?;
    config.admin.token = Some(own(&config.data_dir));
    Ok(())
}

/// The address that was bound, where the configuration left the port open.
pub(super) fn settle_address(config: &mut Config, bound: SocketAddr) {
    if config.admin.addr.ends_with(":0") {
        config.admin.addr = bound.to_string();
    }
}

/// Flags with which `binlogctl ddl` reaches this process.
pub(super) fn flags(config: &Config) -> String {
    let addr = &config.admin.addr;
    let own = own(&config.data_dir);
    if config.admin.token.as_ref() == Some(&own) {
        format!("--addr {addr} --token 'file:{}'", file(&config.data_dir).display())
    } else if config.admin.token.is_some() {
        format!("--addr {addr} --token 'env:…' (admin.token)")
    } else {
        format!("--addr {addr} --ssl-ca … --ssl-cert … --ssl-key …")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_of_our_own_is_new_private_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = || Config { data_dir: dir.path().to_owned(), ..Config::default() };
        let mut config = fresh();
        ensure_token(&mut config).unwrap();
        let first = config.admin.token.as_ref().unwrap().reveal().unwrap();
        assert_eq!(first.len(), 32);
        let path = file(dir.path());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(flags(&config).contains(&format!("--token 'file:{}'", path.display())), "{}", flags(&config));
        let mut again = fresh();
        ensure_token(&mut again).unwrap();
        assert_ne!(again.admin.token.as_ref().unwrap().reveal().unwrap(), first);
        // A configured one stays, and is not shown.
        let mut configured = fresh();
        configured.admin.token = Some(Secret::from("hush".to_owned()));
        ensure_token(&mut configured).unwrap();
        assert_eq!(configured.admin.token, Some(Secret::from("hush".to_owned())));
        assert!(!flags(&configured).contains("hush"));
    }
}
