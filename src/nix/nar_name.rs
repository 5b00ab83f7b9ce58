//! The canonical name of a NAR at every snowberry: `NarHash` and store path hash, 84 characters.

use std::fmt;

use super::{NarHash, StorePathHash, base32};

/// Characters of a `NarHash` in nix32.
const NAR_HASH_LEN: usize = base32::encoded_len(32);

/// `nar/<NarHash, 52 nix32 characters><store path hash, 32>.nar.zst`: from it alone any snowberry
/// can answer, even one that never saw the narinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NarName {
    /// SHA-256 of the NAR.
    pub nar_hash: NarHash,
    /// The store path's key.
    pub key: StorePathHash,
}

impl NarName {
    /// From a file name without folder, `<84 characters>.nar.zst`; `None` when it is another one.
    pub fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_suffix(".nar.zst")?;
        let (nar_hash, key) = stem.split_at_checked(NAR_HASH_LEN)?;
        Some(Self {
            nar_hash: NarHash::from_nix32(nar_hash).ok()?,
            key: StorePathHash::parse(key).ok()?,
        })
    }
}

/// The URL relative to the cache, `nar/<84 characters>.nar.zst`.
impl fmt::Display for NarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nar/{}{}.nar.zst", self.nar_hash.to_nix32(), self.key)
    }
}

#[cfg(test)]
#[allow(clippy::string_slice, reason = "the samples are ASCII")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEM: &str =
        "17s988j711dwxfgqmvy6kim08cw61v9piq9zf363mkqhacbnz76r9d82wl65gr2phigksgzzimbdf176rx4c";

    #[test]
    fn a_name_has_exactly_84_characters_of_nix32() {
        let name = NarName::parse(&format!("{STEM}.nar.zst")).unwrap();
        assert_eq!(name.key.to_string(), "9d82wl65gr2phigksgzzimbdf176rx4c");
        assert_eq!(name.to_string(), format!("nar/{STEM}.nar.zst"));
        for file_name in [
            String::new(),
            ".nar.zst".into(),
            STEM.into(),
            format!("{STEM}.nar"),
            format!("{STEM}.nar.xz"),
            format!("{STEM}.nar.zst "),
            format!("nar/{STEM}.nar.zst"),
            format!("{STEM}0.nar.zst"),
            format!("{}.nar.zst", &STEM[1..]),
            format!("{}.nar.zst", &STEM[..52]),
            format!("{}.nar.zst", STEM.to_uppercase()),
            format!("{}.nar.zst", STEM.replace('x', "e")),
            format!("{}\u{e9}.nar.zst", &STEM[2..]),
            // The first character of 52 holds one bit.
            format!("2{}.nar.zst", &STEM[1..]),
        ] {
            assert_eq!(NarName::parse(&file_name), None, "{file_name:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(nar_hash in any::<[u8; 32]>(), key in any::<[u8; 20]>()) {
            let name = NarName {
                nar_hash: NarHash::from_bytes(nar_hash),
                key: StorePathHash::from_bytes(key),
            };
            let url = name.to_string();
            prop_assert_eq!(NarName::parse(url.strip_prefix("nar/").unwrap()), Some(name));
        }
    }
}
