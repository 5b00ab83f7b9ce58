//! Store paths, the hash part that is the key of a cache, and the directory they lie in.

use std::fmt;

/// Characters of a store path's hash part.
pub const STORE_PATH_HASH_LEN: usize = 32;

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
    pub fn parse(_text: &str) -> Result<Self, StorePathError> {
        todo!()
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
    pub fn parse(_base_name: &str) -> Result<Self, StorePathError> {
        todo!()
    }
    /// The hash part.
    pub fn hash(&self) -> StorePathHash {
        todo!()
    }
    /// The name part.
    pub fn name(&self) -> &str {
        todo!()
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
    pub fn parse(_text: &str) -> Result<Self, StorePathError> {
        todo!()
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
    pub fn strip(&self, _full_path: &str) -> Result<StorePath, StorePathError> {
        todo!()
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
