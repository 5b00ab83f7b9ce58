//! What people see: the page in a real browser, its figures against the status and the metrics, what
//! Prometheus makes of them, and that they survive. Nothing is written for being read.

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

mod browser;
mod figures;
mod prometheus;
mod troubled;

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use made::{Made, MadeCache, public_key};
use snowberry::metrics::Metrics;
use snowberry::store::{self, History, Store};
use world::{Settings, Snowberry};

/// Behind a cache that has these.
async fn behind(cache: &MadeCache, settings: Settings) -> Snowberry {
    settings.upstream(&cache.file_url(), &public_key()).start().await
}

/// Narinfo, then NAR, as a client does.
async fn read(snowberry: &Snowberry, made: &Made) {
    assert_eq!(snowberry.client().get(&made.narinfo_url()).await.status, 200);
    let nar = snowberry.client().get(&made.nar_url()).await;
    assert!(nar.status == 200 && nar.whole && made.is_in(&nar.body), "{:?}", nar.headers);
}

/// A figure of the metrics, all its series together.
fn metric(text: &str, name: &str) -> f64 {
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let is_it =
            series == name || series.strip_prefix(name).is_some_and(|it| it.starts_with('{'));
        is_it.then(|| value.parse::<f64>().unwrap())
    };
    text.lines().filter_map(of).sum()
}

/// A year of a house as `docs/format.md` has it, put into the store of a cache that is not running.
struct Past(Vec<(&'static str, Bytes)>);

impl History for Past {
    fn found(&self, _rows: Vec<(String, Bytes)>) {}

    fn rows(&self) -> Vec<(&'static str, Bytes)> {
        self.0.clone()
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Past {
    fn year() -> Self {
        let (hour, day) = (now_s() / 3600, now_s() / 86_400);
        let mut hours = Vec::new();
        for sum in [90_000_u64, 30_000, 5000, 900 << 30, 300 << 30] {
            hours.extend(sum.to_be_bytes());
        }
        // Some nights nobody asks; the rest goes up and down without chance.
        let busy = |number: u64| number * number * 7919 % 97 * u64::from(number % 24 > 6);
        for ago in (0..48).rev() {
            let number = hour - ago;
            entry(&mut hours, number, busy(number), (180 << 30) + (48 - ago) * (300 << 20));
        }
        let (mut today, mut days) = (Vec::new(), Vec::new());
        entry(&mut today, day, 200, 195 << 30);
        for ago in (1..400).rev() {
            let number = day - ago;
            entry(
                &mut days,
                number,
                number * number * 31 % 89 * 9,
                (195 << 30) - ago * (400 << 20),
            );
        }
        let row = Bytes::from;
        Self(vec![("hours-1", row(hours)), ("today-1", row(today)), ("days-1", row(days))])
    }

    async fn put_into(self, state: &Path) {
        let path = state.join("store");
        let marker = Some(state.join("store-begun"));
        let config = store::Config { path: Some(path.clone()), marker, ..store::Config::default() };
        let disk = Arc::new(store::disk::Folder { path });
        let past = Store::start(config, disk, Metrics::new()).unwrap();
        assert_eq!(past.first_opened().await, store::State::Open);
        past.keep_history(Arc::new(self));
        past.close().await;
    }
}

fn entry(row: &mut Vec<u8>, number: u64, busy: u64, used_bytes: u64) {
    row.extend(u32::try_from(number).unwrap().to_be_bytes());
    for count in [busy * 5, busy, busy / 3, busy << 24, busy << 22, used_bytes] {
        row.extend(count.to_be_bytes());
    }
    row.extend(u32::try_from(busy % 40).unwrap().to_be_bytes());
    row.extend((1000 + 450 + u16::try_from(busy).unwrap() % 150).to_be_bytes());
}
