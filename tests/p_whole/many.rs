//! Many uploaders at once, whose closures overlap.

use std::io::Write;

use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use snowberry::nix::Compression;
use tokio::task::JoinSet;

use crate::Lab;
use crate::made::{self, Made, noise};
use crate::world::{Bucket, Settings, Wrong};

const UPLOADERS: usize = 8;

/// What the process may take at its peak: uploads get half of the 48 MiB of codecs, and as much
/// again is for all else. The eight wide files alone, unpacked at once, want more.
const PEAK_KIB_MAX: u64 = 64 << 10;

/// The paths of one uploader, references first; half of them every other one has as well.
fn closure(uploader: usize) -> Vec<Made> {
    let shared = (0..8).map(|n| Made::mixed(&format!("shared-{n}"), 5_000 + n * 15_000));
    let own = (0..8).map(|n| Made::mixed(&format!("own-{uploader}-{n}"), 5_000 + n * 10_000));
    let mut paths: Vec<Made> = Vec::new();
    for made in shared.chain(own) {
        let below: Vec<Made> = paths.iter().rev().take(3).cloned().collect();
        paths.push(made.referring_to(&below.iter().collect::<Vec<_>>()));
    }
    // As many codecs as there are; the same NAR comes in other files from other uploaders.
    let codec = |n: usize| Compression::ALL[(n + uploader) % Compression::ALL.len()];
    paths.into_iter().enumerate().map(|(n, made)| made.packed(codec(n))).collect()
}

/// An xz file whose decoder wants 8 MiB, with a NAR larger than that.
fn wide(uploader: usize) -> Made {
    let pattern = noise("pattern", 64 << 10);
    let mut made = Made::noise(&format!("wide-{uploader}"), 1000);
    let contents = snowberry::nix::nar::Node::File {
        executable: false,
        contents: [pattern.repeat(140), vec![u8::try_from(uploader).unwrap(); 100]].concat(),
    };
    made.nar = contents.to_nar();
    let mut options = LzmaOptions::new_preset(0).unwrap();
    let mut filters = Filters::new();
    filters.lzma2(options.dict_size(8 << 20));
    let stream = Stream::new_stream_encoder(&filters, Check::Crc32).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(&made.nar).unwrap();
    made.file = encoder.finish().unwrap();
    made
}

/// The most memory that a process ever had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_uploaders_with_overlapping_closures_are_all_taken_and_each_nar_once() {
    let bucket = Bucket::start().await;
    bucket.wrong("", Wrong::NoWrite(503, "SlowDown"));
    let settings = Settings::new().upstream_with(&bucket.url(), &made::public_key(), "push=true");
    let lab = Lab::with(settings).await;
    let closures: Vec<Vec<Made>> =
        (0..UPLOADERS).map(|uploader| [vec![wide(uploader)], closure(uploader)].concat()).collect();
    let mut uploads = JoinSet::new();
    for closure in closures.clone() {
        let uploader = lab.uploader();
        uploads.spawn(async move {
            for made in &closure {
                uploader.push(made).await;
            }
        });
    }
    while let Some(upload) = uploads.join_next().await {
        upload.expect("every PUT is answered 200");
    }
    let peak = peak_kib(lab.snowberry.pid());
    println!("peak {peak} KiB");
    assert!(peak < PEAK_KIB_MAX, "{peak} KiB");

    let distinct = u64::try_from(UPLOADERS * 9 + 8).unwrap();
    let status = lab.snowberry.status().await;
    assert_eq!(status["store"]["nars"], distinct, "{status}");
    assert_eq!(status["store"]["narinfos"], distinct);
    assert_eq!(status["queue"]["waiting"], distinct);
    for made in closures.iter().flatten() {
        let narinfo = lab.narinfo(made).await.unwrap();
        assert!(lab.is_ours(&narinfo).await);
    }

    bucket.heal();
    lab.drained().await;
    assert_eq!(bucket.put_twice(), Vec::<String>::new());
    let objects = usize::try_from(distinct).unwrap();
    assert_eq!((bucket.puts("nar/"), bucket.puts(".narinfo")), (objects, objects));
    bucket.expect_order();
    for made in closures.iter().flatten() {
        let narinfo = bucket.object(&made.narinfo_url()[1..]).unwrap();
        let narinfo = crate::world::closure::Narinfo::parse(&narinfo);
        assert!(made.is_in(&bucket.object(narinfo.field("URL")).unwrap()), "{}", made.store_path);
    }
}
