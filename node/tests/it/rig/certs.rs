//! A certificate authority of our own, and what it signs.

use std::path::PathBuf;

use node::tls::Security;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

pub(crate) struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.subject_alt_names.clear();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn leaf(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let issuer = CertifiedIssuer::self_signed(authority(name), KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Signs a leaf named `name`; files `<name>.pem`, `<name>.key`; `extra` PEM text goes after the leaf.
    pub(crate) fn issue_with(&self, name: &str, extra: &str) -> Security {
        let key = KeyPair::generate().unwrap();
        let certificate = leaf(name).signed_by(&key, &self.issuer).unwrap();
        self.store(name, &format!("{}{extra}", certificate.pem()), &key)
    }

    pub(crate) fn issue(&self, name: &str) -> Security {
        self.issue_with(name, "")
    }

    /// A leaf under an intermediate authority named `middle`.
    pub(crate) fn issue_through(&self, middle: &str, name: &str) -> Security {
        let issuer =
            CertifiedIssuer::signed_by(authority(middle), KeyPair::generate().unwrap(), &self.issuer)
                .unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = leaf(name).signed_by(&key, &issuer).unwrap();
        self.store(name, &format!("{}{}", certificate.pem(), issuer.pem()), &key)
    }

    /// A certificate that nobody here signed.
    pub(crate) fn self_signed_pem(name: &str) -> String {
        leaf(name).self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn store(&self, name: &str, chain: &str, key: &KeyPair) -> Security {
        let (cert_path, key_path) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&cert_path, chain).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        Security {
            ssl_ca: Some(self.path("ca.pem")),
            ssl_cert: Some(cert_path),
            ssl_key: Some(key_path),
            cert_allowed_cn: Vec::new(),
        }
    }

    /// For clients without a certificate.
    pub(crate) fn trust(&self) -> Security {
        Security { ssl_ca: Some(self.path("ca.pem")), ..Security::default() }
    }
}
