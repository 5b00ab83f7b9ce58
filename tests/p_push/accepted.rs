//! What was taken is there at once, signed, as one kind of zstd.

use snowberry::nix::{Compression, NarInfo, SecretKey, StoreDir};

use crate::made::{self, Made};
use crate::{Lab, unsigned};

#[tokio::test]
async fn what_was_pushed_is_read_back_in_every_codec() {
    let lab = Lab::new().await;
    for compression in Compression::ALL {
        let name = format!("pushed-{}", compression.label());
        let made = Made::mixed(&name, 1_200_000).packed(compression);
        lab.push(&made).await;
        let narinfo = lab.narinfo(&made).await.unwrap();
        assert_eq!(narinfo.nar_hash, made.nar_hash());
        assert_eq!(narinfo.compression, Compression::Zstd);
        assert!(lab.is_ours(&narinfo).await, "our signature is missing");
        let nar = lab.get(&made.nar_url()).await;
        assert_eq!((nar.status, nar.whole), (200, true));
        assert!(made.is_in(&nar.body));
    }
}

#[tokio::test]
async fn an_acceptable_zstd_file_is_kept_byte_for_byte() {
    let lab = Lab::new().await;
    let made = Made::mixed("kept", 700_000).packed(Compression::Zstd);
    lab.push(&made).await;
    assert_eq!(lab.get(&made.nar_url()).await.body, made.file);
    let narinfo = lab.narinfo(&made).await.unwrap();
    assert_eq!(narinfo.file_hash, Some(made.file_hash()));
}

#[tokio::test]
async fn an_absence_that_was_told_is_forgotten() {
    let lab = Lab::new().await;
    let made = Made::noise("told", 5000);
    assert_eq!(lab.get(&made.narinfo_url()).await.status, 404);
    lab.push(&made).await;
    assert_eq!(lab.get(&made.narinfo_url()).await.status, 200);
}

#[tokio::test]
async fn a_push_survives_a_kill() {
    let mut lab = Lab::new().await;
    let made = Made::mixed("survives", 300_000);
    lab.push(&made).await;
    lab.snowberry.kill();
    lab.snowberry.restart().await;
    let narinfo = lab.narinfo(&made).await.expect("the narinfo after the kill");
    assert!(lab.is_ours(&narinfo).await);
    let nar = lab.get(&made.nar_url()).await;
    assert!(made.is_in(&nar.body));
    let file = lab.get(&format!("/{}", made.file_url())).await;
    assert_eq!(file.status, 200);
}

#[tokio::test]
async fn signatures_are_merged() {
    let lab = Lab::new().await;
    let made = Made::noise("merged", 5000);
    lab.push(&made).await;
    let other = SecretKey::from_seed("other-1", [9; 32]).unwrap();
    let fingerprint = made.narinfo().fingerprint(&StoreDir::default());
    let signed =
        |key: &SecretKey| NarInfo { signatures: vec![key.sign(&fingerprint)], ..unsigned(&made) };
    assert_eq!(lab.put_narinfo(&made, &signed(&other)).await.status, 200);
    // As `nix store sign` does it: our own narinfo comes back with one more.
    let mut ours = lab.narinfo(&made).await.unwrap();
    assert_eq!(ours.signatures.len(), 2);
    ours.signatures.push(made::key().sign(&fingerprint));
    assert_eq!(lab.put_narinfo(&made, &ours).await.status, 200);
    let merged = lab.narinfo(&made).await.unwrap();
    let mut names: Vec<_> =
        merged.signatures.iter().map(|signature| signature.key_name().to_owned()).collect();
    names.sort();
    assert!(names.contains(&"made-1".to_owned()) && names.contains(&"other-1".to_owned()));
    assert!(lab.is_ours(&merged).await);
    assert_eq!(merged.signatures.len(), 3);
    // The same once more changes nothing.
    assert_eq!(lab.put_narinfo(&made, &unsigned(&made)).await.status, 200);
    assert_eq!(lab.narinfo(&made).await.unwrap(), merged);
}

