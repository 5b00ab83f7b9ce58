//! Keys and signatures in Nix's format: `name:base64`, Ed25519 over a narinfo's fingerprint.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::Signer;

use super::{NarInfo, StoreDir, excerpt};

/// Signatures of one narinfo that are verified, at most: real ones have one to three by a trusted
/// name, and a Pi does some thousands a second.
const VERIFICATIONS_MAX: usize = 32;

/// Why a text is not a key or a signature. What follows the colon is never repeated: it may be a
/// secret key in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No colon.
    #[error("key or signature is not NAME:BASE64")]
    NoColon,
    /// Nothing before the colon, or white space in it.
    #[error("{0:?} is no name of a key")]
    Shape(String),
    /// What follows the colon is not base 64 of the right length.
    #[error("key or signature {name:?} is not base 64 of {expected} bytes")]
    Bytes {
        /// The key's name.
        name: String,
        /// Bytes wanted.
        expected: usize,
    },
    /// The bytes are no Ed25519 key.
    #[error("key {0:?} is no Ed25519 key")]
    Key(String),
}

/// One `Sig` line: a key's name and 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    key_name: Box<str>,
    bytes: [u8; 64],
}

impl Signature {
    /// From `name:base64`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (key_name, bytes) = parse_named(text)?;
        Ok(Self { key_name: key_name.into(), bytes })
    }
    /// The name of the key that made it.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }
    /// The 64 bytes.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.bytes
    }
}

/// `name:base64`, as in a `Sig` line.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key_name, STANDARD.encode(self.bytes))
    }
}

/// A public key: `name:base64` of 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: Box<str>,
    key: ed25519_dalek::VerifyingKey,
}

impl PublicKey {
    /// From `name:base64`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse_named(text)?;
        match ed25519_dalek::VerifyingKey::from_bytes(&bytes) {
            // Everybody can sign for a weak key.
            Ok(key) if !key.is_weak() => Ok(Self { name: name.into(), key }),
            Ok(_) | Err(_) => Err(KeyError::Key(name.to_owned())),
        }
    }
    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Whether `signature` is this key's over `fingerprint`.
    pub fn verifies(&self, fingerprint: &str, signature: &Signature) -> bool {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        // Strict, because Nix's libsodium refuses the same malleable signatures.
        self.name == signature.key_name
            && self.key.verify_strict(fingerprint.as_bytes(), &bytes).is_ok()
    }
}

/// `name:base64`, as in `trusted-public-keys`.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.key.as_bytes()))
    }
}

/// A secret key: `name:base64` of seed and public key, 64 bytes (libsodium's format).
#[derive(Clone)]
pub struct SecretKey {
    name: Box<str>,
    key: ed25519_dalek::SigningKey,
}

impl SecretKey {
    /// From a key file's text; a final newline is allowed.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse_named(text.trim_end())?;
        let key = ed25519_dalek::SigningKey::from_keypair_bytes(&bytes)
            .map_err(|_| KeyError::Key(name.to_owned()))?;
        Ok(Self { name: name.into(), key })
    }
    /// A key made of 32 random bytes, which the caller brings.
    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, KeyError> {
        check_name(name)?;
        Ok(Self { name: name.into(), key: ed25519_dalek::SigningKey::from_bytes(&seed) })
    }
    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }
    /// Signs a fingerprint.
    pub fn sign(&self, fingerprint: &str) -> Signature {
        let bytes = self.key.sign(fingerprint.as_bytes()).to_bytes();
        Signature { key_name: self.name.clone(), bytes }
    }
    /// The key file's text, without newline. Secret: never to be logged.
    pub fn to_secret_text(&self) -> String {
        format!("{}:{}", self.name, STANDARD.encode(self.key.to_keypair_bytes()))
    }
}

/// The name alone: what is logged must not sign.
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The keys whose signatures count.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys(Vec<PublicKey>);

impl TrustedKeys {
    /// Trusts these keys.
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self(keys)
    }
    /// The keys.
    pub fn keys(&self) -> &[PublicKey] {
        &self.0
    }
    /// Whether one of the narinfo's signatures is by one of these keys.
    pub fn trust(&self, narinfo: &NarInfo, store_dir: &StoreDir) -> bool {
        let mut candidates = narinfo
            .signatures
            .iter()
            .flat_map(|signature| self.0.iter().map(move |key| (key, signature)))
            .filter(|(key, signature)| key.name == signature.key_name)
            .take(VERIFICATIONS_MAX)
            .peekable();
        // Most narinfos of a foreign cache have no signature by a known name: spare the text.
        if candidates.peek().is_none() {
            return false;
        }
        let fingerprint = narinfo.fingerprint(store_dir);
        candidates.any(|(key, signature)| key.verifies(&fingerprint, signature))
    }
}

