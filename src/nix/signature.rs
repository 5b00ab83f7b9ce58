//! Keys and signatures in Nix's format: `name:base64`, Ed25519 over a narinfo's fingerprint.

use super::{NarInfo, StoreDir};

/// Why a text is not a key or a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No colon, or nothing before it, or white space in it.
    #[error("{0:?} is not NAME:BASE64")]
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
    pub fn parse(_text: &str) -> Result<Self, KeyError> {
        todo!()
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

/// A public key: `name:base64` of 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: Box<str>,
    key: ed25519_dalek::VerifyingKey,
}

impl PublicKey {
    /// From `name:base64`.
    pub fn parse(_text: &str) -> Result<Self, KeyError> {
        todo!()
    }
    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Whether `signature` is this key's over `fingerprint`.
    pub fn verifies(&self, _fingerprint: &str, _signature: &Signature) -> bool {
        let _ = &self.key;
        todo!()
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
    pub fn parse(_text: &str) -> Result<Self, KeyError> {
        todo!()
    }
    /// A key made of 32 random bytes, which the caller brings.
    pub fn from_seed(_name: &str, _seed: [u8; 32]) -> Result<Self, KeyError> {
        todo!()
    }
    /// The public half.
    pub fn public(&self) -> PublicKey {
        let _ = (&self.name, &self.key);
        todo!()
    }
    /// Signs a fingerprint.
    pub fn sign(&self, _fingerprint: &str) -> Signature {
        todo!()
    }
    /// The key file's text, without newline. Secret: never to be logged.
    pub fn to_secret_text(&self) -> String {
        todo!()
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
    pub fn trust(&self, _narinfo: &NarInfo, _store_dir: &StoreDir) -> bool {
        todo!()
    }
}
