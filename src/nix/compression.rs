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
    /// Every codec.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Xz, Self::Zstd, Self::Bzip2, Self::Gzip, Self::Br];

    /// By the label of a narinfo's `Compression` line; an empty label is bzip2, as Nix has it.
    pub fn from_label(label: &str) -> Option<Self> {
        if label.is_empty() {
            return Some(Self::Bzip2);
        }
        Self::ALL.into_iter().find(|codec| codec.label() == label)
    }
    /// The label of a narinfo's `Compression` line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Br => "br",
        }
    }
    /// By what follows `.nar` in a file name: "" | ".xz" | ".zst" | ".bz2" | ".gz" | ".br".
    pub fn from_extension(extension: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.extension() == extension)
    }
    /// What follows `.nar` in a file name.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Xz => ".xz",
            Self::Zstd => ".zst",
            Self::Bzip2 => ".bz2",
            Self::Gzip => ".gz",
            Self::Br => ".br",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_extensions_lead_back() {
        for codec in Compression::ALL {
            assert_eq!(Compression::from_label(codec.label()), Some(codec));
            assert_eq!(Compression::from_extension(codec.extension()), Some(codec));
        }
    }

    #[test]
    fn an_empty_label_is_bzip2_and_labels_are_exact() {
        assert_eq!(Compression::from_label(""), Some(Compression::Bzip2));
        for label in ["None", "zst", "lz4", " xz", "zstd "] {
            assert_eq!(Compression::from_label(label), None, "{label:?}");
        }
        for extension in [".zstd", "zst", ".lz4", ".bzip2"] {
            assert_eq!(Compression::from_extension(extension), None, "{extension:?}");
        }
    }
}
