//! What the process holds at most, whatever is asked of it at once, and what it does where memory runs
//! short. Nothing is timed: a process that holds more than it may fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Method;
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use made::{Made, MadeCache, noise, public_key};
use snowberry::nix::Compression;
use snowberry::push::tokens::Tokens;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use world::parts::program;
use world::{Answer, Client, Settings, Snowberry, until};

/// What `docs/architecture.md` has for this load as the sum of all that is bounded: codecs, what the store
/// holds open, rows on their way, connections; and the program's own pages.
const RESIDENT_BYTES_MAX: u64 = 176 << 20;

/// A log of the longest kind, and how many read it at once.
const LOG_LEN: usize = 15 << 20;
const LOG_READERS: usize = 40;

/// NARs that are missed at once, each by a client of its own.
const MISSED: usize = 28;

/// What is uploaded.
const CODECS: [Compression; 6] = [
    Compression::Xz,
    Compression::Zstd,
    Compression::Bzip2,
    Compression::Gzip,
    Compression::Br,
    Compression::None,
];

/// Uploads at once in each codec.
const PUT_IN_EACH: usize = 3;

/// After a look, every 5 s, things are as they are to be.
const LOOKED_LIMIT: Duration = Duration::from_secs(30);

/// A path that takes a dictionary of so many MiB to unpack, and uses all of it.
fn wide(name: &str, dictionary_mib: u32) -> Made {
    let mut options = LzmaOptions::new_preset(0).unwrap();
    options.dict_size(dictionary_mib << 20);
    let stream = Stream::new_stream_encoder(Filters::new().lzma2(&options), Check::Crc32).unwrap();
    let made = Made::packed_zeros(name, usize::try_from((dictionary_mib + 1) << 20).unwrap());
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(&made.nar).unwrap();
    Made { compression: Compression::Xz, ..made.in_file(encoder.finish().unwrap()) }
}

fn token(snowberry: &Snowberry) -> String {
    let token = Tokens::new(snowberry.state().join("tokens")).add("tester", [3; 20], 0).unwrap();
    format!("Basic {}", STANDARD.encode(format!("any:{token}")))
}

async fn put(client: Client, token: String, made: Made) -> Answer {
    let headers = [("authorization", token.as_str())];
    let path = format!("/{}", made.file_url());
    client.ask(Method::PUT, &path, &headers, made.file.into()).await
}

/// The most that was ever resident.
fn peak_bytes(snowberry: &Snowberry) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", snowberry.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

