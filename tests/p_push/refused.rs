//! What is not taken, and how it is said.

use snowberry::nix::{Compression, FileHash, NarInfo, StoreDir, StorePathHash};

use crate::made::{self, Made};
use crate::{Lab, expect_refused, unsigned};

async fn refused(lab: &Lab, made: &Made, narinfo: NarInfo, words: &str) {
    let answer = lab.put_narinfo(made, &narinfo).await;
    expect_refused(&answer, 400, words);
    assert_eq!(lab.narinfo(made).await, None, "{words}");
}

#[tokio::test]
async fn a_narinfo_must_be_what_came() {
    let lab = Lab::new().await;
    let made = Made::noise("lines", 5000);
    let other = Made::noise("other-lines", 5001);
    for made in [&made, &other] {
        assert_eq!(lab.put_nar(made).await.status, 200);
    }
    let right = unsigned(&made);
    let change = |change: &dyn Fn(&mut NarInfo)| {
        let mut narinfo = right.clone();
        change(&mut narinfo);
        narinfo
    };
    let wrong = change(&|narinfo| narinfo.nar_hash = other.nar_hash());
    refused(&lab, &made, wrong, "NarHash").await;
    let wrong = change(&|narinfo| narinfo.nar_size += 1);
    refused(&lab, &made, wrong, "NarSize").await;
    let wrong = change(&|narinfo| narinfo.file_hash = Some(other.file_hash()));
    refused(&lab, &made, wrong, "FileHash").await;
    let wrong = change(&|narinfo| narinfo.file_size = Some(1));
    refused(&lab, &made, wrong, "FileSize").await;
    let wrong = change(&|narinfo| narinfo.compression = Compression::Zstd);
    refused(&lab, &made, wrong, "Compression").await;
    let wrong = change(&|narinfo| narinfo.store_path = other.store_path.clone());
    refused(&lab, &made, wrong, "narinfo of").await;
    for url in ["nar/x.nar.xz", "../nix-cache-info", "http://evil/x.nar.xz", "nar/../x"] {
        let wrong = change(&|narinfo| narinfo.url = url.to_owned());
        refused(&lab, &made, wrong, "URL").await;
    }
    // Another path's canonical name.
    let wrong = change(&|narinfo| {
        narinfo.url = other.nar_url().trim_start_matches('/').to_owned();
        narinfo.compression = Compression::Zstd;
    });
    refused(&lab, &made, wrong, "URL").await;
    let text = right.print(&StoreDir::default());
    for (from, to) in [
        ("StorePath: /nix/store", "StorePath: /gnu/store"),
        ("NarHash: ", "NarHash "),
        ("References: ", "References: ../../etc/passwd"),
        ("NarSize: ", "NarSize: -"),
    ] {
        let answer = lab.put(&made.narinfo_url(), text.replace(from, to)).await;
        expect_refused(&answer, 400, "narinfo");
    }
    assert_eq!(lab.put_narinfo(&made, &right).await.status, 200);
}

#[tokio::test]
async fn a_narinfo_without_its_nar_is_refused() {
    let lab = Lab::new().await;
    let made = Made::noise("without", 5000);
    let answer = lab.put_narinfo(&made, &unsigned(&made)).await;
    expect_refused(&answer, 409, "upload it first");
    let canonical = NarInfo {
        url: made.nar_url().trim_start_matches('/').to_owned(),
        compression: Compression::Zstd,
        ..unsigned(&made)
    };
    expect_refused(&lab.put_narinfo(&made, &canonical).await, 409, "not here");
}

