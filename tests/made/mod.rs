//! Store paths made on the spot by the project's own NAR writer and signed by a key of the tests,
//! in folders that are binary caches. No Nix is needed, and each test has NARs of the size, the
//! codec and the references that it wants.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use snowberry::nix::nar::Node;
use snowberry::nix::{
    Compression, FileHash, NarHash, NarInfo, NarName, SecretKey, StoreDir, StorePath, StorePathHash,
};
use tempfile::TempDir;

/// The secret key of the caches made here.
pub(crate) fn key() -> SecretKey {
    SecretKey::from_seed("made-1", [7; 32]).unwrap()
}

/// Its public half, `name:base64`.
pub(crate) fn public_key() -> String {
    key().public().to_string()
}

/// One store path: its NAR, and the file in which a cache has it.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) store_path: StorePath,
    pub(crate) nar: Vec<u8>,
    pub(crate) file: Vec<u8>,
    pub(crate) compression: Compression,
    pub(crate) references: Vec<StorePath>,
}

impl Made {
    /// A path whose NAR holds `len` bytes of noise (no codec makes it smaller), as xz. The same
    /// name and length give the same NAR.
    pub(crate) fn noise(name: &str, len: usize) -> Self {
        Self::of(name, noise(name, len))
    }

    /// A path whose NAR holds `len` bytes, half of them noise, so that codecs have something to do.
    pub(crate) fn mixed(name: &str, len: usize) -> Self {
        let mut contents = noise(name, len);
        contents.chunks_mut(512).step_by(2).for_each(|chunk| chunk.fill(b's'));
        Self::of(name, contents)
    }

    /// A path whose NAR is so long and hardly anything packed, as zstd.
    pub(crate) fn packed_zeros(name: &str, len: usize) -> Self {
        let mut contents = vec![0; len];
        let noise = noise(name, len.min(1000));
        contents.iter_mut().zip(noise).for_each(|(to, from)| *to = from);
        let file = Node::File { executable: false, contents };
        let nar = Node::Directory([(b"file".to_vec(), file)].into()).to_nar();
        Self {
            store_path: store_path(name),
            file: encode(&nar, Compression::Zstd),
            nar,
            compression: Compression::Zstd,
            references: Vec::new(),
        }
    }

    fn of(name: &str, contents: Vec<u8>) -> Self {
        let file = Node::File { executable: false, contents };
        let nar = Node::Directory([(b"file".to_vec(), file)].into()).to_nar();
        Self {
            store_path: store_path(name),
            file: encode(&nar, Compression::Xz),
            nar,
            compression: Compression::Xz,
            references: Vec::new(),
        }
    }

    /// The same NAR under another store path.
    pub(crate) fn twin(&self, name: &str) -> Self {
        Self { store_path: store_path(name), ..self.clone() }
    }

    /// The same path in another codec.
    pub(crate) fn packed(self, compression: Compression) -> Self {
        let file = encode(&self.nar, compression);
        Self { file, compression, ..self }
    }

    /// The same path in this file, whatever it is.
    pub(crate) fn in_file(self, file: Vec<u8>) -> Self {
        Self { file, ..self }
    }

    /// The same path with these references.
    pub(crate) fn referring_to(self, others: &[&Self]) -> Self {
        let mut references: Vec<_> = others.iter().map(|made| made.store_path.clone()).collect();
        references.sort_unstable();
        Self { references, ..self }
    }

    pub(crate) fn store_path_hash(&self) -> StorePathHash {
        self.store_path.hash()
    }

    pub(crate) fn nar_hash(&self) -> NarHash {
        NarHash::from_bytes(Sha256::digest(&self.nar).into())
    }

    pub(crate) fn file_hash(&self) -> FileHash {
        FileHash::from_bytes(Sha256::digest(&self.file).into())
    }

    /// Where its narinfo is asked, at every cache.
    pub(crate) fn narinfo_url(&self) -> String {
        format!("/{}.narinfo", self.store_path_hash())
    }

    /// Where its NAR file lies in the caches made here.
    pub(crate) fn file_url(&self) -> String {
        format!("nar/{}.nar{}", self.file_hash().to_nix32(), self.compression.extension())
    }

    /// Where every snowberry has its NAR.
    pub(crate) fn nar_url(&self) -> String {
        format!("/{}", NarName { nar_hash: self.nar_hash(), key: self.store_path_hash() })
    }

