//! What the tests of the spool are made with.

use std::time::Duration;

use tempfile::TempDir;

use super::{Config, Entry};
use crate::nix::{StoreDir, StorePath};
use crate::units::ByteSize;

/// A folder with an empty store, and a spool that would lie beside it.
pub(super) fn spool() -> (TempDir, Config) {
    let top = tempfile::tempdir().unwrap();
    let folder = |name: &str| top.path().join(name);
    std::fs::create_dir(folder("store")).unwrap();
    let config = Config {
        path: folder("spool"),
        exclude: Vec::new(),
        age_max: Duration::from_hours(24),
        bytes_max: ByteSize(1 << 30),
        to: "http://127.0.0.1:1/push".parse().unwrap(),
        token_file: folder("token"),
        needs_token_file: false,
        store_dir: StoreDir::parse(folder("store").to_str().unwrap()).unwrap(),
        nix_state_dir: folder("var/nix"),
    };
    (top, config)
}

/// A store path of this name.
pub(super) fn path(name: &str) -> StorePath {
    StorePath::parse(&format!("9d82wl65gr2phigksgzzimbdf176rx4c-{name}")).unwrap()
}

/// What waits since then.
pub(super) fn entry(noted_s: u64, name: &str) -> Entry {
    Entry { noted_s, path: path(name) }
}

/// The full path of an output of this name, which is made.
pub(super) fn in_store(config: &Config, name: &str) -> String {
    let full = config.store_dir.join(&path(name));
    std::fs::write(&full, name).unwrap();
    full
}
