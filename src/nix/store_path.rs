//! Store paths, the hash part that is the key of a cache, and the directory they lie in.

use std::fmt;

use super::excerpt;

/// Characters of a store path's hash part.
pub const STORE_PATH_HASH_LEN: usize = 32;

/// Longest name part: Nix's own bound, 255 less what `.lock`, `.chroot` and the hash take.
const NAME_LEN_MAX: usize = 211;

/// Longest store directory: `PATH_MAX` of Linux.
const STORE_DIR_LEN_MAX: usize = 4096;

/// Why a text is not a store path (or its hash, or a store directory).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// The hash part is not 32 characters of nix32.
    #[error("{0:?} does not begin with 32 nix32 characters")]
    Hash(String),
    /// The name is empty, too long or has characters that Nix refuses.
    #[error("{0:?} is no store path name")]
    Name(String),
    /// The path does not lie directly in the store directory.
    #[error("{path:?} does not lie in {store_dir}")]
    NotInStore {
        /// The path as found.
        path: String,
        /// The store directory it should lie in.
        store_dir: String,
    },
    /// A store directory must be absolute, without trailing slash, `.` or `..`.
    #[error("{0:?} is no store directory")]
    StoreDir(String),
}

/// The hash part of a store path (20 bytes, 32 nix32 characters): the key of the cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePathHash([u8; 20]);

impl StorePathHash {
    /// From its 20 bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }
    /// Its 20 bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
    /// From its 32 characters.
    pub fn parse(text: &str) -> Result<Self, StorePathError> {
        super::base32::decode(text).map(Self).map_err(|_| StorePathError::Hash(excerpt(text)))
    }
}
impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::base32::encode(&self.0))
    }
}
impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorePathHash({self})")
    }
}

/// A store path without its directory: `<hash>-<name>`. Orders by its base name's bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    base_name: Box<str>,
}

impl StorePath {
    /// From `<hash>-<name>`.
    pub fn parse(base_name: &str) -> Result<Self, StorePathError> {
        let no_hash = || StorePathError::Hash(excerpt(base_name));
        let (hash, rest) = base_name.split_at_checked(STORE_PATH_HASH_LEN).ok_or_else(no_hash)?;
        StorePathHash::parse(hash)?;
        let name = rest.strip_prefix('-').ok_or_else(no_hash)?;
        if !is_name(name) {
            return Err(StorePathError::Name(excerpt(name)));
        }
        Ok(Self { base_name: base_name.into() })
    }
    /// The hash part.
    pub fn hash(&self) -> StorePathHash {
        let (hash, _) = self.parts();
        StorePathHash::parse(hash).expect("parse() checked the hash part")
    }
    /// The name part.
    pub fn name(&self) -> &str {
        let (_, name) = self.parts();
        name
    }
    fn parts(&self) -> (&str, &str) {
        self.base_name.split_once('-').expect("parse() found the dash after the hash part")
    }
    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.base_name
    }
}
impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base_name)
    }
}

/// The directory that store paths lie in, `/nix/store` for nearly everybody.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoreDir(Box<str>);

impl StoreDir {
    /// An absolute path without trailing slash.
    pub fn parse(text: &str) -> Result<Self, StorePathError> {
        let steps_are_plain =
            |path: &str| path.split('/').all(|step| !matches!(step, "" | "." | ".."));
        // `nix-cache-info` is trimmed by its readers and has one line for each value.
        let prints = text.trim_end() == text && !text.contains(char::is_control);
        let holds = text.len() <= STORE_DIR_LEN_MAX
            && prints
            && text.strip_prefix('/').is_some_and(steps_are_plain);
        if !holds {
            return Err(StorePathError::StoreDir(excerpt(text)));
        }
        Ok(Self(text.into()))
    }
    /// The directory's path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// `<store dir>/<base name>`.
    pub fn join(&self, path: &StorePath) -> String {
        format!("{}/{path}", self.0)
    }
    /// The store path that a full path names.
    pub fn strip(&self, full_path: &str) -> Result<StorePath, StorePathError> {
        let base_name = full_path
            .strip_prefix(&*self.0)
            .and_then(|rest| rest.strip_prefix('/'))
            .filter(|base_name| !base_name.contains('/'))
            .ok_or_else(|| StorePathError::NotInStore {
                path: excerpt(full_path),
                store_dir: self.0.to_string(),
            })?;
        StorePath::parse(base_name)
    }
}
impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".into())
    }
}
impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Nix's rules since 2.19, which are stricter than before about leading dots.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-._?=".contains(c);
    // `.` and `..` are no names, nor with anything after a dash.
    let first_word = name.split('-').next().unwrap_or_default();
    (1..=NAME_LEN_MAX).contains(&name.len())
        && name.chars().all(plain)
        && !matches!(first_word, "." | "..")
}

