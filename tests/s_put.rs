//! Real S3 servers and a folder as push targets: what is put is there, whole; what fails leaves
//! nothing; a bucket is set up by steps that may be done again.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

mod world;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use sha2::{Digest as _, Sha256};
use snowberry::metrics::Metrics;
use snowberry::nix::{FileHash, StoreDir};
use snowberry::upstream::{
    BucketAdmin, Config, DOCUMENT_LEN_MAX, Error, Object, Setback, Source, Step, StepError,
    Upstream, user_policy,
};
use world::s3::{Kind, S3Server};
use world::until;

const MIB: u64 = 1024 * 1024;

/// How long a new policy may take to hold; gateways look at theirs now and then.
const POLICY_LIMIT: Duration = Duration::from_secs(10);

/// As many bytes as are asked for, other ones for each seed, and trouble at a place.
struct Made {
    block: Bytes,
    fails_at: u64,
}

impl Made {
    fn new(seed: u8) -> Self {
        let mut next = u32::from(seed) + 1;
        // A prime, so that no two parts of an upload are alike.
        let block = (0..1_048_583).map(|_| {
            next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            next.to_be_bytes()[0]
        });
        Self { block: block.collect(), fails_at: u64::MAX }
    }

    fn piece(&self, from: u64, to: u64) -> Bytes {
        let at = usize::try_from(from).unwrap() % self.block.len();
        let len = usize::try_from(to - from).unwrap().min(self.block.len() - at);
        self.block.slice(at..at + len)
    }

    fn sha256(&self, len: u64) -> [u8; 32] {
        let mut sha256 = Sha256::new();
        let mut at = 0;
        while at < len {
            let piece = self.piece(at, len);
            sha256.update(&piece);
            at += u64::try_from(piece.len()).unwrap();
        }
        sha256.finalize().into()
    }

    async fn put(&self, target: &Upstream, len: u64) -> Result<String, Error> {
        let sha256 = FileHash::from_bytes(self.sha256(len));
        let key = format!("nar/{}.nar.zst", sha256.to_nix32());
        let content_type = "application/x-nix-nar";
        target.put(Object { key: &key, content_type, len, sha256, source: self }).await?;
        Ok(key)
    }
}

impl Source for Made {
    fn read(&self, from: u64, to: u64) -> BoxStream<'_, io::Result<Bytes>> {
        stream::unfold(from, move |at| async move {
            if at >= to {
                return None;
            }
            if at >= self.fails_at {
                return Some((Err(io::ErrorKind::Other.into()), to));
            }
            let piece = self.piece(at, to.min(at + 255 * 1024));
            let next = at + u64::try_from(piece.len()).unwrap();
            Some((Ok(piece), next))
        })
        .boxed()
    }
}

fn config(url: &str, table: &str) -> Config {
    let table = table.replace(", ", "\n");
    toml::from_str(&format!("url = {url:?}\nunsigned = true\npush = true\n{table}")).unwrap()
}

fn open(config: &Config) -> Upstream {
    Upstream::new(config, &StoreDir::default(), &Metrics::new()).unwrap()
}

fn target(server: &S3Server, profile: &str) -> Upstream {
    open(&config(&server.url(profile), &server.table(profile)))
}

fn admin(server: &S3Server, profile: &str, bucket: &str) -> BucketAdmin {
    let url = server.url(profile).replace("s3://nix-cache?", &format!("s3://{bucket}?"));
    BucketAdmin::new(&config(&url, &server.table(profile))).unwrap()
}

async fn read_back(target: &Upstream, key: &str) -> ([u8; 32], u64) {
    let mut body = target.nar(key, None).await.unwrap().expect("what was put is there");
    let (mut sha256, mut len) = (Sha256::new(), 0);
    while let Some(chunk) = body.chunk().await.unwrap() {
        sha256.update(&chunk);
        len += u64::try_from(chunk.len()).unwrap();
    }
    (sha256.finalize().into(), len)
}