#[tokio::test]
async fn a_file_must_be_what_its_name_says() {
    let lab = Lab::new().await;
    let made = Made::noise("named", 50_000);
    for compression in Compression::ALL {
        let made = made.clone().packed(compression);
        let hash = FileHash::from_bytes([3; 32]).to_nix32();
        let path = format!("/nar/{hash}.nar{}", compression.extension());
        expect_refused(&lab.put(&path, made.file.clone()).await, 400, "SHA-256");
        assert_eq!(lab.head(&path).await.status, 404);
    }
    let url = format!("/{}", made.file_url());
    for body in ["", "<html>", "hello, this is no NAR at all, whatever it may be"] {
        let answer = lab.put(&url, body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
    }
    // Cut in the middle, under the name that this has.
    for compression in [Compression::Xz, Compression::Zstd, Compression::None] {
        let mut file = made.clone().packed(compression).file;
        file.truncate(file.len() / 2);
        let cut = Made { compression, ..made.clone().in_file(file) };
        expect_refused(&lab.put_nar(&cut).await, 400, "no NAR file");
        assert_eq!(lab.head(&format!("/{}", cut.file_url())).await.status, 404);
    }
    assert_eq!(lab.snowberry.figure("store", "nars").await, 0);
}

#[tokio::test]
async fn what_is_nothing_of_ours_is_refused() {
    let lab = Lab::new().await;
    let hash = FileHash::from_bytes([3; 32]).to_nix32();
    for ending in [".lz4", ".lzip", ".zstd", ".xz.xz"] {
        let answer = lab.put(&format!("/push/nar/{hash}.nar{ending}"), "x").await;
        expect_refused(&answer, 415, "?compression=zstd");
    }
    let key = StorePathHash::from_bytes([1; 20]);
    for path in [
        "/",
        "/metrics",
        "/push",
        "/nar/../nix-cache-info",
        "/nar/%2e%2e/x.nar",
        "/log/..%2f..%2fetc%2fpasswd",
        "/log/.hidden",
        "/realisations/a/b",
        "/../../etc/passwd",
        &format!("/{key}.narinfo%00"),
        &format!("/log/{}", "a".repeat(600)),
    ] {
        let answer = lab.put(path, "x").await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
    }
    let answer = lab.put("/nix-cache-info", "StoreDir: /gnu/store\n").await;
    expect_refused(&answer, 409, "/nix/store");
    expect_refused(&lab.put("/nix-cache-info", "hello").await, 400, "nix-cache-info");
    expect_refused(&lab.put("/realisations/a.doi", "hello").await, 400, "JSON");
    let id = "ab".repeat(20);
    for archive in ["http://evil/x.nar", "../../etc", "../nar/x", "../nar/../x.nar"] {
        let body = format!(r#"{{"archive":"{archive}","member":"x"}}"#);
        let answer = lab.put(&format!("/debuginfo/{id}.debug"), body).await;
        expect_refused(&answer, 400, "archive");
    }
}

#[tokio::test]
async fn encodings_are_known_and_bounded() {
    let lab = Lab::new().await;
    let made = Made::noise("encodings", 5000);
    let url = format!("/{}", made.file_url());
    let answer = lab.put_with(&url, &[("content-encoding", "gzip")], made.file.clone()).await;
    expect_refused(&answer, 415, "without Content-Encoding");
    let answer = lab.put_with(&made.narinfo_url(), &[("content-encoding", "lzip")], "x").await;
    expect_refused(&answer, 415, "lzip");
    let bomb = made::encode(&vec![b'a'; 64 << 20], Compression::Xz);
    let answer = lab.put_with("/log/a-bomb.drv", &[("content-encoding", "xz")], bomb).await;
    expect_refused(&answer, 413, "16.0 MiB");
    let answer = lab.put_with("/log/a-lie.drv", &[("content-encoding", "gzip")], "no gzip").await;
    expect_refused(&answer, 415, "Content-Encoding");
}

/// Some hundred KiB that unpack to 4 GiB end at the bound, and nothing of them stays.
#[tokio::test]
async fn a_bomb_ends_at_its_bound() {
    let lab = Lab::new().await;
    // The head of a NAR with one file of 4 GiB, and zeros without end.
    let mut head = Vec::new();
    for word in ["nix-archive-1", "(", "type", "regular", "contents"] {
        head.extend((word.len() as u64).to_le_bytes());
        head.extend(word.as_bytes());
        head.resize(head.len().next_multiple_of(8), 0);
    }
    head.extend((4_u64 << 30).to_le_bytes());
    let zeros = vec![0; 16 << 20];
    let file = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
        encoder.write_all(&head).unwrap();
        for _ in 0..32 {
            encoder.write_all(&zeros).unwrap();
        }
        encoder.finish().unwrap()
    });
    let file = file.await.unwrap();
    let made = Made::noise("bomb", 10).in_file(file);
    let answer = lab.put_nar(&made).await;
    expect_refused(&answer, 413, "no NAR packs as tight");
    assert_eq!(lab.snowberry.figure("store", "nars").await, 0);
    let lab = Lab::with(crate::Settings::new().set(r#"push.nar-size-max="64 KiB""#)).await;
    let made = Made::mixed("long", 100_000);
    expect_refused(&lab.put_nar(&made).await, 413, "push.nar-size-max");
    let raw = made.packed(Compression::None);
    expect_refused(&lab.put_nar(&raw).await, 413, "push.nar-size-max");
}
