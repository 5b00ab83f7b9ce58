//! `nix-cache-info`: what a cache says about itself.

use super::StoreDir;

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
#[non_exhaustive]
pub enum CacheInfoError {
    /// There is no `StoreDir` line that parses.
    #[error("nix-cache-info has no valid StoreDir line")]
    StoreDir,
}

impl CacheInfo {
    /// Unknown keys are ignored.
    pub fn parse(_text: &[u8]) -> Result<Self, CacheInfoError> {
        todo!()
    }
}

impl std::fmt::Display for CacheInfo {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}
