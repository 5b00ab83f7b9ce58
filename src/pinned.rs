//! TLS to a cache whose certificate authority this machine has seen once and holds on to: nothing
//! else is trusted, and another one is told by both fingerprints. For `forward`, `join`, `doctor`.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::ciphers;

/// The SHA-256 of a CA certificate's DER: what people compare. Shown as lower-case pairs of digits
/// with colons between, as `openssl x509 -fingerprint` groups them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaFingerprint(pub [u8; 32]);

impl CaFingerprint {
    /// That of the first certificate of a PEM text.
    pub fn of_pem(ca_pem: &[u8]) -> Result<Self, Error> {
        first_certificate(ca_pem).map(|certificate| Self::of_der(&certificate))
    }

    /// That of a certificate.
    pub fn of_der(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// 64 hexadecimal digits, as in `joined.toml`, `/api/status` and TXT records.
    pub fn to_hex(self) -> String {
        self.pairs().concat()
    }

    fn pairs(self) -> Vec<String> {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pairs().join(":"))
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fingerprint: 32 pairs of hexadecimal digits, with or without colons")]
pub struct NoFingerprint(String);

impl FromStr for CaFingerprint {
    type Err = NoFingerprint;

    /// With or without colons, in either case.
    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let wrong = || NoFingerprint(text.chars().take(100).collect());
        let digits: Vec<u8> = text.trim().bytes().filter(|c| *c != b':').collect();
        let nibble = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(wrong)
    }
}

/// Why there is no TLS to a pinned cache.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The text has no certificate.
    #[error("no certificate is there: wanted is the PEM text of /ca.pem")]
    NoCertificate,
    /// The certificate is none that can be trusted as an authority.
    #[error("use the CA certificate {fingerprint}")]
    Unusable {
        /// Which one.
        fingerprint: CaFingerprint,
        /// Why not.
        source: rustls::Error,
    },
}

/// The cache showed another authority than the one that this machine holds on to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct OtherCa {
    /// The one that this machine holds on to.
    pub expected: CaFingerprint,
    /// The last certificate of the chain that was shown: the authority, as snowberry sends it.
    pub presented: CaFingerprint,
}

impl fmt::Display for OtherCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, presented } = self;
        if expected == presented {
            // It is public: whoever is in between may send it along.
            return write!(
                f,
                "the CA {expected}, which this machine joined, is shown, but it did not sign the \
                 certificate: this is not the cache, somebody is in between"
            );
        }
        write!(
            f,
            "the cache shows the CA {presented}, but this machine joined {expected}: if the Pi was \
             flashed again, compare with `snowberry key show` there and run `snowberry join` \
             again, else this is not the cache"
        )
    }
}

/// TLS that trusts what the first certificate of `ca_pem` has signed, and nothing else; chain, time
/// and name are checked. A failed handshake says [`OtherCa`] where that is the reason. The caller
/// sets the protocols that are offered (ALPN).
pub fn client_config(ca_pem: &[u8]) -> Result<ClientConfig, Error> {
    let ca = first_certificate(ca_pem)?;
    let expected = CaFingerprint::of_der(&ca);
    let unusable = |source| Error::Unusable { fingerprint: expected, source };
    let provider = Arc::new(ciphers::provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(unusable)?;
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unusable(rustls::Error::General(error.to_string())))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { inner, expected }))
        .with_no_client_auth();
    Ok(config)
}

/// [`OtherCa`], when it is among an error and its causes.
pub fn other_ca<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a OtherCa> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::Other(other)) = error.downcast_ref() {
            return other.0.downcast_ref();
        }
        // An io::Error's source is that of what it wraps: what it wraps must be asked for.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

fn first_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, Error> {
    let first = CertificateDer::pem_slice_iter(pem).next();
    first.and_then(Result::ok).ok_or(Error::NoCertificate)
}

