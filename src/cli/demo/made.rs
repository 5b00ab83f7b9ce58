//! What the demonstration is about: store paths made on the spot, and a folder that is a cache of
//! them as `nix copy --to file://` would leave it.

use std::fs;
use std::path::Path;

use anyhow::Context;
use sha2::{Digest as _, Sha256};

use crate::nix::nar::Node;
use crate::nix::{
    Compression, FileHash, NarHash, NarInfo, SecretKey, Signature, StoreDir, StorePath,
};

/// What a folder must say to be a cache.
const CACHE_INFO: &str = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n";

/// A store path with its NAR, which is kept as it is.
pub(super) struct Made {
    pub(super) store_path: StorePath,
    pub(super) nar: Vec<u8>,
    references: Vec<StorePath>,
}

impl Made {
    /// A path whose NAR has about `len` bytes, half of them noise, and refers to these others.
    pub(super) fn new(name: &str, len: usize, references: &[&Self]) -> anyhow::Result<Self> {
        let mut contents = vec![b'.'; len];
        getrandom::fill(contents.split_at_mut(len / 2).0).context("draw random bytes")?;
        let file = Node::File { executable: false, contents };
        let nar = Node::Directory([(name.as_bytes().to_vec(), file)].into()).to_nar();
        let hash = NarHash::from_bytes(Sha256::digest(&nar).into()).to_nix32();
        // 32 characters of any hash name a path.
        let hash = hash.get(..32).context("name a path")?;
        let store_path = StorePath::parse(&format!("{hash}-{name}")).context("name a path")?;
        let mut references: Vec<_> = references.iter().map(|it| it.store_path.clone()).collect();
        references.sort_unstable();
        Ok(Self { store_path, nar, references })
    }

    /// Where its NAR lies in a cache.
    pub(super) fn file_url(&self) -> String {
        format!("nar/{}.nar", self.file_hash().to_nix32())
    }

    fn file_hash(&self) -> FileHash {
        FileHash::from_bytes(Sha256::digest(&self.nar).into())
    }

    /// Its narinfo, signed where there is a key.
    pub(super) fn narinfo(&self, key: Option<&SecretKey>) -> String {
        let store_dir = StoreDir::default();
        let len = u64::try_from(self.nar.len()).unwrap_or(u64::MAX);
        let mut narinfo = NarInfo {
            store_path: self.store_path.clone(),
            url: self.file_url(),
            compression: Compression::None,
            file_hash: Some(self.file_hash()),
            file_size: Some(len),
            nar_hash: NarHash::from_bytes(Sha256::digest(&self.nar).into()),
            nar_size: len,
            references: self.references.clone(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        let fingerprint = narinfo.fingerprint(&store_dir);
        let signatures: Vec<Signature> = key.iter().map(|key| key.sign(&fingerprint)).collect();
        narinfo.signatures = signatures;
        narinfo.print(&store_dir)
    }
}

/// Makes a folder a cache of these paths, signed by `key`.
pub(super) fn cache(folder: &Path, paths: &[Made], key: &SecretKey) -> anyhow::Result<()> {
    let written = || -> std::io::Result<()> {
        fs::create_dir_all(folder.join("nar"))?;
        fs::write(folder.join("nix-cache-info"), CACHE_INFO)?;
        for made in paths {
            fs::write(folder.join(made.file_url()), &made.nar)?;
            let name = format!("{}.narinfo", made.store_path.hash());
            fs::write(folder.join(name), made.narinfo(Some(key)))?;
        }
        Ok(())
    };
    written().with_context(|| format!("make a cache in {}", folder.display()))
}
