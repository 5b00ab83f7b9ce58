//! Puts to a folder: whole or not at all, and never where no cache is.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use sha2::{Digest as _, Sha256};

use super::{Error, Upstream, upstream};
use crate::nix::FileHash;
use crate::upstream::{Object, Setback, Source};

const NAR: &str = "nar/x.nar.zst";

fn cache() -> (tempfile::TempDir, Upstream) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    let upstream = upstream(&format!("file://{}", folder.path().display()), "push = true");
    (folder, upstream)
}

/// These bytes, or a trouble behind them.
struct Given(Vec<u8>, bool);

impl Source for Given {
    fn read(&self, _: u64, _: u64) -> BoxStream<'_, io::Result<Bytes>> {
        let trouble = self.1.then(|| Err(io::ErrorKind::Other.into()));
        stream::iter([Ok(self.0.clone().into())].into_iter().chain(trouble)).boxed()
    }
}

async fn put(upstream: &Upstream, source: &Given, len: u64, named: &[u8]) -> Result<(), Error> {
    let sha256 = FileHash::from_bytes(Sha256::digest(named).into());
    upstream.put(Object { key: NAR, content_type: "", len, sha256, source }).await
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_put_is_there_whole_and_may_be_put_again() {
    let (folder, upstream) = cache();
    assert!(upstream.is_target());
    for text in ["one", "longer than one", ""] {
        upstream.put_small("x.narinfo", "", text.into()).await.unwrap();
        upstream.put_small("log/ab/cd.drv", "", text.into()).await.unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("x.narinfo")).unwrap(), text);
        assert_eq!(fs::read_to_string(folder.path().join("log/ab/cd.drv")).unwrap(), text);
    }
    let bytes = vec![7; 20 << 20];
    put(&upstream, &Given(bytes.clone(), false), 20 << 20, &bytes).await.unwrap();
    assert!(fs::read(folder.path().join(NAR)).unwrap() == bytes);
    let head = upstream.head(NAR).await.unwrap().unwrap();
    assert_eq!((head.len, head.expires), (20 << 20, None));
    assert!(head.modified.is_some());
    assert_eq!(upstream.head("nar/y").await.unwrap(), None);
    assert_eq!(names(folder.path()), ["log", "nar", "nix-cache-info", "x.narinfo"]);
    assert_eq!(names(&folder.path().join("nar")), ["x.nar.zst"]);
}

#[tokio::test]
async fn what_fails_leaves_nothing_and_what_was_there_stays() {
    let (folder, upstream) = cache();
    upstream.put_small(NAR, "", "old".into()).await.unwrap();
    let bytes = vec![7; 1000];
    for (source, len, named) in [
        (Given(bytes.clone(), true), 2000, &bytes[..]),
        (Given(bytes.clone(), false), 1001, &bytes[..]),
        (Given(bytes.clone(), false), 999, &bytes[..]),
        (Given(bytes.clone(), false), 1000, b"other"),
    ] {
        let error = put(&upstream, &source, len, named).await.unwrap_err();
        assert_eq!(error.setback(), Setback::Source, "{error}");
    }
    assert_eq!(fs::read_to_string(folder.path().join(NAR)).unwrap(), "old");
    assert_eq!(names(&folder.path().join("nar")), ["x.nar.zst"]);
}

#[tokio::test]
async fn a_mount_point_without_its_disk_is_never_written_to() {
    let (folder, upstream) = cache();
    fs::remove_file(folder.path().join("nix-cache-info")).unwrap();
    for key in ["x.narinfo", NAR] {
        let error = upstream.put_small(key, "", "text".into()).await.unwrap_err();
        assert!(matches!(error, Error::NotACache { .. }), "{error}");
        assert_eq!(error.setback(), Setback::Target);
        assert!(matches!(upstream.head(key).await, Err(Error::NotACache { .. })));
    }
    assert!(names(folder.path()).is_empty());
    let gone = folder.path().display().to_string();
    drop(folder);
    let error = upstream.put_small("x", "", "text".into()).await.unwrap_err();
    assert!(matches!(error, Error::NotACache { .. }), "{error}");
    assert!(!Path::new(&gone).exists());
}

#[tokio::test]
async fn nothing_above_the_folder_is_written() {
    let (folder, upstream) = cache();
    for key in ["../x", "nar/../../x", "/x", "nar//x", "nar/\0x", "", "nar/"] {
        let error = upstream.put_small(key, "", "x".into()).await.unwrap_err();
        assert!(matches!(error, Error::Url { .. }), "{key:?}: {error}");
        assert_eq!(error.setback(), Setback::Object);
    }
    assert_eq!(names(folder.path()), ["nix-cache-info"]);
}

#[tokio::test]
async fn a_name_that_is_a_folder_is_the_objects_trouble() {
    let (folder, upstream) = cache();
    fs::create_dir(folder.path().join("x")).unwrap();
    let error = upstream.put_small("x", "", "text".into()).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Object, "{error}");
    assert_eq!(names(folder.path()), ["nix-cache-info", "x"]);
}

#[tokio::test]
async fn what_a_crash_left_is_swept_and_what_another_writes_is_not() {
    let (folder, upstream) = cache();
    let nar = folder.path().join("nar");
    fs::create_dir(&nar).unwrap();
    let old = SystemTime::now() - Duration::from_hours(25);
    for name in [".snowberry-old", ".snowberry-new", "old"] {
        let file = File::create(nar.join(name)).unwrap();
        if name.ends_with("old") {
            file.set_modified(old).unwrap();
        }
    }
    upstream.put_small(NAR, "", "text".into()).await.unwrap();
    assert_eq!(names(&nar), [".snowberry-new", "old", "x.nar.zst"]);
}

#[tokio::test]
async fn a_sub_folder_that_leads_elsewhere_is_not_written_through() {
    let (folder, upstream) = cache();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("nar")).unwrap();
    let error = upstream.put_small(NAR, "", "text".into()).await.unwrap_err();
    assert_eq!(error.setback(), Setback::Target, "{error}");
    assert!(names(elsewhere.path()).is_empty());
}

/// A disk without room: anything that is written to `/dev/full` says so.
#[tokio::test]
async fn a_full_disk_stops_the_target() {
    use std::io::Write as _;
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let source = (&full).write_all(b"x").unwrap_err();
    let (_folder, upstream) = cache();
    let asked = upstream.inner.asked("x");
    let error = Error::Write { asked, source: std::sync::Arc::new(source) };
    assert_eq!(error.setback(), Setback::Target);
}
