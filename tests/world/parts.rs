//! Where the real parts are, and what a test does without one: it fails where nothing may be
//! skipped, and else says so past libtest's capture and notes itself for `tests/run` to count.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder in which `tests/run` keeps the parts.
pub(crate) fn cache() -> PathBuf {
    env::var_os("SNOWBERRY_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache"), PathBuf::from)
}

/// A script of `tests/parts`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts").join(name)
}

/// A file or folder of a part, such as `minio/mc`, unless it is missing: then the test must
/// return at once.
pub(crate) fn part(name: &str) -> Option<PathBuf> {
    let path = cache().join(name);
    present(name, path)
}

/// A program of the system.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/usr/bin").join(name));
    present(name, path)
}

fn present(name: &str, path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let set = |key| env::var(key).is_ok_and(|value| value == "1" || value == "true");
    assert!(
        !set("CI") && !set("SNOWBERRY_TEST_ALL"),
        "{name} is missing ({}), and nothing may be skipped here",
        path.display()
    );
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("SKIPPED {test}: no {name}, `tests/run` obtains it\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
    if let Some(skips) = env::var_os("SNOWBERRY_TEST_SKIPS") {
        let mut file = OpenOptions::new().create(true).append(true).open(skips).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
    None
}