/// webpki's verifier, and a sentence for who meets another authority.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    expected: CaFingerprint,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => {
                let last = intermediates.last().unwrap_or(end_entity);
                let presented = CaFingerprint::of_der(last);
                let other = OtherCa { expected: self.expected, presented };
                // As an InvalidCertificate it would be printed as code, not as a sentence.
                Err(rustls::Error::Other(OtherError(Arc::new(other))))
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use rustls_pki_types::PrivateKeyDer;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// An authority of this name and a server's chain by it; another authority of the same name has
    /// another key.
    struct House {
        ca_pem: String,
        chain: Vec<CertificateDer<'static>>,
        key: KeyPair,
    }

    fn house(until_year: i32) -> House {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "house");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["snowberry.local".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        House { ca_pem: ca.pem(), chain: vec![leaf.der().clone(), ca.der().clone()], key }
    }

    async fn shake(server: &House, ca_pem: &str, name: &str) -> io::Result<()> {
        let key = PrivateKeyDer::Pkcs8(server.key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(ciphers::provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(server.chain.clone(), key)
            .unwrap();
        let client = Arc::new(client_config(ca_pem.as_bytes()).unwrap());
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let accepted = TlsAcceptor::from(Arc::new(server)).accept(theirs);
        let (_, connected) = tokio::join!(accepted, TlsConnector::from(client).connect(name, ours));
        connected.map(drop)
    }

    #[tokio::test]
    async fn what_the_pinned_authority_signed_is_trusted_under_its_names() {
        let house = house(4000);
        shake(&house, &house.ca_pem, "snowberry.local").await.unwrap();
        let error = shake(&house, &house.ca_pem, "other.local").await.unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");
        assert_eq!(other_ca(&error), None);
    }

    #[tokio::test]
    async fn another_authority_is_told_by_both_fingerprints() {
        let (joined, flashed) = (house(4000), house(4000));
        let error = shake(&flashed, &joined.ca_pem, "snowberry.local").await.unwrap_err();
        let of = |house: &House| CaFingerprint::of_pem(house.ca_pem.as_bytes()).unwrap();
        let (expected, presented) = (of(&joined), of(&flashed));
        assert_eq!(other_ca(&error), Some(&OtherCa { expected, presented }));
        let told = error.to_string();
        for part in [expected.to_string(), presented.to_string(), "snowberry join".to_owned()] {
            assert!(told.contains(&part), "{part} is not in {told}");
        }
    }

    #[tokio::test]
    async fn who_shows_the_right_authority_without_its_word_is_found_out() {
        let (joined, mut between) = (house(4000), house(4000));
        between.chain.truncate(1);
        between.chain.extend(joined.chain.last().cloned());
        let error = shake(&between, &joined.ca_pem, "snowberry.local").await.unwrap_err();
        assert!(error.to_string().contains("did not sign"), "{error}");
        between.chain.truncate(1);
        let error = shake(&between, &joined.ca_pem, "snowberry.local").await.unwrap_err();
        assert!(other_ca(&error).is_some(), "{error}");
    }

    #[tokio::test]
    async fn an_expired_certificate_is_that_and_nothing_else() {
        let house = house(2001);
        let error = shake(&house, &house.ca_pem, "snowberry.local").await.unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
        assert_eq!(other_ca(&error), None);
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        assert_eq!(client_config(b"").unwrap_err(), Error::NoCertificate);
        let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(client_config(garbage), Err(Error::Unusable { .. })));
    }

    #[test]
    fn a_fingerprint_is_read_as_it_is_shown_and_as_64_digits() {
        let fingerprint = CaFingerprint::of_der(b"certificate");
        let shown = fingerprint.to_string();
        assert_eq!(shown.len(), 32 * 3 - 1);
        for text in [shown.clone(), shown.to_uppercase(), fingerprint.to_hex()] {
            assert_eq!(text.parse(), Ok(fingerprint), "{text}");
        }
        for text in ["", "ab", "a", &format!("{shown}:00"), &shown.replacen(':', "g", 1)] {
            assert!(text.parse::<CaFingerprint>().is_err(), "{text}");
        }
    }
}
