//! `NarHash` and `FileHash`: SHA-256 of an unpacked NAR and of a file as served. Two types, so
//! that they cannot be mixed.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::base32::{self, Base32Error};
use super::excerpt;

/// Why a text is not a SHA-256 in one of Nix's notations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Neither `sha256:` nor `sha256-` in front.
    #[error("hash {0:?} has no sha256 prefix")]
    Prefix(String),
    /// The digits are no nix32 of 32 bytes.
    #[error("hash digits")]
    Base32(#[from] Base32Error),
    /// The digits are neither nix32, base 16 nor base 64 of the wanted length.
    #[error("hash {0:?} is neither nix32, base 16 nor base 64 of its algorithm's length")]
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
            /// Any of Nix's notations with a prefix: `sha256:<nix32 | base 16 | base 64>`,
            /// `sha256-<base 64>`.
            pub fn parse(text: &str) -> Result<Self, HashError> {
                parse_sha256(text).map(Self)
            }
            /// 52 nix32 characters without prefix.
            pub fn from_nix32(text: &str) -> Result<Self, HashError> {
                Ok(Self(base32::decode(text)?))
            }
            /// 52 nix32 characters without prefix.
            pub fn to_nix32(&self) -> String {
                base32::encode(&self.0)
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

fn parse_sha256(text: &str) -> Result<[u8; 32], HashError> {
    if let Some(digits) = text.strip_prefix("sha256-") {
        return from_base64(digits);
    }
    let digits = text.strip_prefix("sha256:").ok_or_else(|| HashError::Prefix(excerpt(text)))?;
    parse_digits(digits)
}

/// `N` bytes without prefix; as in Nix, the length tells the notation.
pub(super) fn parse_digits<const N: usize>(digits: &str) -> Result<[u8; N], HashError> {
    if digits.len() == N * 2 {
        from_base16(digits)
    } else if digits.len() == base32::encoded_len(N) {
        Ok(base32::decode(digits)?)
    } else {
        from_base64(digits)
    }
}

fn from_base64<const N: usize>(digits: &str) -> Result<[u8; N], HashError> {
    let bytes = STANDARD.decode(digits).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| HashError::Digits(excerpt(digits)))
}

fn from_base16<const N: usize>(digits: &str) -> Result<[u8; N], HashError> {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = pair
            .iter()
            .try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
            .and_then(|value| u8::try_from(value).ok())
            .ok_or_else(|| HashError::Digits(excerpt(digits)))?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NIX32: &str = "17s988j711dwxfgqmvy6kim08cw61v9piq9zf363mkqhacbnz76r";
    const BASE16: &str = "d99c6f175310cf3acc703fe178d30e8633046a9cc6ef8a9febbc85702442499f";
    const BASE64: &str = "2ZxvF1MQzzrMcD/heNMOhjMEapzG74qf67yFcCRCSZ8=";

    #[test]
    fn every_notation_is_one_hash() {
        for text in [
            format!("sha256:{NIX32}"),
            format!("sha256:{BASE16}"),
            format!("sha256:{}", BASE16.to_uppercase()),
            format!("sha256:{BASE64}"),
            format!("sha256-{BASE64}"),
        ] {
            let nar_hash = NarHash::parse(&text).unwrap();
            assert_eq!(nar_hash.to_string(), format!("sha256:{NIX32}"), "{text}");
            assert_eq!(format!("{nar_hash:?}"), format!("NarHash({NIX32})"));
        }
    }

    #[test]
    fn hashes_are_those_of_the_files_that_they_name() {
        use sha2::{Digest, Sha256};
        let nar =
            include_bytes!("../../tests/data/9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0.nar");
        assert_eq!(NarHash::from_bytes(Sha256::digest(nar).into()).to_nix32(), NIX32);
        let file = include_bytes!(
            "../../tests/data/0s266z35rvqgdz0nisk38kb5xbivg3s0z6fs9p93x8rbgfaj8qkp.nar.zst"
        );
        let file_hash = FileHash::from_bytes(Sha256::digest(file).into());
        assert_eq!(file_hash.to_nix32(), "0s266z35rvqgdz0nisk38kb5xbivg3s0z6fs9p93x8rbgfaj8qkp");
    }

    #[test]
    fn no_other_text_is_a_hash() {
        for text in [
            "",
            "sha256:",
            "sha256-",
            NIX32,
            BASE16,
            &format!("sha256-{NIX32}"),
            &format!("sha256-{BASE16}"),
            &format!("sha512:{NIX32}"),
            &format!("SHA256:{NIX32}"),
            &format!(" sha256:{NIX32}"),
            &format!("sha256:{NIX32} "),
            &format!("sha256:{}", BASE16.replace('9', "g")),
            &format!("sha256:{}", BASE16.replacen("d9", "+d", 1)),
            &format!("sha256:{}", BASE64.trim_end_matches('=')),
            &format!("sha256:{}", BASE64.replace("8=", "9=")),
        ] {
            assert!(NarHash::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_long_text_is_not_repeated_in_full() {
        let error = NarHash::parse(&"x".repeat(1 << 20)).unwrap_err();
        assert!(error.to_string().len() < 200);
    }

    proptest! {
        #[test]
        fn round_trip(bytes in any::<[u8; 32]>()) {
            let file_hash = FileHash::from_bytes(bytes);
            prop_assert_eq!(FileHash::parse(&file_hash.to_string()), Ok(file_hash));
            prop_assert_eq!(FileHash::from_nix32(&file_hash.to_nix32()), Ok(file_hash));
            prop_assert_eq!(FileHash::parse(&format!("sha256-{}", STANDARD.encode(bytes))), Ok(file_hash));
        }
    }
}