#[tokio::test]
async fn one_nar_may_be_pushed_as_many_files_and_paths() {
    let lab = Lab::new().await;
    let made = Made::mixed("first", 200_000);
    lab.push(&made).await;
    let twin = made.twin("second").packed(Compression::Zstd);
    lab.push(&twin).await;
    let again = made.clone().packed(Compression::Br);
    lab.push(&again).await;
    assert_eq!(lab.snowberry.figure("store", "nars").await, 1);
    for made in [&made, &twin, &again] {
        assert!(lab.narinfo(made).await.is_some());
        assert_eq!(lab.head(&format!("/{}", made.file_url())).await.status, 200);
        // Nothing of it is sent again.
        assert_eq!(lab.put_nar(made).await.status, 200);
    }
}

#[tokio::test]
async fn another_nar_of_a_path_is_dropped_and_counted() {
    let lab = Lab::new().await;
    let made = Made::noise("differs", 5000);
    lab.push(&made).await;
    let other = Made { store_path: made.store_path.clone(), ..Made::noise("differs-2", 5000) };
    assert_eq!(lab.put_nar(&other).await.status, 200);
    assert_eq!(lab.put_narinfo(&other, &unsigned(&other)).await.status, 200);
    assert_eq!(lab.narinfo(&made).await.unwrap().nar_hash, made.nar_hash());
    let metrics = lab.get("/metrics").await;
    assert!(metrics.text().contains("snowberry_push_differs_total 1"), "{}", metrics.text());
}

#[tokio::test]
async fn documents_are_taken_and_read_back() {
    let lab = Lab::new().await;
    let key = Made::noise("documents", 10).store_path_hash();
    let id = "ab".repeat(20);
    let file = Made::noise("documents", 10).file_url();
    let redirect = format!(r#"{{"archive":"../{file}","member":"lib/debug/x.debug"}}"#);
    for (put, get, body) in [
        (format!("/{key}.ls"), format!("/{key}.ls"), r#"{"version":1,"root":{}}"#),
        (format!("/push/log/{key}-x.drv"), format!("/log/{key}-x.drv"), "a log"),
        (
            "/realisations/sha256:ab!out.doi".into(),
            "/realisations/sha256:ab%21out.doi".into(),
            "{}",
        ),
        (
            "/realisations/sha256:cd%21out.doi".into(),
            "/realisations/sha256:cd!out.doi".into(),
            "{}",
        ),
        ("/build-trace-v2/x.drv/out.doi".into(), "/build-trace-v2/x.drv/out.doi".into(), "{}"),
        (format!("/debuginfo/{id}.debug"), format!("/push/debuginfo/{id}.debug"), &redirect),
    ] {
        let answer = lab.put(&put, body.to_owned()).await;
        assert_eq!(answer.status, 200, "{put}: {}", answer.text());
        let read = lab.get(&get).await;
        assert_eq!((read.status, read.text()), (200, body), "{get}");
    }
    let info = lab.put("/push/nix-cache-info", "StoreDir: /nix/store\n").await;
    assert_eq!(info.status, 200);
}

#[tokio::test]
async fn small_bodies_may_come_encoded() {
    let lab = Lab::new().await;
    let made = Made::noise("encoded", 5000);
    assert_eq!(lab.put_nar(&made).await.status, 200);
    let narinfo = unsigned(&made).print(&StoreDir::default());
    for (encoding, compression) in [
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
        ("br", Compression::Br),
        ("xz", Compression::Xz),
        ("bzip2", Compression::Bzip2),
    ] {
        let log = format!("/log/{}-{encoding}.drv", made.store_path_hash());
        let headers = [("content-encoding", encoding)];
        let body = made::encode(narinfo.as_bytes(), compression);
        assert_eq!(lab.put_with(&log, &headers, body.clone()).await.status, 200);
        assert_eq!(lab.get(&log).await.text(), narinfo);
        let answer = lab.put_with(&made.narinfo_url(), &headers, body).await;
        assert_eq!(answer.status, 200, "{encoding}: {}", answer.text());
    }
    assert!(lab.narinfo(&made).await.is_some());
}
