//! A certificate authority of the test's own, for the services that are reached by TLS.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::scratch::Scratch;

/// Files in PEM, good for 127.0.0.1, as server and as client.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The authority that signed it.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Key and certificate in one file, as Kafka wants them.
    pub both: PathBuf,
}

impl Identity {
    /// Makes an authority and an identity signed by it; `name` is the identity's and begins the files' names.
    pub fn new(scratch: &Scratch, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("authority of {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;

        let write = |suffix: &str, text: String| -> Result<PathBuf> {
            let file: PathBuf = Path::new(scratch.path()).join(format!("{name}-{suffix}.pem"));
            std::fs::write(&file, text)?;
            Ok(file)
        };
        Ok(Self {
            ca: write("ca", issuer.pem())?,
            cert: write("cert", certificate.pem())?,
            key: write("key", key.serialize_pem())?,
            both: write("both", format!("{}{}", key.serialize_pem(), certificate.pem()))?,
        })
    }
}
