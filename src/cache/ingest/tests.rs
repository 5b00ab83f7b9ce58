//! Each codec, each form, and what must not pass.

use std::io::Write as _;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;

use super::*;
use crate::nix::Compression;
use crate::nix::nar::Node;

/// A NAR of some length that compresses as real ones do: words, and a part that does not.
fn nar(len: usize) -> Vec<u8> {
    let mut contents = Vec::with_capacity(len);
    let mut state = 1_u32;
    while contents.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if state & 0x3000_0000 == 0 {
            contents.extend_from_slice(&state.to_le_bytes());
        } else {
            contents.extend_from_slice(format!("word{} ", state >> 24).as_bytes());
        }
    }
    contents.truncate(len);
    Node::File { executable: false, contents }.to_nar()
}

fn zstd_of(bytes: &[u8], level: i32) -> Vec<u8> {
    zstd::stream::encode_all(bytes, level).unwrap()
}

fn pack(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Zstd => zstd_of(bytes, 5),
        Compression::Xz => {
            let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
            xz.write_all(bytes).unwrap();
            xz.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            bzip2.write_all(bytes).unwrap();
            bzip2.finish().unwrap()
        }
        Compression::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(bytes).unwrap();
            gzip.finish().unwrap()
        }
        Compression::Br => {
            let mut out = Vec::new();
            let mut br = brotli::CompressorWriter::new(&mut out, 4096, 4, 20);
            br.write_all(bytes).unwrap();
            drop(br);
            out
        }
    }
}

/// What goes in, cut into pieces of this length, and how.
struct Case<'a> {
    label: Compression,
    file: &'a [u8],
    piece_len: usize,
    form: Form,
    nar_len: NarLen,
}

const ANEW: Form = Form::Recompressed { level: 3 };

async fn ingest(case: Case<'_>) -> Result<(Ingested, Vec<u8>), Error> {
    let head = &case.file[..case.file.len().min(SNIFF_LEN)];
    let codec = sniff(case.label, head).expect("a known codec");
    let tasks = TaskTracker::new();
    let plan = Plan { codec, form: case.form, nar_len: case.nar_len, sums_source: false };
    let Pipe { feed, mut out, done } = Ingest::new(tasks.clone()).start(plan);
    let pieces = case.file.chunks(case.piece_len).map(Bytes::copy_from_slice).collect::<Vec<_>>();
    tasks.spawn(async move {
        for piece in pieces {
            if feed.send(Feed::Bytes(piece)).await.is_err() {
                return;
            }
        }
        feed.send(Feed::End).await.ok();
    });
    let mut stream = Vec::new();
    while let Some(bytes) = out.recv().await {
        stream.extend_from_slice(&bytes);
    }
    let ingested = done.await.unwrap()?;
    assert!(!ingested.tail.is_empty(), "the last bytes must wait for the hash");
    stream.extend_from_slice(&ingested.tail);
    Ok((ingested, stream))
}

fn exactly(nar: &[u8]) -> NarLen {
    NarLen::Exactly(nar.len() as u64)
}

/// The NAR comes out whole, hashed, listed, as one zstd stream; gives that stream.
async fn check(
    nar: &[u8],
    label: Compression,
    file: &[u8],
    piece_len: usize,
    form: Form,
) -> Vec<u8> {
    let case = Case { label, file, piece_len, form, nar_len: exactly(nar) };
    let (ingested, stream) = ingest(case).await.unwrap();
    assert_eq!(ingested.nar_hash.as_bytes(), Sha256::digest(nar).as_slice());
    assert_eq!(ingested.nar_size, nar.len() as u64);
    assert_eq!(ingested.file_hash.as_bytes(), Sha256::digest(&stream).as_slice());
    assert!(ingested.listing.is_some());
    assert!(zstd::stream::decode_all(stream.as_slice()).unwrap() == nar, "another NAR came out");
    stream
}