/// What a target must do, whatever it is.
async fn takes_all_that_is_put(target: &Upstream) {
    for text in ["the first text", "another, and longer", ""] {
        target.put_small("x.narinfo", "text/x-nix-narinfo", text.into()).await.unwrap();
        assert_eq!(target.document("x.narinfo", DOCUMENT_LEN_MAX).await.unwrap().unwrap(), text);
        let head = target.head("x.narinfo").await.unwrap().unwrap();
        assert_eq!(head.len, u64::try_from(text.len()).unwrap());
    }
    assert_eq!(target.head("y.narinfo").await.unwrap(), None);
    target.put_small("log/a+b c~d!.drv", "text/plain", "log".into()).await.unwrap();
    assert_eq!(
        target.document("log/a+b c~d!.drv", DOCUMENT_LEN_MAX).await.unwrap().unwrap(),
        "log"
    );

    for (seed, len) in [(1, 1), (2, 63 * MIB), (3, 200 * MIB)] {
        let made = Made::new(seed);
        let key = made.put(target, len).await.unwrap();
        let head = target.head(&key).await.unwrap().unwrap();
        assert_eq!(head.len, len);
        assert!(head.modified.is_some());
        assert_eq!(read_back(target, &key).await, (made.sha256(len), len));
    }
    let again = Made::new(1).put(target, 1).await;
    again.unwrap();

    let broken = Made { fails_at: 100 * MIB, ..Made::new(4) };
    let error = broken.put(target, 200 * MIB).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Source, "{error}");
    let key = format!("nar/{}.nar.zst", FileHash::from_bytes(broken.sha256(200 * MIB)).to_nix32());
    assert_eq!(target.head(&key).await.unwrap(), None);
}

