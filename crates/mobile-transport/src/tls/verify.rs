//! Verifies the peer's public key: a client accepts one relay, and the relay accepts the authorised
//! clients.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::Authorise;
use crate::keys::{PublicKey, RelayKeys};

/// Verifies the signatures of a TLS 1.3 handshake by which a peer proves that it holds its raw
/// public key.
#[derive(Debug)]
struct RawKeySignatures(WebPkiSupportedAlgorithms);

impl RawKeySignatures {
    /// The signature schemes that a peer may use.
    const SCHEMES: [SignatureScheme; 1] = [SignatureScheme::ED25519];

    fn new(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }

    fn verify(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.0)
    }

    fn refuse_tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }
}

/// The error that the relay's key is not the configured one.
#[derive(Debug, thiserror::Error)]
#[error("the relay offered the key {offered} instead of {expected}")]
pub(super) struct WrongRelayKey {
    pub(super) expected: RelayKeys,
    pub(super) offered: PublicKey,
}

/// A certificate verifier of a client, which accepts a relay with an expected key, and no other.
#[derive(Debug)]
pub(super) struct PinnedRelayVerifier {
    expected: RelayKeys,
    signatures: RawKeySignatures,
}

impl PinnedRelayVerifier {
    pub(super) fn new(expected: RelayKeys, provider: &CryptoProvider) -> Self {
        Self { expected, signatures: RawKeySignatures::new(provider) }
    }
}

impl ServerCertVerifier for PinnedRelayVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let offered = PublicKey::from_spki(end_entity).ok_or(CertificateError::BadEncoding)?;
        if self.expected.accept(&offered) {
            return Ok(ServerCertVerified::assertion());
        }
        let wrong = WrongRelayKey { expected: self.expected, offered };
        Err(CertificateError::Other(OtherError(Arc::new(wrong))).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        RawKeySignatures::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        RawKeySignatures::SCHEMES.to_vec()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A certificate verifier of the relay, which accepts authorised clients, and looks up a key only
/// after the client has proved that it holds the key.
///
/// Public keys are no secret. A prober that offers another client's key must not learn from the
/// alert, the timing or the relay's log whether that key is authorised. So `verify_client_cert`
/// accepts every well-formed key, and the list of clients is read only after the signature over
/// this handshake (RFC 8446, section 4.4.3) was verified.
pub(super) struct ClientKeyVerifier {
    authorise: Authorise,
    signatures: RawKeySignatures,
}

impl ClientKeyVerifier {
    pub(super) fn new(authorise: Authorise, provider: &CryptoProvider) -> Self {
        Self { authorise, signatures: RawKeySignatures::new(provider) }
    }
}

impl fmt::Debug for ClientKeyVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKeyVerifier")
    }
}

impl ClientCertVerifier for ClientKeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // Do not look the key up yet: the client has only named it, not proved it.
        PublicKey::from_spki(end_entity).ok_or(CertificateError::BadEncoding)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        RawKeySignatures::refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = self.signatures.verify(message, cert, dss)?;
        let key = PublicKey::from_spki(cert).ok_or(CertificateError::BadEncoding)?;
        if (self.authorise)(&key) {
            return Ok(valid);
        }
        // rustls sends the alert access_denied, by which the client recognises a refusal, for this
        // error only.
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        RawKeySignatures::SCHEMES.to_vec()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