    /// Its narinfo, signed.
    pub(crate) fn narinfo(&self) -> NarInfo {
        self.narinfo_at(&self.file_url())
    }

    /// The same with another URL, which no signature covers.
    pub(crate) fn narinfo_at(&self, url: &str) -> NarInfo {
        let mut narinfo = NarInfo {
            store_path: self.store_path.clone(),
            url: url.to_owned(),
            compression: self.compression,
            file_hash: Some(self.file_hash()),
            file_size: Some(self.file.len().try_into().unwrap()),
            nar_hash: self.nar_hash(),
            nar_size: self.nar.len().try_into().unwrap(),
            references: self.references.clone(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        narinfo.signatures.push(key().sign(&narinfo.fingerprint(&StoreDir::default())));
        narinfo
    }

    /// Its narinfo's text.
    pub(crate) fn narinfo_text(&self) -> String {
        self.narinfo().print(&StoreDir::default())
    }

    /// Whether this is a zstd stream of exactly its NAR.
    pub(crate) fn is_in(&self, zstd_stream: &[u8]) -> bool {
        zstd::decode_all(zstd_stream).is_ok_and(|nar| nar == self.nar)
    }
}

/// A folder that is a binary cache; gone when dropped.
pub(crate) struct MadeCache {
    folder: TempDir,
    below: PathBuf,
}

impl MadeCache {
    /// With these paths in it.
    pub(crate) fn of<'a>(paths: impl IntoIterator<Item = &'a Made>) -> Self {
        Self::below("", paths)
    }

    /// The same in a folder below its own, as a bucket is seen by its first part of a path.
    pub(crate) fn below<'a>(bucket: &str, paths: impl IntoIterator<Item = &'a Made>) -> Self {
        let folder = TempDir::new().unwrap();
        let below = folder.path().join(bucket);
        fs::create_dir_all(below.join("nar")).unwrap();
        let cache_info = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 50\n";
        fs::write(below.join("nix-cache-info"), cache_info).unwrap();
        let cache = Self { folder, below };
        paths.into_iter().for_each(|made| cache.add(made));
        cache
    }

    /// What a server serves.
    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file_url(&self) -> String {
        format!("file://{}", self.below.display())
    }

    /// A file of it by its URL relative to the cache.
    pub(crate) fn path(&self, url: &str) -> PathBuf {
        self.below.join(url.trim_start_matches('/'))
    }

    pub(crate) fn add(&self, made: &Made) {
        fs::write(self.path(&made.file_url()), &made.file).unwrap();
        fs::write(self.path(&made.narinfo_url()), made.narinfo_text()).unwrap();
    }

    /// The path with a narinfo that names this URL; the NAR file itself is not written.
    pub(crate) fn add_narinfo_at(&self, made: &Made, url: &str) {
        let text = made.narinfo_at(url).print(&StoreDir::default());
        fs::write(self.path(&made.narinfo_url()), text).unwrap();
    }

    pub(crate) fn remove_nar(&self, made: &Made) {
        fs::remove_file(self.path(&made.file_url())).unwrap();
    }

    pub(crate) fn remove_narinfo(&self, made: &Made) {
        fs::remove_file(self.path(&made.narinfo_url())).unwrap();
    }
}

fn store_path(name: &str) -> StorePath {
    let digest: [u8; 32] = Sha256::digest(name).into();
    let hash = StorePathHash::from_bytes(*digest.first_chunk().unwrap());
    StorePath::parse(&format!("{hash}-{name}")).unwrap()
}

/// Bytes without any pattern, the same ones for the same seed.
pub(crate) fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut dice = Dice::of(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(dice.roll().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Numbers that look random and come again with the same seed.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn of(seed: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(seed).into();
        Self(u64::from_le_bytes(*digest.first_chunk().unwrap()) | 1)
    }

    /// Any number (xorshift64*).
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// Small windows and low levels: what the tests are about is not the codec.
pub(crate) fn encode(nar: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => nar.to_vec(),
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
            encoder.write_all(nar).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(nar, 5).unwrap(),
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(nar).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(nar).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Br => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 3, 20);
            encoder.write_all(nar).unwrap();
            encoder.into_inner()
        }
    }
}
