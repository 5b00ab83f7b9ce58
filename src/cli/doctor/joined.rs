//! `joined.toml`: the cache that this machine has joined, as `join` wrote it down.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The file, with the keys of `join`. Keys of a newer snowberry are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Joined {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls_port: Option<u16>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) ca_sha256: Option<String>,
    pub(super) public_key: Option<String>,
    #[serde(default)]
    pub(super) addresses: Vec<IpAddr>,
}

impl Joined {
    /// What the file says; `None` when there is no file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|error| {
                format!(
                    "{} is not as `snowberry join` writes it ({}): join again",
                    path.display(),
                    error.message()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }
}
