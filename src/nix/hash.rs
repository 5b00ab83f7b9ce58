//! `NarHash` and `FileHash`: SHA-256 of an unpacked NAR and of a file as served. Two types, so
//! that they cannot be mixed.

use std::fmt;

use super::base32::Base32Error;

/// Why a text is not a SHA-256 in one of Nix's notations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Neither `sha256:` nor `sha256-` in front.
    #[error("hash {0:?} has no sha256 prefix")]
    Prefix(String),
    /// The digits are no nix32 of 32 bytes.
    #[error("hash digits")]
    Base32(#[from] Base32Error),
    /// The digits are neither nix32, base 16 nor base 64 of 32 bytes.
    #[error("hash {0:?} is neither nix32, base 16 nor base 64 of 32 bytes")]
    Digits(String),
}

macro_rules! sha256_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// From the digest's 32 bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            /// The digest's 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
            /// Any of Nix's notations with a prefix: `sha256:<nix32 | base 16 | base 64>`, `sha256-<base 64>`.
            pub fn parse(_text: &str) -> Result<Self, HashError> {
                todo!()
            }
            /// 52 nix32 characters without prefix.
            pub fn from_nix32(_text: &str) -> Result<Self, HashError> {
                todo!()
            }
            /// 52 nix32 characters without prefix.
            pub fn to_nix32(&self) -> String {
                super::base32::encode(&self.0)
            }
        }
        /// `sha256:<nix32>`, as Nix writes it.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", self.to_nix32())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.to_nix32())
            }
        }
    };
}

sha256_type!(
    /// SHA-256 of a NAR, unpacked. What signatures cover.
    NarHash
);
sha256_type!(
    /// SHA-256 of a NAR file as served (compressed).
    FileHash
);