fn parse_named<const N: usize>(text: &str) -> Result<(&str, [u8; N]), KeyError> {
    let (name, digits) = text.split_once(':').ok_or(KeyError::NoColon)?;
    check_name(name)?;
    let bytes = STANDARD.decode(digits).ok().and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(|bytes| (name, bytes))
        .ok_or_else(|| KeyError::Bytes { name: excerpt(name), expected: N })
}

/// A name ends at the colon in a line that ends at white space.
fn check_name(name: &str) -> Result<(), KeyError> {
    let separates = |c: char| c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.contains(separates) {
        return Err(KeyError::Shape(excerpt(name)));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::string_slice, reason = "the samples are ASCII")]
mod tests {
    use super::*;

    // A key for tests only; it was made by nix-store --generate-binary-cache-key.
    const SECRET: &str = "snowberry-test-1:T7mXx+1pBfPKfMKW71bXKSyPNPWaF34AtJnQ9EbPwnyjCY2Hv0TS6BeMQXR4qpSl47DLiZz3FSWK3FDoS+3z8w==";
    const PUBLIC: &str = "snowberry-test-1:owmNh79E0ugXjEF0eKqUpeOwy4mc9xUlitxQ6Evt8/M=";
    const NARINFOS: [&str; 3] = [
        include_str!("../../tests/data/9d82wl65gr2phigksgzzimbdf176rx4c.narinfo"),
        include_str!("../../tests/data/fc4g6p4zw2gmhhhghjmd7vp4a1pnbwg4.narinfo"),
        include_str!("../../tests/data/rhwsy6rql9hnpza1s11d62k7cd8aw3gm.narinfo"),
    ];

    #[test]
    fn key_files_of_nix_are_read_and_written() {
        let secret = SecretKey::parse(&format!("{SECRET}\n")).unwrap();
        assert_eq!(secret.to_secret_text(), SECRET);
        assert_eq!(secret.public().to_string(), PUBLIC);
        assert_eq!(PublicKey::parse(PUBLIC).unwrap(), secret.public());
    }

    #[test]
    fn a_seed_makes_the_key_that_nix_made_of_it() {
        let secret = SecretKey::parse(SECRET).unwrap();
        let seed = secret.key.to_bytes();
        assert_eq!(seed[..4], [0x4f, 0xb9, 0x97, 0xc7]);
        let again = SecretKey::from_seed("snowberry-test-1", seed).unwrap();
        assert_eq!(again.to_secret_text(), SECRET);
        assert!(SecretKey::from_seed("a b", seed).is_err());
        assert!(SecretKey::from_seed("a:b", seed).is_err());
        assert!(SecretKey::from_seed("", seed).is_err());
    }

    #[test]
    fn signatures_are_those_that_nix_makes() {
        let (secret, store_dir) = (SecretKey::parse(SECRET).unwrap(), StoreDir::default());
        for text in NARINFOS {
            let narinfo = NarInfo::parse(text.as_bytes(), &store_dir).unwrap();
            let signature = secret.sign(&narinfo.fingerprint(&store_dir));
            assert_eq!(narinfo.signatures, std::slice::from_ref(&signature));
            assert!(text.contains(&format!("Sig: {signature}\n")));
            assert_eq!(Signature::parse(&signature.to_string()), Ok(signature));
        }
    }