#[tokio::test]
async fn every_codec_becomes_the_same_zstd_stream_however_it_was_cut() {
    for len in [0, 100, 4096, 200_000, 3_000_000] {
        let nar = nar(len);
        let mut first = None;
        for label in [
            Compression::None,
            Compression::Xz,
            Compression::Zstd,
            Compression::Bzip2,
            Compression::Gzip,
            Compression::Br,
        ] {
            let file = pack(label, &nar);
            let piece_len = if len > 200_000 { 16_000 } else { 977 };
            let stream = check(&nar, label, &file, piece_len, ANEW).await;
            let first = first.get_or_insert_with(|| stream.clone());
            assert!(*first == stream, "{label:?} of {len} bytes differs");
        }
    }
}

#[tokio::test]
async fn concatenated_streams_are_one_nar() {
    let nar = nar(300_000);
    let (a, b) = nar.split_at(100_000);
    for label in [Compression::Xz, Compression::Zstd, Compression::Bzip2, Compression::Gzip] {
        let file = [pack(label, a), pack(label, b)].concat();
        check(&nar, label, &file, 5000, ANEW).await;
    }
}

#[tokio::test]
async fn an_acceptable_zstd_stream_is_kept_byte_for_byte() {
    let nar = nar(2_000_000);
    let (a, b) = nar.split_at(700_000);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let frames = [skippable.clone(), zstd_of(a, 1), skippable.clone(), zstd_of(b, 9), skippable];
    for file in [zstd_of(&nar, 3), frames.concat()] {
        for piece_len in [17, 4096, file.len()] {
            let kept = check(&nar, Compression::Zstd, &file, piece_len, Form::Kept).await;
            assert!(kept == file);
        }
    }
}

#[tokio::test]
async fn a_zstd_stream_that_clients_choke_on_is_not_kept_but_can_be_compressed_anew() {
    let nar = nar(100_000);
    let trailing = [zstd_of(&nar, 3), vec![0; 9]].concat();
    let mut long = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    long.window_log(25).unwrap();
    long.write_all(&nar).unwrap();
    for file in [trailing, long.finish().unwrap()] {
        let label = Compression::Zstd;
        let nar_len = exactly(&nar);
        let case = Case { label, file: &file, piece_len: 999, form: Form::Kept, nar_len };
        assert!(matches!(ingest(case).await, Err(Error::NotKeepable(_))));
        check(&nar, Compression::Zstd, &file, 999, ANEW).await;
    }
}

#[tokio::test]
async fn bytes_that_are_not_the_nar_are_refused() {
    let nar = nar(2_000_000);
    let small = &nar[..1_999_999];
    for label in [Compression::Xz, Compression::Zstd, Compression::Gzip, Compression::None] {
        let file = pack(label, &nar);
        let bytes = file.as_slice();
        let case = |file, nar_len| Case { label, file, piece_len: 8000, form: ANEW, nar_len };
        let longer = ingest(case(bytes, exactly(small))).await;
        assert!(matches!(longer, Err(Error::TooLong(_))), "{label:?}: {longer:?}");
        let cut = ingest(case(&bytes[..bytes.len() / 2], exactly(&nar))).await;
        assert!(
            matches!(cut, Err(Error::Decode(_) | Error::TooShort { .. })),
            "{label:?}: {cut:?}"
        );
        let bounded = ingest(case(bytes, NarLen::AtMost(4_000_000))).await;
        assert_eq!(bounded.unwrap().0.nar_size, nar.len() as u64, "{label:?}");
    }
}

#[tokio::test]
async fn a_spoilt_xz_file_never_has_the_hash_of_its_nar() {
    let nar = nar(300_000);
    let file = pack(Compression::Xz, &nar);
    // Behind the blocks: the content's CRC64, the index, and a footer of 12 bytes that says how
    // long the index is.
    let footer_at = file.len() - 12;
    let index_len = 4 * (usize::from(file[footer_at + 4]) + 1);
    let checksum_at = footer_at - index_len - 8;
    let spoilt_at = async |at: usize| {
        let mut spoilt = file.clone();
        spoilt[at] ^= 0x10;
        let case = Case {
            label: Compression::Xz,
            file: &spoilt,
            piece_len: 8000,
            form: ANEW,
            nar_len: exactly(&nar),
        };
        ingest(case).await.is_ok_and(|(found, _)| {
            found.nar_hash.as_bytes().as_slice() == Sha256::digest(&nar).as_slice()
        })
    };
    for step in 1..200 {
        let at = 24 + (checksum_at - 24) * step / 200;
        assert!(!spoilt_at(at).await, "the byte at {at} of {}", file.len());
    }
    assert!(!spoilt_at(footer_at - index_len / 2).await, "the index");
    assert!(!spoilt_at(footer_at + 4).await, "the footer");
    assert!(spoilt_at(checksum_at).await, "the checksum is not what a NAR is known by");
}

