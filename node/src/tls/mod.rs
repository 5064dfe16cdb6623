//! TLS as the original configures it, on every link.
//!
//! No `ssl-ca` means plaintext, even if a certificate and key are given. A server asks for client certificates only if
//! `cert-allowed-cn` is set, and then takes those whose verified chain holds a certificate with one of these common names,
//! the authority's included. A client verifies the server by its host name. Certificate and key are read again at every
//! handshake, so that they can be replaced in place; the authority is read once.

mod identity;
mod peer_name;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, pem};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tracing::warn;

pub(crate) use peer_name::common_names;

use crate::config::{Invalid, Validate};

/// The `[security]` section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Security {
    /// PEM file of the authorities that sign our peers' certificates. Absent or empty: plaintext.
    pub ssl_ca: Option<PathBuf>,
    /// PEM file of our own certificate chain.
    pub ssl_cert: Option<PathBuf>,
    /// PEM file of its key.
    pub ssl_key: Option<PathBuf>,
    /// Common names of the peers that may connect. Empty: no client certificate is asked for.
    pub cert_allowed_cn: Vec<String>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("cannot read {what} {path}: {source}")]
    Read {
        /// The configuration key.
        what: &'static str,
        /// As configured.
        path: PathBuf,
        /// What the parser or the system said.
        source: pem::Error,
    },
    /// A PEM file holds nothing of the wanted kind.
    #[error("{what} {path} holds no certificate")]
    Empty {
        /// The configuration key.
        what: &'static str,
        /// As configured.
        path: PathBuf,
    },
    /// A server needs a certificate.
    #[error("ssl-ca is set, so this listener speaks TLS and needs ssl-cert and ssl-key")]
    NoCertificate,
    /// rustls refuses what the files hold.
    #[error("cannot use {path}: {source}")]
    Refused {
        /// The file that holds it.
        path: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The HTTP client cannot be built.
    #[error("cannot set up an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

/// The process's crypto provider: ring, made once and installed as rustls's default, so that libraries which ask for the
/// default get the same.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        // Somebody else may have installed one before: then that one is the default, and ours is still used here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Arc::new(rustls::crypto::ring::default_provider())
    }))
}

impl Validate for Security {
    fn validate(&self) -> Result<(), Invalid> {
        if set(&self.ssl_cert).is_some() != set(&self.ssl_key).is_some() {
            let (missing, given) =
                if set(&self.ssl_cert).is_some() { ("ssl-key", "ssl-cert") } else { ("ssl-cert", "ssl-key") };
            return Err(Invalid::new(
                format!("security.{missing}"),
                format!("is missing, but {given} is set"),
            ));
        }
        if !self.cert_allowed_cn.is_empty() && !self.enabled() {
            return Err(Invalid::new(
                "security.cert-allowed-cn",
                "names cannot be checked without TLS: set ssl-ca, ssl-cert and ssl-key",
            ));
        }
        Ok(())
    }
}

/// A path that is set; the original writes "" for absent.
fn set(path: &Option<PathBuf>) -> Option<&Path> {
    path.as_deref().filter(|path| !path.as_os_str().is_empty())
}

impl Security {
    /// True if links are encrypted.
    pub fn enabled(&self) -> bool {
        set(&self.ssl_ca).is_some()
    }

    /// For listeners; `None` means plaintext. `alpn` in order of preference; clients without ALPN are taken too.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        let Some(roots) = self.roots()? else {
            return Ok(None);
        };
        let Some(identity) = self.identity()? else {
            return Err(TlsError::NoCertificate);
        };
        let ca = self.ssl_ca.clone().unwrap_or_default();
        let refused = |source| TlsError::Refused { path: ca.clone(), source };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let builder = if self.cert_allowed_cn.is_empty() {
            builder.with_no_client_auth()
        } else {
            let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider())
                .build()
                .map_err(|error| refused(rustls::Error::General(error.to_string())))?;
            builder.with_client_cert_verifier(Arc::new(peer_name::AllowedNames::new(
                chain,
                roots,
                self.cert_allowed_cn.clone(),
            )))
        };
        let mut config = builder.with_cert_resolver(Arc::new(identity));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // Connections live long. A resumed session would bring back a certificate that was replaced since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Some(Arc::new(config)))
    }

    /// For outgoing connections; `None` means plaintext.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Result<Option<Arc<ClientConfig>>, TlsError> {
        let Some(roots) = self.roots()? else {
            return Ok(None);
        };
        let ca = self.ssl_ca.clone().unwrap_or_default();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Refused { path: ca, source })?
            .with_root_certificates(roots);
        let mut config = match self.identity()? {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_cert_resolver(Arc::new(identity)),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Ok(Some(Arc::new(config)))
    }

    /// A client for HTTP/1.1 over the same TLS, giving up on a request after `timeout`. Proxies of the environment are not
    /// used: it talks to the cluster's own nodes.
    pub fn http_client(&self, timeout: Duration) -> Result<reqwest::Client, TlsError> {
        provider();
        let builder = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        let builder = match self.client_config(&[])? {
            // An empty set of roots: plaintext URLs only, and no search for the system's roots.
            None => builder.tls_backend_preconfigured(
                ClientConfig::builder_with_provider(provider())
                    .with_safe_default_protocol_versions()
                    .map_err(|source| TlsError::Refused { path: PathBuf::new(), source })?
                    .with_root_certificates(RootCertStore::empty())
                    .with_no_client_auth(),
            ),
            Some(config) => builder.tls_backend_preconfigured((*config).clone()),
        };
        Ok(builder.build()?)
    }

    fn roots(&self) -> Result<Option<RootCertStore>, TlsError> {
        let Some(path) = set(&self.ssl_ca) else {
            if set(&self.ssl_cert).is_some() {
                warn!("ssl-cert is set without ssl-ca, so links are plaintext");
            }
            return Ok(None);
        };
        let read = |source| TlsError::Read { what: "ssl-ca", path: path.to_path_buf(), source };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(read)? {
            roots
                .add(certificate.map_err(read)?)
                .map_err(|source| TlsError::Refused { path: path.to_path_buf(), source })?;
        }
        if roots.is_empty() {
            return Err(TlsError::Empty { what: "ssl-ca", path: path.to_path_buf() });
        }
        Ok(Some(roots))
    }

    fn identity(&self) -> Result<Option<identity::Identity>, TlsError> {
        match (set(&self.ssl_cert), set(&self.ssl_key)) {
            (Some(cert), Some(key)) => identity::Identity::load(cert, key).map(Some),
            (None, None) => Ok(None),
            _ => Err(TlsError::NoCertificate),
        }
    }
}
