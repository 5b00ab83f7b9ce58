//! The canonical name of a NAR at every snowberry: NarHash and store path hash, 84 characters.

use std::fmt;

use super::{NarHash, StorePathHash};

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
    pub fn parse(_file_name: &str) -> Option<Self> {
        todo!()
    }
}

/// The URL relative to the cache, `nar/….nar.zst`.
impl fmt::Display for NarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nar/{}{}.nar.zst", self.nar_hash.to_nix32(), self.key)
    }
}
