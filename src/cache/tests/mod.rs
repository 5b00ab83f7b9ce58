//! The state machine with real parts on both sides: a store in a folder, upstreams on loopback
//! that follow a script. The servers' own counts are the oracle.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::stall::Patience;
use super::*;
use crate::nix::nar::Node;
use crate::nix::{Compression, FileHash, NarInfo, SecretKey, StorePath};
use crate::store::disk;
use crate::units::ByteSize;

mod faults;
mod nars;
mod narinfos;
mod scrub;
mod server;

use server::{Answer, Server};

/// Long enough for a loaded machine, short enough to be waited for.
const SILENCE: Duration = Duration::from_millis(400);

/// A cache with its store, its upstreams and the key that signs there.
struct World {
    cache: Cache,
    store: Store,
    servers: Vec<Server>,
    key: SecretKey,
    dir: TempDir,
}

/// One path as an upstream has it.
#[derive(Clone)]
struct Published {
    narinfo: NarInfo,
    nar: Vec<u8>,
    file: Bytes,
}

impl Published {
    fn key(&self) -> StorePathHash {
        self.narinfo.store_path.hash()
    }

    fn name(&self) -> NarName {
        NarName { nar_hash: self.narinfo.nar_hash, key: self.key() }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn store_path(name: &str) -> StorePath {
    let mut hash = [0; 20];
    hash.copy_from_slice(&sha256(name.as_bytes())[..20]);
    StorePath::parse(&format!("{}-{name}", StorePathHash::from_bytes(hash))).unwrap()
}

/// Bytes that do not compress well, from a seed.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..len).map(|_| step()).collect()
}

fn pack(compression: Compression, nar: &[u8]) -> Bytes {
    match compression {
        Compression::Xz => {
            let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
            std::io::Write::write_all(&mut xz, nar).unwrap();
            xz.finish().unwrap().into()
        }
        Compression::Zstd => zstd::stream::encode_all(nar, 1).unwrap().into(),
        Compression::None | Compression::Bzip2 | Compression::Gzip | Compression::Br => {
            nar.to_vec().into()
        }
    }
}

impl World {
    /// With so many upstreams and room for everything.
    async fn new(servers: usize) -> Self {
        Self::with_budget(servers, 256 << 20).await
    }

