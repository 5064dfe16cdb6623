//! Our own certificate, read again at every handshake.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::warn;

use super::{TlsError, provider};

/// A certificate and key on disk. If they cannot be read at a handshake (say, one is replaced and the other not yet), the
/// last pair that could is used.
#[derive(Debug)]
pub(super) struct Identity {
    cert: PathBuf,
    key: PathBuf,
    last_good: Mutex<Arc<CertifiedKey>>,
}

impl Identity {
    /// Reads both; an error now is the configuration's.
    pub(super) fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let pair = Arc::new(read(cert, key)?);
        Ok(Self { cert: cert.to_path_buf(), key: key.to_path_buf(), last_good: Mutex::new(pair) })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut last_good = self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.cert, &self.key) {
            Ok(pair) => *last_good = Arc::new(pair),
            Err(error) => warn!(%error, "kept the certificate of the last handshake"),
        }
        Arc::clone(&last_good)
    }
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let bad_cert = |source| TlsError::Read { what: "ssl-cert", path: cert.to_path_buf(), source };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(cert).map_err(bad_cert)?.collect::<Result<_, _>>().map_err(bad_cert)?;
    if chain.is_empty() {
        return Err(TlsError::Empty { what: "ssl-cert", path: cert.to_path_buf() });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Read {
        what: "ssl-key",
        path: key.to_path_buf(),
        source,
    })?;
    CertifiedKey::from_der(chain, private, &provider())
        .map_err(|source| TlsError::Refused { path: key.to_path_buf(), source })
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