    #[test]
    fn what_a_trusted_key_signed_is_trusted() {
        let store_dir = StoreDir::default();
        let mut narinfo = NarInfo::parse(NARINFOS[1].as_bytes(), &store_dir).unwrap();
        let stranger = SecretKey::from_seed("snowberry-test-1", [7; 32]).unwrap();
        let fingerprint = narinfo.fingerprint(&store_dir);
        narinfo.signatures.insert(0, stranger.sign(&fingerprint));
        let trusts = |key: &str, narinfo: &NarInfo| {
            TrustedKeys::new(vec![PublicKey::parse(key).unwrap()]).trust(narinfo, &store_dir)
        };
        assert!(trusts(PUBLIC, &narinfo));
        assert!(!trusts(&PUBLIC.replace("test-1", "test-2"), &narinfo));
        assert!(!TrustedKeys::default().trust(&narinfo, &store_dir));
        assert!(!trusts(PUBLIC, &NarInfo { nar_size: narinfo.nar_size + 1, ..narinfo.clone() }));
        assert!(!trusts(PUBLIC, &NarInfo { references: Vec::new(), ..narinfo.clone() }));
        let url = "nar/elsewhere.nar.xz".to_owned();
        assert!(trusts(PUBLIC, &NarInfo { url, ca: None, ..narinfo.clone() }));
        narinfo.signatures.truncate(1);
        assert!(!trusts(PUBLIC, &narinfo), "right name, wrong key");
    }

    #[test]
    fn a_key_verifies_only_its_own_name_and_text() {
        let signature = SecretKey::parse(SECRET).unwrap().sign("text");
        let verifies = |key: &str, text| PublicKey::parse(key).unwrap().verifies(text, &signature);
        assert!(verifies(PUBLIC, "text"));
        assert!(!verifies(PUBLIC, "texts"));
        assert!(!verifies(&PUBLIC.replace("test-1", "test-2"), "text"));
    }

    #[test]
    fn a_flood_of_false_signatures_costs_a_bounded_number_of_verifications() {
        let store_dir = StoreDir::default();
        let mut narinfo = NarInfo::parse(NARINFOS[0].as_bytes(), &store_dir).unwrap();
        let keys = TrustedKeys::new(vec![PublicKey::parse(PUBLIC).unwrap()]);
        let flood = |count: usize| {
            let bytes = |n: usize| Signature {
                key_name: "snowberry-test-1".into(),
                bytes: [u8::try_from(n).unwrap(); 64],
            };
            (0..count).map(bytes).collect::<Vec<_>>()
        };
        let good = narinfo.signatures.clone();
        narinfo.signatures = [flood(VERIFICATIONS_MAX - 1), good.clone()].concat();
        assert!(keys.trust(&narinfo, &store_dir));
        narinfo.signatures = [flood(VERIFICATIONS_MAX), good].concat();
        assert!(!keys.trust(&narinfo, &store_dir));
    }

    #[test]
    fn another_store_directory_is_another_fingerprint() {
        let narinfo = NarInfo::parse(NARINFOS[0].as_bytes(), &StoreDir::default()).unwrap();
        let keys = TrustedKeys::new(vec![PublicKey::parse(PUBLIC).unwrap()]);
        assert!(!keys.trust(&narinfo, &StoreDir::parse("/gnu/store").unwrap()));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let (_, digits) = PUBLIC.split_once(':').unwrap();
        assert_eq!(PublicKey::parse(digits), Err(KeyError::NoColon));
        for text in [
            format!(":{digits}"),
            format!("a b:{digits}"),
            format!("a:b:{digits}"),
            format!("a: {digits}"),
            format!("a:{digits} "),
            format!("a:{}", &digits[4..]),
            "a:".to_owned(),
            SECRET.to_owned(),
            // A point of small order: everything verifies.
            format!("a:{}", STANDARD.encode([0; 32])),
        ] {
            assert!(PublicKey::parse(&text).is_err(), "{text:?}");
        }
        assert!(SecretKey::parse(PUBLIC).is_err());
        let torn = SECRET.replace("owmN", "owmM").replace("yjCY", "yjCX");
        assert_eq!(SecretKey::parse(&torn).unwrap_err(), KeyError::Key("snowberry-test-1".into()));
    }

    #[test]
    fn no_secret_is_printed_by_debug_or_by_errors() {
        let secret = SecretKey::parse(SECRET).unwrap();
        let (_, digits) = SECRET.split_once(':').unwrap();
        let printed = [
            format!("{secret:?}"),
            format!("{:?}", SecretKey::parse(&SECRET.replace(':', "")).unwrap_err()),
            format!("{:?}", SecretKey::parse(&SECRET.replace(':', ": ")).unwrap_err()),
            format!("{:?}", SecretKey::parse(&format!("{SECRET}=")).unwrap_err()),
            format!("{:?}", PublicKey::parse(SECRET).unwrap_err()),
        ];
        for text in printed {
            assert!(!text.contains(&digits[..12]), "{text}");
        }
    }
}