    async fn with_budget(servers: usize, budget_bytes: u64) -> Self {
        let mut running = Vec::new();
        for _ in 0..servers {
            running.push(Server::start().await);
        }
        let key = SecretKey::from_seed("test-1", [9; 32]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let path = dir.path().join("store");
        std::fs::create_dir(&path).unwrap();
        let config = store::Config {
            path: Some(path.clone()),
            budget: Some(ByteSize(budget_bytes)),
            ..store::Config::default()
        };
        let folder = Arc::new(disk::Folder { path });
        let store = Store::start(config, folder, metrics.clone()).unwrap();
        assert_eq!(store.first_opened().await, store::State::Open);
        let cache = open(&store, &running, &key, metrics);
        Self { cache, store, servers: running, key, dir }
    }

    /// A cache over the same store that remembers nothing: after a restart.
    fn restarted(&self) -> Cache {
        open(&self.store, &self.servers, &self.key, Metrics::new())
    }

    /// Makes a path and puts it at this upstream.
    fn publish(&self, server: usize, name: &str, contents: Vec<u8>, as_: Compression) -> Published {
        let published = self.make(name, contents, as_, Vec::new());
        self.put(server, &published);
        published
    }

    fn make(
        &self,
        name: &str,
        contents: Vec<u8>,
        compression: Compression,
        mut references: Vec<StorePath>,
    ) -> Published {
        references.sort();
        let nar = Node::File { executable: false, contents }.to_nar();
        let file = pack(compression, &nar);
        let file_hash = FileHash::from_bytes(sha256(&file));
        let mut narinfo = NarInfo {
            store_path: store_path(name),
            url: format!("nar/{}.nar{}", file_hash.to_nix32(), compression.extension()),
            compression,
            file_hash: Some(file_hash),
            file_size: Some(file.len() as u64),
            nar_hash: NarHash::from_bytes(sha256(&nar)),
            nar_size: nar.len() as u64,
            references,
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        self.sign(&mut narinfo);
        Published { narinfo, nar, file }
    }

    fn sign(&self, narinfo: &mut NarInfo) {
        let fingerprint = narinfo.fingerprint(&StoreDir::default());
        narinfo.signatures = vec![self.key.sign(&fingerprint)];
    }

    fn put(&self, server: usize, published: &Published) {
        self.put_narinfo(server, &published.narinfo);
        self.servers[server].set(&published.narinfo.url, Answer::Whole(published.file.clone()));
    }

    fn put_narinfo(&self, server: usize, narinfo: &NarInfo) {
        let text = narinfo.print(&StoreDir::default());
        let path = format!("{}.narinfo", narinfo.store_path.hash());
        self.servers[server].set(&path, Answer::Whole(text.into()));
    }

    async fn whole(&self, published: &Published) -> Result<Option<Vec<u8>>, Cut> {
        whole(&self.cache, published.name()).await
    }

    /// The NAR comes, and is what was published.
    async fn expect_whole(&self, published: &Published) {
        let nar = self.whole(published).await.unwrap().expect("the NAR is to be had");
        assert!(nar == published.nar, "another NAR came");
    }

    /// The narinfo comes; it is given back parsed.
    async fn expect_narinfo(&self, published: &Published) -> NarInfo {
        expect_narinfo(&self.cache, published).await
    }

    /// The narinfo has its file hash: who has the NAR's last byte finds it.
    async fn expect_held(&self, published: &Published) -> NarInfo {
        let narinfo = self.expect_narinfo(published).await;
        assert!(narinfo.file_hash.is_some());
        narinfo
    }

    async fn close(self) {
        self.cache.close().await;
        self.store.close().await;
        drop(self.dir);
    }
}

fn open(store: &Store, servers: &[Server], key: &SecretKey, metrics: Metrics) -> Cache {
    let store_dir = StoreDir::default();
    let public = format!("{}", PublicText(key));
    let upstreams = servers.iter().map(|server| {
        let config = upstream::Config {
            url: server.url.clone(),
            trusted_public_keys: vec![public.clone()],
            unsigned: false,
            ca_file: None,
            credentials_file: None,
            netrc_file: None,
            headers_file: None,
            push: false,
            limit: None,
        };
        Upstream::new(&config, &store_dir, &metrics).unwrap()
    });
    let upstreams = upstreams.collect();
    let config = Config {
        compression_level: 3,
        codec_memory_bytes: 48 << 20,
        unpack_bytes_max: 160 << 20,
        store_dir: store_dir.clone(),
        own_keys: Vec::new(),
        signer: None,
        scrub_every: None,
    };
    Cache::patient(config, store.clone(), upstreams, metrics, Patience { silence: SILENCE })
}

/// A public key as the configuration has it.
struct PublicText<'a>(&'a SecretKey);

impl std::fmt::Display for PublicText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.public())
    }
}

async fn expect_narinfo(cache: &Cache, published: &Published) -> NarInfo {
    let text = match cache.narinfo(published.key()).await {
        Outcome::Hit(text) | Outcome::Miss(text) => text,
        Outcome::Absent => panic!("the narinfo is to be had"),
    };
    let narinfo = NarInfo::parse(&text, &StoreDir::default()).unwrap();
    assert_eq!(narinfo.url, published.name().to_string());
    assert_eq!(narinfo.compression, Compression::Zstd);
    assert_eq!(narinfo.signatures, published.narinfo.signatures);
    narinfo
}

/// The NAR by its name, unpacked; `None` when it is absent.
async fn whole(cache: &Cache, name: NarName) -> Result<Option<Vec<u8>>, Cut> {
    let mut file = Vec::new();
    match cache.nar(name, NarWant::Whole).await {
        NarAnswer::Absent => return Ok(None),
        NarAnswer::Held(held) | NarAnswer::Filled(held) => loop {
            let bytes = held.read(file.len() as u64).await.unwrap();
            if bytes.is_empty() {
                break;
            }
            file.extend_from_slice(&bytes);
        },
        NarAnswer::Filling(mut stream) => {
            while let Some(bytes) = stream.chunk().await? {
                file.extend_from_slice(&bytes);
            }
        }
    }
    Ok(Some(zstd::stream::decode_all(file.as_slice()).unwrap()))
}