/// No upload of the broken NAR is left in the bucket.
fn no_upload_is_left(server: &S3Server) {
    let sha256 = FileHash::from_bytes(Made::new(4).sha256(200 * MIB));
    let key = format!("s3/nix-cache/nar/{}.nar.zst", sha256.to_nix32());
    let listed = server.mc(&["ls", "--incomplete", &key]);
    assert!(listed.trim().is_empty(), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn minio_takes_what_the_guides_user_puts() {
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let target = target(&minio, "nixbuilder");
    takes_all_that_is_put(&target).await;
    no_upload_is_left(&minio);
    let head = target.head("x.narinfo").await.unwrap().unwrap();
    let left = head.expires.unwrap().duration_since(head.modified.unwrap()).unwrap();
    assert!((29..=32).contains(&(left.as_secs() / 86_400)), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_takes_what_the_guides_user_puts() {
    let Some(server) = S3Server::start(Kind::SeaweedFs).await else { return };
    takes_all_that_is_put(&target(&server, "nixbuilder")).await;
    no_upload_is_left(&server);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_juicefs_gateway_takes_what_is_put() {
    let Some(server) = S3Server::start(Kind::JuiceFs).await else { return };
    takes_all_that_is_put(&target(&server, "nixbuilder")).await;
    no_upload_is_left(&server);
}

#[tokio::test]
async fn a_folder_that_was_set_up_takes_what_is_put() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("stick/cache");
    let config = config(&format!("file://{}", root.display()), "");
    let target = open(&config);
    let error = Made::new(1).put(&target, 1).await.unwrap_err();
    assert!(matches!(error, Error::NotACache { .. }), "{error}");
    assert!(!root.exists());

    let admin = BucketAdmin::new(&config).unwrap();
    assert_eq!(admin.bucket(), None);
    for step in [Step::Done, Step::WasThere] {
        assert_eq!(admin.create().await.unwrap(), step);
        assert_eq!(admin.put_cache_info(&StoreDir::default()).await.unwrap(), step);
    }
    let other = StoreDir::parse("/other/store").unwrap();
    let error = admin.put_cache_info(&other).await.unwrap_err();
    assert!(matches!(error, StepError::Differs { .. }), "{error}");
    assert!(matches!(admin.allow_public_read().await, Err(StepError::Folder { .. })));
    assert!(matches!(admin.expire_after(30).await, Err(StepError::Folder { .. })));
    takes_all_that_is_put(&target).await;
    assert!(target.cache_info().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_minio_refuses_is_told_apart() {
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let refused = async |target: &Upstream, code: &str| {
        for len in [3, 60 * MIB, 65 * MIB] {
            let error = Made::new(9).put(target, len).await.unwrap_err();
            assert_eq!(error.setback(), Setback::Target, "{len}: {error:?}");
            assert!(error.to_string().contains(code), "{len}: {error}");
        }
    };
    let wrong = target(&minio, "wrong");
    refused(&wrong, "SignatureDoesNotMatch").await;
    let error = wrong.head("x.narinfo").await.unwrap_err();
    assert_eq!(error.setback(), Setback::Target, "{error}");
    refused(&target(&minio, ""), "AccessDenied").await;
    let url = minio.url("admin").replace("s3://nix-cache?", "s3://no-such-bucket?");
    refused(&open(&config(&url, &minio.table("admin"))), "NoSuchBucket").await;

    let target = target(&minio, "nixbuilder");
    let error = target.put_small(&"x".repeat(1100), "text/plain", "x".into()).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Object, "{error}");
}

/// The steps of a bucket that is not there yet; `expires` says whether objects can expire there.
async fn is_set_up_by_steps(server: &S3Server, expires: bool) {
    let admin = admin(server, "admin", "new-cache");
    assert_eq!(admin.bucket(), Some("new-cache"));
    for step in [Step::Done, Step::WasThere] {
        assert_eq!(admin.create().await.unwrap(), step);
        assert_eq!(admin.put_cache_info(&StoreDir::default()).await.unwrap(), step);
        assert_eq!(admin.allow_public_read().await.unwrap(), step);
        if expires {
            assert_eq!(admin.expire_after(30).await.unwrap(), step);
        }
    }
    let error = admin.put_cache_info(&StoreDir::parse("/other/store").unwrap()).await.unwrap_err();
    assert!(matches!(error, StepError::Differs { .. }), "{error}");
    if expires {
        let error = admin.expire_after(60).await.unwrap_err();
        assert!(matches!(error, StepError::Differs { .. }), "{error}");
        assert!(error.hint().contains("mc ilm rule"), "{}", error.hint());
    } else {
        let error = admin.expire_after(30).await.unwrap_err();
        assert_eq!(error.status(), Some(501), "{error:?}");
        assert!(!error.hint().is_empty());
    }
    let url = server.url("").replace("s3://nix-cache?", "s3://new-cache?");
    let anybody = open(&config(&url, &server.table("")));
    until("the policy to hold", POLICY_LIMIT, || async { anybody.cache_info().await.ok() }).await;
    assert_eq!(anybody.document("y.narinfo", DOCUMENT_LEN_MAX).await.unwrap(), None);
    let error = anybody.put_small("y.narinfo", "text/plain", "x".into()).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Target, "{error}");
}

/// What `mc` set up already is recognised.
async fn what_mc_did_is_recognised(server: &S3Server) {
    let admin = admin(server, "admin", "nix-cache");
    assert_eq!(admin.create().await.unwrap(), Step::WasThere);
    assert_eq!(admin.put_cache_info(&StoreDir::default()).await.unwrap(), Step::WasThere);
    assert_eq!(admin.allow_public_read().await.unwrap(), Step::WasThere);
}

#[tokio::test(flavor = "multi_thread")]
async fn minio_is_set_up_by_steps() {
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    is_set_up_by_steps(&minio, true).await;
    what_mc_did_is_recognised(&minio).await;
    let owner = admin(&minio, "admin", "nix-cache");
    assert_eq!(owner.expire_after(30).await.unwrap(), Step::WasThere);
    minio.mc(&["anonymous", "set", "upload", "s3/nix-cache"]);
    let error = owner.allow_public_read().await.unwrap_err();
    assert!(matches!(error, StepError::Differs { .. }), "{error}");

    let nowhere = admin(&minio, "admin", "no-such-bucket");
    let error = nowhere.put_cache_info(&StoreDir::default()).await.unwrap_err();
    assert_eq!(error.code(), "NoSuchBucket", "{error:?}");
    assert!(error.hint().contains("create it first"), "{}", error.hint());

    // Whoever pushes may not do any of it, and is told how it is done.
    let builder = admin(&minio, "nixbuilder", "nix-cache");
    let error = builder.allow_public_read().await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(403), "AccessDenied"), "{error:?}");
    assert!(error.hint().contains("mc anonymous set download ALIAS/nix-cache"), "{}", error.hint());
    let error = builder.expire_after(30).await.unwrap_err();
    assert!(error.hint().contains("mc ilm rule add"), "{}", error.hint());
    let stranger = admin(&minio, "wrong", "nix-cache");
    let error = stranger.create().await.unwrap_err();
    assert_eq!(error.code(), "SignatureDoesNotMatch", "{error:?}");
    assert!(error.hint().contains("keys"), "{}", error.hint());
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_is_set_up_by_steps() {
    let Some(server) = S3Server::start(Kind::SeaweedFs).await else { return };
    is_set_up_by_steps(&server, true).await;
    what_mc_did_is_recognised(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_juicefs_gateway_is_set_up_by_steps() {
    let Some(server) = S3Server::start(Kind::JuiceFs).await else { return };
    is_set_up_by_steps(&server, false).await;
    what_mc_did_is_recognised(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_policy_that_is_printed_is_enough_for_minio() {
    let Some(minio) = S3Server::start(Kind::Minio).await else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), user_policy("nix-cache")).unwrap();
    let path = file.path().display().to_string();
    minio.mc(&["admin", "policy", "create", "s3", "printed", &path]);
    minio.mc(&["admin", "policy", "detach", "s3", "nix-cache-write", "--user", "nixbuilder"]);
    minio.mc(&["anonymous", "set", "none", "s3/nix-cache"]);
    let target = target(&minio, "nixbuilder");
    let error = target.put_small("x.narinfo", "text/plain", "x".into()).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Target, "{error}");
    minio.mc(&["admin", "policy", "attach", "s3", "printed", "--user", "nixbuilder"]);
    takes_all_that_is_put(&target).await;
    no_upload_is_left(&minio);
}
