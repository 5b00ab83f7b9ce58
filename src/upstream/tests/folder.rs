//! Folders: whole, resumed, missing, pulled out.

use std::fs;

use super::{Error, KEY, Resume, key, upstream, whole};

fn folder() -> (tempfile::TempDir, super::Upstream) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    fs::create_dir(folder.path().join("nar")).unwrap();
    let upstream = upstream(&format!("file://{}", folder.path().display()), "");
    (folder, upstream)
}

#[tokio::test]
async fn what_the_folder_holds_is_read() {
    let (folder, upstream) = folder();
    let nar = "0123456789".repeat(60_000);
    fs::write(folder.path().join(format!("{KEY}.narinfo")), "text").unwrap();
    fs::write(folder.path().join("nar/x.nar"), &nar).unwrap();
    assert!(upstream.cache_info().await.is_ok());
    assert_eq!(upstream.narinfo(key()).await.unwrap().unwrap(), "text");
    let body = upstream.nar("nar/x.nar", None).await.unwrap().unwrap();
    assert_eq!((body.len_bytes(), body.etag()), (Some(600_000), None));
    assert_eq!(whole(&upstream, "nar/x.nar?hash=x", None).await.unwrap(), nar);
    let resume = |offset| Some(Resume { offset, etag: None });
    let rest = whole(&upstream, "nar/x.nar", resume(300_001)).await.unwrap();
    assert_eq!(rest, nar.as_bytes().split_at(300_001).1);
    assert_eq!(whole(&upstream, "nar/x.nar", resume(600_000)).await.unwrap(), "");
    let beyond = whole(&upstream, "nar/x.nar", resume(600_001)).await;
    assert!(matches!(beyond, Err(Error::Changed { .. })));
}

#[tokio::test]
async fn a_file_that_is_cut_under_us_is_short() {
    let (folder, upstream) = folder();
    let path = folder.path().join("nar/x.nar");
    fs::write(&path, vec![0; 300 * 1024]).unwrap();
    let mut body = upstream.nar("nar/x.nar", None).await.unwrap().unwrap();
    body.chunk().await.unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(256 * 1024).unwrap();
    assert!(matches!(body.chunk().await, Err(Error::Short { missing: 45_056, .. })));
}

#[tokio::test]
async fn what_it_has_not_is_absent_and_a_folder_that_is_gone_is_trouble() {
    let (folder, upstream) = folder();
    assert_eq!(upstream.narinfo(key()).await.unwrap(), None);
    assert!(upstream.nar("nar/x.nar", None).await.unwrap().is_none());
    assert!(upstream.nar("nar", None).await.unwrap().is_none());
    fs::remove_file(folder.path().join("nix-cache-info")).unwrap();
    assert!(matches!(upstream.narinfo(key()).await, Err(Error::NotACache { .. })));
    assert!(matches!(upstream.nar("nar/x.nar", None).await, Err(Error::NotACache { .. })));
    assert!(matches!(upstream.cache_info().await, Err(Error::NotACache { .. })));
}

#[tokio::test]
async fn nothing_above_the_folder_is_read() {
    let (folder, upstream) = folder();
    fs::write(folder.path().join("nar/x"), "x").unwrap();
    for url in ["../x", "nar/../../x", "/etc/passwd", "file:///etc/passwd", "nar//x", "nar/\0x"] {
        assert!(matches!(upstream.nar(url, None).await, Err(Error::Url { .. })), "{url:?}");
    }
}

#[tokio::test]
async fn a_narinfo_longer_than_any_is_not_read() {
    let (folder, upstream) = folder();
    fs::write(folder.path().join(format!("{KEY}.narinfo")), vec![0; 1024 * 1024 + 1]).unwrap();
    assert!(matches!(upstream.narinfo(key()).await, Err(Error::TooLong { .. })));
}
