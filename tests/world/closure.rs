//! The closure that `tests/parts/closure` made: real store paths, signed, as three binary caches.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::parts;

/// More than a hundred store paths and where their caches lie.
pub(crate) struct Closure {
    folder: PathBuf,
    /// Full store paths, all of them.
    pub(crate) paths: Vec<String>,
    /// The store path that refers to all the others.
    pub(crate) top: String,
    /// `name:base64`.
    pub(crate) public_key: String,
}

impl Closure {
    /// None: the test was noted as skipped and must return.
    pub(crate) fn get() -> Option<Self> {
        let folder = parts::part("closure")?;
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let paths: Vec<String> = read("paths").lines().map(str::to_owned).collect();
        assert!(paths.len() >= 100, "the closure has {} paths only", paths.len());
        let (top, public_key) =
            (read("top").trim().to_owned(), read("key.public").trim().to_owned());
        Some(Self { folder, paths, top, public_key })
    }

    /// The folder of the binary cache in this compression: `xz`, `zstd` or `none`.
    pub(crate) fn cache(&self, compression: &str) -> PathBuf {
        self.folder.join(compression)
    }

    /// The same as an upstream's URL.
    pub(crate) fn cache_url(&self, compression: &str) -> String {
        format!("file://{}", self.cache(compression).display())
    }

    /// The expression that the closure was built from.
    pub(crate) fn expression(&self) -> PathBuf {
        self.folder.join("closure.nix")
    }

    /// The store path with this name, such as `node-42`, `large`, `twin-a`.
    pub(crate) fn path(&self, name: &str) -> &str {
        let found = self.paths.iter().find(|path| name_of(path) == name);
        found.unwrap_or_else(|| panic!("the closure has no {name}"))
    }

    /// The store path hash of the store path with this name.
    pub(crate) fn hash(&self, name: &str) -> &str {
        hash_of(self.path(name))
    }

    /// What `nix-store --dump` gave for a full store path.
    pub(crate) fn nar(&self, path: &str) -> Vec<u8> {
        fs::read(self.folder.join("dump").join(format!("{}.nar", hash_of(path)))).unwrap()
    }

    /// The narinfo of a path as the cache in this compression has it.
    pub(crate) fn narinfo(&self, compression: &str, store_path_hash: &str) -> Narinfo {
        let file = self.cache(compression).join(format!("{store_path_hash}.narinfo"));
        Narinfo::parse(&fs::read(file).unwrap())
    }
}

/// `/nix/store/<hash>-<name>`: the hash.
pub(crate) fn hash_of(path: &str) -> &str {
    let base_name = path.strip_prefix("/nix/store/").unwrap();
    base_name.split_once('-').unwrap().0
}

/// `/nix/store/<hash>-<name>`: the name.
pub(crate) fn name_of(path: &str) -> &str {
    path.split_once('-').unwrap().1
}

/// A narinfo read by the tests' own eyes: keys and values, nothing believed.
#[derive(Debug, Clone)]
pub(crate) struct Narinfo(BTreeMap<String, Vec<String>>);

impl Narinfo {
    pub(crate) fn parse(text: &[u8]) -> Self {
        let text = std::str::from_utf8(text).unwrap();
        assert!(text.ends_with('\n'), "a narinfo whose last line does not end: {text:?}");
        let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in text.lines() {
            let (key, value) = line.split_once(": ").unwrap_or_else(|| panic!("line {line:?}"));
            fields.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        Self(fields)
    }

    /// The value of a key that is there exactly once.
    pub(crate) fn field(&self, key: &str) -> &str {
        match self.0.get(key).map(Vec::as_slice) {
            Some([value]) => value,
            other => panic!("{key} is {other:?} in {:?}", self.0),
        }
    }

    /// All values of a key.
    pub(crate) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }
}