async fn read(client: Client, made: Made) {
    assert_eq!(client.get(&made.narinfo_url()).await.status, 200);
    let nar = client.get(&made.nar_url()).await;
    assert!(nar.status == 200 && nar.whole && made.is_in(&nar.body), "{:?}", nar.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nars_at_once_and_uploads_in_all_codecs_stay_within_what_is_bounded() {
    let missed: Vec<_> = (0..MISSED).map(|n| wide(&format!("wide-{n}"), 8)).collect();
    let cache = MadeCache::of(&missed);
    let snowberry = Settings::new().upstream(&cache.file_url(), &public_key()).start().await;
    snowberry.ready().await;
    let token = token(&snowberry);
    let mut all = JoinSet::new();
    for made in missed {
        all.spawn(read(snowberry.client(), made));
    }
    for codec in CODECS {
        for n in 0..PUT_IN_EACH {
            let made = Made::mixed(&format!("put-{codec:?}-{n}"), 3 << 20).packed(codec);
            let (client, token) = (snowberry.client(), token.clone());
            all.spawn(async move {
                let answer = put(client, token, made).await;
                assert_eq!(answer.status, 200, "{codec:?}: {}", answer.text());
            });
        }
    }
    // Logs of the longest kind, which nobody has asked for before, put and read beside.
    for n in 0..6 {
        let (client, token) = (snowberry.client(), token.clone());
        all.spawn(async move {
            let path = format!("/log/{}-x.drv", "0".repeat(31) + &n.to_string());
            let headers = [("authorization", token.as_str())];
            let log = noise(&path, LOG_LEN);
            let answer = client.ask(Method::PUT, &path, &headers, log.clone().into()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let back = client.get(&path).await;
            assert!(back.status == 200 && back.body == log, "{:?}", back.headers);
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let peak = peak_bytes(&snowberry);
    println!("at most {} MiB were resident", peak >> 20);
    assert!(peak <= RESIDENT_BYTES_MAX, "{} MiB were resident", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_that_many_read_slowly_is_in_memory_a_few_times_only() {
    let snowberry = Settings::new().start().await;
    snowberry.ready().await;
    let token = token(&snowberry);
    let path = format!("/log/{}-x.drv", "1".repeat(32));
    let headers = [("authorization", token.as_str())];
    let log = noise(&path, LOG_LEN);
    let answer = snowberry.client().ask(Method::PUT, &path, &headers, log.clone().into()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut readers = Vec::new();
    for _ in 0..LOG_READERS {
        let mut reader = TcpStream::connect(snowberry.address).await.unwrap();
        let question = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        reader.write_all(question.as_bytes()).await.unwrap();
        readers.push(reader);
    }
    // Of each the status only: those who have an answer do not go on reading it.
    let mut statuses = Vec::new();
    for reader in &mut readers {
        let mut line = [0; "HTTP/1.1 200".len()];
        reader.read_exact(&mut line).await.unwrap();
        statuses.push(String::from_utf8(line.into()).unwrap());
    }
    let count = |status: &str| statuses.iter().filter(|it| it.ends_with(status)).count();
    assert_eq!((count("200"), count("404")), (2, LOG_READERS - 2), "{statuses:?}");
    let peak = peak_bytes(&snowberry);
    println!("at most {} MiB were resident", peak >> 20);
    assert!(peak <= RESIDENT_BYTES_MAX, "{} MiB were resident", peak >> 20);
}

/// What the kernel says of a machine's memory.
fn tell(file: &Path, total_mib: u64, free_mib: u64) {
    let text = format!(
        "MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: {} kB\n",
        total_mib << 10,
        free_mib << 10
    );
    // In place: the file is mounted elsewhere.
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_memory_runs_short_less_is_unpacked_until_it_is_well_again() {
    let Some(unshare) = program("unshare") else { return };
    let folder = TempDir::new().unwrap();
    let meminfo = folder.path().join("meminfo");
    std::fs::write(&meminfo, "").unwrap();
    tell(&meminfo, 420, 300);
    let (small, large) = (wide("small", 8), wide("large", 48));
    let cache = MadeCache::of([&small, &large]);
    // A machine of 420 MiB, as this process sees it.
    let script = r#"mount --bind "$1" /proc/meminfo && shift && exec "$@""#;
    let unshare = unshare.display().to_string();
    let path = meminfo.display().to_string();
    let wrapper = [unshare.as_str(), "--mount", "sh", "-c", script, "sh", path.as_str()];
    let settings = Settings::new().upstream(&cache.file_url(), &public_key()).wrapped(&wrapper);
    let snowberry = settings.start().await;
    snowberry.ready().await;
    let looked = |is_short: bool| {
        let snowberry = &snowberry;
        async move {
            until("a look at the memory", LOOKED_LIMIT, || async {
                let status = snowberry.status().await;
                (status["host"]["memory_short_since_s"].is_u64() == is_short).then_some(status)
            })
            .await
        }
    };
    let status = looked(false).await;
    assert_eq!(status["host"]["memory_room_bytes"], 420 << 20, "{status}");
    tell(&meminfo, 420, 20);
    // It looks only while something is unpacked.
    read(snowberry.client(), small.clone()).await;
    let status = looked(true).await;
    let told = status["troubles"].to_string();
    assert!(told.contains("memory runs short"), "{told}");
    let page = snowberry.client().get("/").await;
    assert!(page.text().contains("memory runs short"), "{}", page.text());
    let metrics = snowberry.client().get("/metrics").await;
    assert!(metrics.text().contains("\nsnowberry_memory_short 1\n"), "{}", metrics.text());
    // What would take more than the smaller budget is left to other caches, at once.
    assert_eq!(snowberry.client().get(&large.narinfo_url()).await.status, 200);
    assert_eq!(snowberry.client().get(&large.nar_url()).await.status, 404);
    let again = wide("again", 8);
    cache.add(&again);
    read(snowberry.client(), again).await;
    tell(&meminfo, 420, 300);
    let status = looked(false).await;
    assert_eq!(status["troubles"], serde_json::json!([]), "{status}");
    read(snowberry.client(), large).await;
}
