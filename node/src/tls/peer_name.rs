//! Who may connect: the common names of a verified chain against `cert-allowed-cn`.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

use super::provider;

/// Verifies a client's chain as rustls does, then wants one of the allowed names in it. Only certificates that take part in
/// the verified path count: a peer may send any others along.
#[derive(Debug)]
pub(super) struct AllowedNames {
    chain: Arc<dyn ClientCertVerifier>,
    roots: RootCertStore,
    allowed: Vec<String>,
}

impl AllowedNames {
    pub(super) fn new(
        chain: Arc<dyn ClientCertVerifier>,
        roots: RootCertStore,
        allowed: Vec<String>,
    ) -> Self {
        Self { chain, roots, allowed }
    }

    /// Common names on the verified path, from the leaf to the authority.
    fn names_on_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<String>, rustls::Error> {
        let bad = |error: webpki::Error| rustls::Error::General(format!("client certificate: {error}"));
        let leaf_cert = EndEntityCert::try_from(leaf).map_err(bad)?;
        let provider = provider();
        let path = leaf_cert
            .verify_for_usage(
                provider.signature_verification_algorithms.all,
                &self.roots.roots,
                intermediates,
                now,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map_err(bad)?;
        let mut names = common_names(leaf);
        for certificate in path.intermediate_certificates() {
            names.extend(common_names(&certificate.der()));
        }
        names.extend(names_of_anchor(path.anchor().subject.as_ref()));
        Ok(names)
    }
}

impl ClientCertVerifier for AllowedNames {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let names = self.names_on_path(leaf, intermediates, now)?;
        if names.iter().any(|name| self.allowed.contains(name)) {
            return Ok(verified);
        }
        tracing::warn!(?names, allowed = ?self.allowed, "refused a client whose common name is not allowed");
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The subject's common names; none if it has none or does not parse.
pub(crate) fn common_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    X509Certificate::from_der(certificate).map(|(_, parsed)| names(parsed.subject())).unwrap_or_default()
}

/// A trust anchor keeps its subject without the outer sequence header.
fn names_of_anchor(subject: &[u8]) -> Vec<String> {
    let mut der = vec![0x30];
    match u8::try_from(subject.len()) {
        Ok(short) if short < 0x80 => der.push(short),
        Ok(one) => der.extend([0x81, one]),
        Err(_) => match u16::try_from(subject.len()) {
            Ok(two) => {
                der.push(0x82);
                der.extend(two.to_be_bytes());
            }
            // No authority has a name of 64 KiB.
            Err(_) => return Vec::new(),
        },
    }
    der.extend_from_slice(subject);
    X509Name::from_der(&der).map(|(_, name)| names(&name)).unwrap_or_default()
}

fn names(subject: &X509Name<'_>) -> Vec<String> {
    subject.iter_common_name().filter_map(|name| name.as_str().ok()).map(ToOwned::to_owned).collect()
}
