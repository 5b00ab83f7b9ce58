//! The file names under which Nix uploads NARs: `<FileHash>.nar[.ext]`.

use super::{Compression, FileHash};

/// The name of an uploaded NAR file below `nar/`. The client gives it, remembers it for 30 days,
/// and asks for it again: it is kept as an alias of the NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UploadName {
    /// SHA-256 of the file as the client sends it.
    pub file_hash: FileHash,
    /// What the ending says: `None` for a bare `.nar`, which Nix uses for raw NARs and for gzip.
    pub ending: Compression,
}

impl UploadName {
    /// Parses what follows `nar/`: 52 nix32 characters, `.nar`, and one of the endings of
    /// [`Compression::extension`]. `None` for anything else.
    pub fn parse(file_name: &str) -> Option<Self> {
        let (hash, ending) = file_name.split_once(".nar")?;
        let file_hash = FileHash::from_nix32(hash).ok()?;
        Some(Self { file_hash, ending: Compression::from_extension(ending)? })
    }
}

impl std::fmt::Display for UploadName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.nar{}", self.file_hash.to_nix32(), self.ending.extension())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let hash = "0s266z35rvqgdz0nisk38kb5xbivg3s0z6fs9p93x8rbgfaj8qkp";
        for ending in ["", ".xz", ".zst", ".bz2", ".gz", ".br"] {
            let name = format!("{hash}.nar{ending}");
            assert_eq!(UploadName::parse(&name).map(|it| it.to_string()), Some(name));
        }
        for wrong in ["", ".nar", "x.nar", &format!("{hash}.nar.lz4"), &format!("{hash}x.nar")] {
            assert_eq!(UploadName::parse(wrong), None, "{wrong}");
        }
    }
}
