//! narinfo: parse, print, fingerprint, sanitise. The wire format is written here and nowhere else.

use super::{Compression, FileHash, NarHash, Signature, StoreDir, StorePath};

/// Longest narinfo that is read, in bytes: the biggest in the wild (texlive's, with thousands of
/// references) have some hundred KiB.
pub const NARINFO_LEN_MAX: usize = 1024 * 1024;

/// What a cache says about one store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The path.
    pub store_path: StorePath,
    /// Where its NAR file lies: relative to the cache, or absolute.
    pub url: String,
    /// The NAR file's codec.
    pub compression: Compression,
    /// SHA-256 of the NAR file, where known.
    pub file_hash: Option<FileHash>,
    /// Bytes of the NAR file, where known (never `Some(0)`).
    pub file_size: Option<u64>,
    /// SHA-256 of the NAR.
    pub nar_hash: NarHash,
    /// Bytes of the NAR, above 0.
    pub nar_size: u64,
    /// Direct references, itself included where it is, sorted and unique.
    pub references: Vec<StorePath>,
    /// The derivation it was built from.
    pub deriver: Option<StorePath>,
    /// Well-formed signatures, sorted and unique; malformed ones are dropped when parsed.
    pub signatures: Vec<Signature>,
    /// The content address, as it stands.
    pub ca: Option<String>,
}

/// Why a text is not a narinfo that may be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NarInfoError {
    /// Longer than [`NARINFO_LEN_MAX`].
    #[error("narinfo of {0} bytes is too long")]
    TooLong(usize),
}

impl NarInfo {
    /// Parses strictly enough to be safe, loosely enough for every cache in the wild.
    pub fn parse(_text: &[u8], _store_dir: &StoreDir) -> Result<Self, NarInfoError> {
        todo!()
    }
    /// As Nix writes it.
    pub fn print(&self, _store_dir: &StoreDir) -> String {
        todo!()
    }
    /// What a signature covers.
    pub fn fingerprint(&self, _store_dir: &StoreDir) -> String {
        todo!()
    }
}
