//! The names of the codecs that NAR files come in.

/// A codec of a NAR file. Nix knows more; these are the ones that snowberry reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// The raw NAR.
    None,
    /// xz
    Xz,
    /// Zstandard
    Zstd,
    /// bzip2
    Bzip2,
    /// gzip
    Gzip,
    /// Brotli
    Br,
}

impl Compression {
    /// By the label of a narinfo's `Compression` line; an empty label is bzip2, as Nix has it.
    pub fn from_label(_label: &str) -> Option<Self> {
        todo!()
    }
    /// The label of a narinfo's `Compression` line.
    pub const fn label(self) -> &'static str {
        todo!()
    }
    /// By what follows `.nar` in a file name: "" | ".xz" | ".zst" | ".bz2" | ".gz" | ".br".
    pub fn from_extension(_extension: &str) -> Option<Self> {
        todo!()
    }
    /// What follows `.nar` in a file name.
    pub const fn extension(self) -> &'static str {
        todo!()
    }
}
