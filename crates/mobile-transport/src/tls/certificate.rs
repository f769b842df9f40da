//! The raw public key that an end of a connection proves, in place of a certificate.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use zeroize::Zeroize as _;

use crate::keys::PrivateKey;

/// The relay's key, which can be replaced while the relay serves.
#[derive(Debug)]
pub(super) struct RelayCertificate(RwLock<Arc<CertifiedKey>>);

impl RelayCertificate {
    pub(super) fn new(key: &PrivateKey) -> Self {
        Self(RwLock::new(identity(key)))
    }

    /// Replaces the key in all later handshakes.
    pub(super) fn set(&self, key: &PrivateKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity(key);
    }
}

impl ResolvesServerCert for RelayCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// Returns the key pair in the form that rustls uses: a bare SubjectPublicKeyInfo takes the place
/// of the certificate.
pub(super) fn identity(key: &PrivateKey) -> Arc<CertifiedKey> {
    let mut private = PrivatePkcs8KeyDer::from(key.to_pkcs8());
    let signer = any_eddsa_type(&private).expect("an Ed25519 seed in PKCS#8 is a key ring takes");
    private.zeroize();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(key.public().to_spki())], signer))
}
