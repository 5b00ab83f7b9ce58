//! A disk that fills up while misses come: eviction holds the budget, nothing fails, and no client
//! hears of it (promise 5).

use std::path::{Path, PathBuf};
use std::process::Command;

use snowberry::nix::Compression;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::Lab;
use crate::made::Made;

/// A file system of its own in memory, unmounted and gone when dropped.
struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    fn new(size: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "snowberry-test"]).arg(folder.path());
        assert!(mount.status().unwrap().success(), "mount: these tests run as root");
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path: &Path = self.folder.path();
        drop(Command::new("umount").arg("--lazy").arg(path).status());
    }
}

/// `count` NARs of `len` bytes are missed, four at a time, twice over.
async fn check_full(disk_size: &str, budget: Option<&str>, count: usize, len: usize) {
    let disk = SmallDisk::new(disk_size);
    let paths: Vec<_> = (0..count)
        .map(|n| Made::noise(&format!("room-{n}"), len).packed(Compression::None))
        .collect();
    let lab = Lab::with(&paths, |settings| {
        let settings = settings.set(&format!("store.path={:?}", disk.path().display().to_string()));
        match budget {
            Some(budget) => settings.set(&format!("store.budget={budget:?}")),
            None => settings,
        }
    })
    .await;
    for four in paths.chunks(4).chain(paths.chunks(4)) {
        let mut clients = JoinSet::new();
        for made in four.iter().cloned() {
            let client = lab.snowberry.client();
            clients.spawn(async move {
                let narinfo = client.get(&made.narinfo_url()).await;
                assert_eq!(narinfo.status, 200, "{}: narinfo", made.store_path);
                let answer = client.get(&made.nar_url()).await;
                assert_eq!((answer.status, answer.whole), (200, true), "{}", made.store_path);
                assert!(made.is_in(&answer.body), "{}", made.store_path);
            });
        }
        while let Some(ended) = clients.join_next().await {
            assert!(ended.is_ok(), "a client failed: {:#?}", lab.snowberry.log());
        }
        let status = lab.snowberry.status().await;
        let figure = |name: &str| status["store"][name].as_u64().unwrap();
        assert!(figure("used_bytes") <= figure("budget_bytes"), "{status}");
    }
    let log = lab.snowberry.log();
    let complaint = log.iter().find(|line| line.contains("No space left"));
    assert_eq!(complaint, None, "the disk was filled to its end");
    // It is a cache still: what came last is here.
    let mut held = 0;
    for made in &paths {
        held += usize::from(lab.is_held(made).await);
    }
    assert!(held > 0, "nothing is kept");
}

#[tokio::test]
async fn a_disk_smaller_than_the_closure_takes_what_it_can() {
    check_full("64m", None, 24, 4 << 20).await;
}

#[tokio::test]
async fn a_budget_larger_than_its_disk_fills_no_disk() {
    check_full("64m", Some("10 GiB"), 24, 4 << 20).await;
}

#[tokio::test]
async fn a_nar_larger_than_the_budget_streams_through() {
    let big = Made::noise("too-big", 20 << 20).packed(Compression::None);
    let small = Made::noise("small", 500_000);
    let lab = Lab::with([&big, &small], |settings| settings.set("store.budget=\"10 MiB\"")).await;
    lab.fetch(&small).await;
    lab.until_held(&small).await;
    lab.fetch(&big).await;
    assert!(!lab.is_held(&big).await);
    lab.fetch(&big).await;
    lab.fetch(&small).await;
    let used = lab.snowberry.figure("store", "used_bytes").await;
    assert!(used <= 10 << 20, "{used}");
}
