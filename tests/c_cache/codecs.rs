//! Whatever codec the upstream has, the client gets the NAR byte for byte, as one kind of zstd.

use std::io::Write;

use snowberry::nix::Compression;

use crate::made::Made;
use crate::{Lab, SOON, until};

#[tokio::test]
async fn every_codec_gives_the_nar_and_all_of_them_the_same_bytes() {
    let made = Made::mixed("every-codec", 1_500_000);
    let mut bodies = Vec::new();
    for compression in Compression::ALL {
        let made = made.clone().packed(compression);
        let lab = Lab::of([&made]).await;
        let answer = lab.fetch(&made).await;
        if compression != Compression::Zstd {
            bodies.push((compression, answer.body));
        }
    }
    let (_, first) = &bodies[0];
    for (compression, body) in &bodies {
        assert!(body == first, "{} gives other bytes", compression.label());
    }
}

#[tokio::test]
async fn an_acceptable_zstd_stream_is_kept_byte_for_byte() {
    let made = Made::mixed("kept", 1_500_000).packed(Compression::Zstd);
    let lab = Lab::of([&made]).await;
    let answer = lab.fetch(&made).await;
    assert!(answer.body == made.file, "the stream was packed again");
    lab.until_held(&made).await;
    let narinfo = lab.narinfo(&made).await.unwrap();
    assert_eq!(narinfo.file_hash, Some(made.file_hash()));
    assert_eq!(narinfo.file_size, made.file.len().try_into().ok());
}

#[tokio::test]
async fn a_zstd_stream_with_a_window_beyond_a_pi_is_packed_again() {
    let made = Made::mixed("wide", 1_500_000);
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(26).unwrap();
    encoder.write_all(&made.nar).unwrap();
    let file = encoder.finish().unwrap();
    let made = Made { compression: Compression::Zstd, ..made }.in_file(file);
    let lab = Lab::of([&made]).await;
    let answer = lab.fetch(&made).await;
    assert!(answer.body != made.file, "a window of 64 MiB was passed on");
}

#[tokio::test]
async fn a_zstd_stream_with_something_behind_it_is_never_passed_on() {
    let made = Made::mixed("trailing", 300_000).packed(Compression::Zstd);
    let mut file = made.file.clone();
    file.extend([0; 16]);
    let made = made.in_file(file);
    let lab = Lab::of([&made]).await;
    assert!(lab.narinfo(&made).await.is_some());
    let answer = lab.nar(&made).await;
    let ended = answer.status == 200 && answer.whole;
    assert!(!ended || made.is_in(&answer.body), "no Nix reads what ended cleanly");
}

#[tokio::test]
async fn a_narinfo_that_names_the_wrong_codec_is_not_believed() {
    let made = Made::mixed("mislabelled", 600_000).packed(Compression::Gzip);
    let mislabelled = Made { compression: Compression::Xz, ..made };
    let lab = Lab::of([&mislabelled]).await;
    assert!(lab.narinfo(&mislabelled).await.is_some());
    let answer = lab.nar(&mislabelled).await;
    let clean = answer.status == 200 && answer.whole;
    assert!(!clean || mislabelled.is_in(&answer.body));
}

#[tokio::test]
async fn a_zstd_stream_of_many_frames_gives_the_nar() {
    let made = Made::mixed("frames", 600_000).packed(Compression::Zstd);
    let frames = made.nar.chunks(100_000).flat_map(|chunk| zstd::encode_all(chunk, 3).unwrap());
    let made = made.clone().in_file(frames.collect());
    Lab::of([&made]).await.fetch(&made).await;
}

#[tokio::test]
async fn the_file_hash_is_in_the_narinfo_once_it_is_known() {
    let made = Made::mixed("file-hash", 300_000);
    let lab = Lab::of([&made]).await;
    let before = lab.narinfo(&made).await.unwrap();
    assert_eq!(before.file_hash, None, "whose file is that?");
    let answer = lab.fetch(&made).await;
    let what = "the file hash in the narinfo";
    let after = until(what, SOON, async || {
        lab.narinfo(&made).await.filter(|narinfo| narinfo.file_hash.is_some())
    })
    .await;
    let served = made.in_file(answer.body.to_vec());
    assert_eq!(after.file_hash, Some(served.file_hash()));
    assert_eq!(after.file_size, answer.body.len().try_into().ok());
}

#[tokio::test]
async fn nars_of_every_awkward_size_are_served_whole() {
    // Around a row of 255 KiB, the first flush of 4 KiB, and next to nothing.
    let sizes = [0, 1, 4_095, 4_097, 130_000, 261_000, 261_120, 261_200, 522_240, 1_050_000];
    let paths: Vec<_> =
        sizes.iter().map(|len| Made::noise(&format!("sized-{len}"), *len)).collect();
    let lab = Lab::of(&paths).await;
    for made in &paths {
        let first = lab.fetch(made).await;
        lab.until_held(made).await;
        assert!(first.body == lab.fetch(made).await.body, "{}", made.store_path);
    }
    assert_eq!(lab.upstream.asked("/nar/"), paths.len());
}