#[cfg(test)]
#[allow(clippy::string_slice, reason = "the samples are ASCII")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "9d82wl65gr2phigksgzzimbdf176rx4c";

    #[test]
    fn a_store_path_has_its_parts() {
        let store_path = StorePath::parse(&format!("{HASH}-wire-a-1.0")).unwrap();
        assert_eq!(store_path.hash().to_string(), HASH);
        assert_eq!(store_path.name(), "wire-a-1.0");
        assert_eq!(StoreDir::default().join(&store_path), format!("/nix/store/{HASH}-wire-a-1.0"));
    }

    #[test]
    fn names_follow_nix() {
        let longest = "x".repeat(211);
        for name in ["a", "A+b-c._?=0", ".x", "..x", "...", ".x-", "-", "--", "-.", &longest] {
            assert!(StorePath::parse(&format!("{HASH}-{name}")).is_ok(), "{name:?}");
        }
        let too_long = "x".repeat(212);
        for name in [
            "", ".", "..", ".-", "..-", ".-x", "..-x", "a b", "a/b", "a\n", "a\0", "\u{e9}", "a,b",
            "a~", "a;", "a:", &too_long,
        ] {
            assert!(StorePath::parse(&format!("{HASH}-{name}")).is_err(), "{name:?}");
        }
    }

    #[test]
    fn hash_parts_follow_nix() {
        for base_name in [
            "",
            "-x",
            HASH,
            &format!("{HASH}x"),
            &format!("{HASH}_x"),
            &format!("{}-x", &HASH[1..]),
            &format!("0{HASH}-x"),
            &format!("e{}-x", &HASH[1..]),
            &format!("{}-x", HASH.to_uppercase()),
            &format!("{}\u{e9}-x", &HASH[1..]),
        ] {
            assert!(
                matches!(StorePath::parse(base_name), Err(StorePathError::Hash(_))),
                "{base_name:?}"
            );
        }
    }

    #[test]
    fn store_directories_are_absolute_and_plain() {
        for text in ["/nix/store", "/gnu/store", "/home/a b/.nix", "/s"] {
            assert_eq!(StoreDir::parse(text).unwrap().as_str(), text);
        }
        let too_long = format!("/{}", "x".repeat(4096));
        for text in [
            "",
            "/",
            "nix/store",
            "/nix/store/",
            "//nix",
            "/nix//store",
            "/nix/./store",
            "/nix/..",
            "/nix/store\n",
            "/nix/store ",
            "/nix\0",
            &too_long,
        ] {
            assert!(StoreDir::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_what_lies_directly_in_the_store_is_a_store_path() {
        let strip = |text: &str| StoreDir::default().strip(text);
        assert_eq!(
            strip(&format!("/nix/store/{HASH}-x")).unwrap().base_name(),
            format!("{HASH}-x")
        );
        for text in [
            format!("/gnu/store/{HASH}-x"),
            format!("/nix/stores/{HASH}-x"),
            format!("/nix/store{HASH}-x"),
            format!("/nix/store//{HASH}-x"),
            format!("/nix/store/{HASH}-x/bin"),
            format!("{HASH}-x"),
        ] {
            assert!(matches!(strip(&text), Err(StorePathError::NotInStore { .. })), "{text:?}");
        }
        assert!(matches!(strip("/nix/store/x"), Err(StorePathError::Hash(_))));
    }

    proptest! {
        #[test]
        fn round_trip(bytes in any::<[u8; 20]>(), name in "[0-9A-Za-z+_?=][0-9A-Za-z+._?=-]{0,210}") {
            let key = StorePathHash::from_bytes(bytes);
            prop_assert_eq!(StorePathHash::parse(&key.to_string()), Ok(key));
            let store_path = StorePath::parse(&format!("{key}-{name}")).unwrap();
            prop_assert_eq!(store_path.hash(), key);
            prop_assert_eq!(store_path.name(), name);
            let store_dir = StoreDir::default();
            prop_assert_eq!(store_dir.strip(&store_dir.join(&store_path)), Ok(store_path));
        }
    }
}
