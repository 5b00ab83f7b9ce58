//! `nix-cache-info`: what a cache says about itself.

use std::fmt;

use super::StoreDir;

/// Longest `nix-cache-info` that is read, in bytes: the real ones have less than a hundred.
pub const CACHE_INFO_LEN_MAX: usize = 16 * 1024;

/// The contents of `nix-cache-info`. Display prints it as Nix reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store directory that its paths lie in.
    pub store_dir: StoreDir,
    /// Whether many questions at once are welcome.
    pub want_mass_query: bool,
    /// Lower is asked earlier; `None` is 0 for Nix.
    pub priority: Option<u32>,
}

/// Why a text is no `nix-cache-info`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheInfoError {
    /// Longer than [`CACHE_INFO_LEN_MAX`].
    #[error("nix-cache-info of {0} bytes is too long")]
    TooLong(usize),
    /// There is no `StoreDir` line that parses.
    #[error("nix-cache-info has no valid StoreDir line")]
    StoreDir,
}

impl CacheInfo {
    /// Unknown keys and lines without a colon are ignored, values are trimmed, the last of several
    /// wins: as in Nix. A priority that is no number counts as none: Nix would die of it, but it
    /// is not passed on.
    pub fn parse(text: &[u8]) -> Result<Self, CacheInfoError> {
        if text.len() > CACHE_INFO_LEN_MAX {
            return Err(CacheInfoError::TooLong(text.len()));
        }
        let (mut store_dir, mut want_mass_query, mut priority) = (None, false, None);
        for (key, value) in String::from_utf8_lossy(text).lines().filter_map(|l| l.split_once(':'))
        {
            let value = value.trim();
            match key {
                "StoreDir" => {
                    store_dir = Some(StoreDir::parse(value).map_err(|_| CacheInfoError::StoreDir)?);
                }
                "WantMassQuery" => want_mass_query = value == "1",
                "Priority" => priority = value.parse().ok(),
                _ => {}
            }
        }
        let store_dir = store_dir.ok_or(CacheInfoError::StoreDir)?;
        Ok(Self { store_dir, want_mass_query, priority })
    }
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StoreDir: {}", self.store_dir)?;
        if self.want_mass_query {
            writeln!(f, "WantMassQuery: 1")?;
        }
        match self.priority {
            Some(priority) => writeln!(f, "Priority: {priority}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_writes_is_read_and_printed() {
        let text = include_str!("../../tests/data/nix-cache-info");
        check(text, false, None);
        assert_eq!(CacheInfo::parse(text.as_bytes()).unwrap().to_string(), text);
        let text = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n";
        check(text, true, Some(40));
        assert_eq!(CacheInfo::parse(text.as_bytes()).unwrap().to_string(), text);
    }

    #[test]
    fn loose_texts_are_read_as_nix_does() {
        check("StoreDir: /nix/store\r\nWantMassQuery: 1\r\nPriority: 40\r\n", true, Some(40));
        check("Priority:40\nStoreDir:/nix/store", false, Some(40));
        check("\nfoo\nX: y:z\nStoreDir: /nix/store\n\n", false, None);
        check("StoreDir: /gnu/store\nStoreDir: /nix/store\n", false, None);
        check("StoreDir: /nix/store\nWantMassQuery: 0\nPriority: soon\n", false, None);
        check("StoreDir: /nix/store\nPriority: -1\n", false, None);
    }

    #[test]
    fn what_names_no_store_is_refused() {
        for text in ["", "<html>", "StoreDir: store\n", "StoreDir: \n", "storedir: /nix/store\n"] {
            assert_eq!(CacheInfo::parse(text.as_bytes()), Err(CacheInfoError::StoreDir), "{text}");
        }
        let long = vec![b'\n'; CACHE_INFO_LEN_MAX + 1];
        assert_eq!(CacheInfo::parse(&long), Err(CacheInfoError::TooLong(long.len())));
    }

    fn check(text: &str, want_mass_query: bool, priority: Option<u32>) {
        let expected = CacheInfo { store_dir: StoreDir::default(), want_mass_query, priority };
        assert_eq!(CacheInfo::parse(text.as_bytes()), Ok(expected), "{text:?}");
    }
}