#[tokio::test]
async fn a_bomb_ends_at_the_size_that_was_promised() {
    let bomb = zstd_of(&vec![0; 64 << 20], 1);
    let bomb = [zstd_of(&nar(100), 1), bomb].concat();
    let nar_len = NarLen::Exactly(1000);
    let case =
        Case { label: Compression::Zstd, file: &bomb, piece_len: 100, form: Form::Kept, nar_len };
    assert!(matches!(ingest(case).await, Err(Error::TooLong(1000))));
}

#[tokio::test]
async fn a_source_that_begins_again_gives_the_same_stream() {
    let nar = nar(3_000_000);
    let (xz, gzip) = (pack(Compression::Xz, &nar), pack(Compression::Gzip, &nar));
    let whole = check(&nar, Compression::Xz, &xz, 10_000, ANEW).await;
    let tasks = TaskTracker::new();
    let codec = sniff(Compression::Xz, &xz[..SNIFF_LEN]).unwrap();
    let other = sniff(Compression::Xz, &gzip[..SNIFF_LEN]).unwrap();
    let plan = Plan { codec, form: ANEW, nar_len: exactly(&nar), sums_source: false };
    let Pipe { feed, mut out, done } = Ingest::new(tasks.clone()).start(plan);
    tasks.spawn(async move {
        for piece in xz[..xz.len() / 3].chunks(10_000) {
            feed.send(Feed::Bytes(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        feed.send(Feed::Again(other)).await.unwrap();
        for piece in gzip.chunks(10_000) {
            feed.send(Feed::Bytes(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        feed.send(Feed::End).await.unwrap();
    });
    let mut stream = Vec::new();
    while let Some(bytes) = out.recv().await {
        stream.extend_from_slice(&bytes);
    }
    stream.extend_from_slice(&done.await.unwrap().unwrap().tail);
    assert!(stream == whole);
}

#[tokio::test]
async fn a_source_that_leaves_is_not_an_end() {
    let nar = nar(10_000);
    let codec = sniff(Compression::None, &nar).unwrap();
    let plan = Plan { codec, form: ANEW, nar_len: exactly(&nar), sums_source: false };
    let Pipe { feed, out, done } = Ingest::new(TaskTracker::new()).start(plan);
    feed.send(Feed::Bytes(nar.into())).await.unwrap();
    drop(feed);
    assert!(matches!(done.await.unwrap(), Err(Error::SourceGone)));
    drop(out);
}

#[test]
fn the_first_bytes_say_what_a_file_is() {
    let nar = nar(5_000_000);
    let check = |label, compression, window_bytes| {
        let file = pack(compression, &nar);
        let found = sniff(label, &file[..SNIFF_LEN]);
        assert_eq!(found, Some(Codec { compression, window_bytes }));
    };
    check(Compression::Xz, Compression::Xz, 8 << 20);
    check(Compression::Xz, Compression::Zstd, 2 << 20);
    check(Compression::None, Compression::Gzip, 64 << 10);
    check(Compression::Zstd, Compression::None, 0);
    check(Compression::Br, Compression::Br, 17 << 20);
    assert_eq!(sniff(Compression::Xz, b"<!DOCTYPE html>"), None);
    assert_eq!(sniff(Compression::Zstd, b""), None);
}

#[tokio::test]
async fn a_stored_stream_is_packed_so_that_it_is_the_same_nar() {
    let nar = nar(700_000);
    let stored = zstd_of(&nar, 3);
    for (packing, label) in [
        (Packing::Raw, Compression::None),
        (Packing::Xz, Compression::Xz),
        (Packing::Bzip2, Compression::Bzip2),
        (Packing::Gzip, Compression::Gzip),
        (Packing::Br, Compression::Br),
    ] {
        let file = packed(&stored, packing, nar.len()).await.unwrap();
        check(&nar, label, &file, 5000, ANEW).await;
        // What was cut, or is another one, is an error: its answer must not end cleanly.
        let cut = packed(&stored[..stored.len() - 10], packing, nar.len()).await;
        assert!(matches!(cut, Err(Error::SourceGone | Error::Decode(_))), "{cut:?}");
        let longer = packed(&stored, packing, nar.len() - 1).await;
        assert!(matches!(longer, Err(Error::TooLong(_))), "{longer:?}");
        let shorter = packed(&stored, packing, nar.len() + 1).await;
        assert!(matches!(shorter, Err(Error::TooShort { .. })), "{shorter:?}");
    }
}

async fn packed(stored: &[u8], packing: Packing, nar_len: usize) -> Result<Vec<u8>, Error> {
    let codec = sniff(Compression::Zstd, &stored[..SNIFF_LEN]).unwrap();
    let (feed, fed) = tokio::sync::mpsc::channel(2);
    let packing = tokio::task::spawn_blocking(move || {
        let mut file = Vec::new();
        let mut out = |bytes: Bytes| {
            file.extend_from_slice(&bytes);
            true
        };
        let packed = super::pack(fed, codec, packing, nar_len as u64, &mut out);
        packed.map(|()| file)
    });
    for piece in stored.chunks(9000) {
        if feed.send(Feed::Bytes(Bytes::copy_from_slice(piece))).await.is_err() {
            break;
        }
    }
    feed.send(Feed::End).await.ok();
    packing.await.unwrap()
}

#[tokio::test]
async fn an_upload_is_summed_as_it_came() {
    let nar = nar(300_000);
    for label in Compression::ALL {
        let mut file = pack(label, &nar);
        if label == Compression::Br {
            file.extend([0; 9]);
        }
        let codec = sniff(label, &file[..SNIFF_LEN]).unwrap();
        let form = if label == Compression::Zstd { Form::Kept } else { ANEW };
        let plan = Plan { codec, form, nar_len: NarLen::AtMost(1 << 20), sums_source: true };
        let tasks = TaskTracker::new();
        let Pipe { feed, mut out, done } = Ingest::new(tasks.clone()).start(plan);
        let pieces = file.chunks(7000).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        tasks.spawn(async move {
            for piece in pieces {
                feed.send(Feed::Bytes(piece)).await.ok();
            }
            feed.send(Feed::End).await.ok();
        });
        while out.recv().await.is_some() {}
        let sum = done.await.unwrap().unwrap().source_hash.unwrap();
        assert_eq!(sum.as_bytes(), Sha256::digest(&file).as_slice(), "{label:?}");
    }
}

/// How long nothing is waited for: an ingest that ends too early does so within a millisecond.
const QUIET: std::time::Duration = std::time::Duration::from_millis(300);

#[tokio::test]
async fn what_comes_out_ends_with_the_ingest_and_not_with_the_last_codec_block() {
    // A brotli stream says itself that it is over, so all is decoded before the file is.
    let nar = nar(1_000);
    let file = pack(Compression::Br, &nar);
    let codec = sniff(Compression::Br, &file[..SNIFF_LEN]).expect("a known codec");
    let nar_len = NarLen::AtMost(1 << 20);
    let plan = Plan { codec, form: ANEW, nar_len, sums_source: true };
    let Pipe { feed, mut out, done } = Ingest::new(TaskTracker::new()).start(plan);
    feed.send(Feed::Bytes(Bytes::from(file.clone()))).await.unwrap();
    let all_out = async { while out.recv().await.is_some() {} };
    tokio::pin!(all_out);
    let early = tokio::time::timeout(QUIET, &mut all_out).await;
    assert!(early.is_err(), "it says that it has ended, and waits for the end of the file");
    feed.send(Feed::End).await.unwrap();
    all_out.await;
    let ingested = done.await.unwrap().unwrap();
    assert_eq!(ingested.source_hash.unwrap().as_bytes(), Sha256::digest(&file).as_slice());
}
