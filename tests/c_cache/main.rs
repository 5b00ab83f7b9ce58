//! Reads through the built `snowberry`, by a plain HTTP client, from a scripted upstream and from
//! folders: one fetch, good URLs, every codec, ranges, narinfos, offline, no room, hostile caches.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

mod codecs;
mod hostile;
mod narinfos;
mod offline;
mod one_fetch;
mod ranges;
mod room;
mod urls;

use std::time::Duration;

use made::{Made, MadeCache};
use snowberry::nix::{NarInfo, StoreDir};
use world::{Answer, NARINFO_LIMIT, Scripted, Settings, Snowberry, until};

/// How long anything may take that happens behind the answers.
const SOON: Duration = Duration::from_secs(10);

/// A cache with these paths, a server for it, and a snowberry in front.
struct Lab {
    cache: MadeCache,
    upstream: Scripted,
    snowberry: Snowberry,
}

impl Lab {
    async fn of<'a>(paths: impl IntoIterator<Item = &'a Made>) -> Self {
        Self::with(paths, |settings| settings).await
    }

    async fn with<'a>(
        paths: impl IntoIterator<Item = &'a Made>,
        more: impl FnOnce(Settings) -> Settings,
    ) -> Self {
        let cache = MadeCache::of(paths);
        let upstream = Scripted::serve(cache.root()).await;
        let settings = Settings::new().upstream(&upstream.url(), &made::public_key());
        let snowberry = more(settings).start().await;
        Self { cache, upstream, snowberry }
    }

    async fn narinfo(&self, made: &Made) -> Option<NarInfo> {
        narinfo(&self.snowberry, made).await
    }

    /// Narinfo, then NAR, as a client does; the NAR as it was served.
    async fn fetch(&self, made: &Made) -> Answer {
        fetch(&self.snowberry, made).await
    }

    /// The NAR by its URL alone.
    async fn nar(&self, made: &Made) -> Answer {
        self.snowberry.client().get(&made.nar_url()).await
    }

    async fn is_held(&self, made: &Made) -> bool {
        is_held(&self.snowberry, made).await
    }

    async fn until_held(&self, made: &Made) {
        until("the NAR to be whole here", SOON, async || self.is_held(made).await.then_some(()))
            .await;
    }
}

/// The narinfo, when it is there, held to what every narinfo must be.
async fn narinfo(snowberry: &Snowberry, made: &Made) -> Option<NarInfo> {
    let answer = snowberry.narinfo(&made.store_path_hash().to_string()).await;
    assert!(answer.all_after <= NARINFO_LIMIT, "narinfo after {:?}", answer.all_after);
    assert_eq!(answer.header("content-encoding"), None);
    if answer.status == 404 {
        return None;
    }
    assert_eq!((answer.status, answer.whole), (200, true));
    assert!(answer.text().ends_with('\n'));
    let narinfo = NarInfo::parse(&answer.body, &StoreDir::default()).unwrap();
    assert_eq!(narinfo.store_path, made.store_path);
    assert_eq!(format!("/{}", narinfo.url), made.nar_url());
    assert_eq!(narinfo.compression.label(), "zstd");
    let fingerprint = narinfo.fingerprint(&StoreDir::default());
    assert_eq!(fingerprint, made.narinfo().fingerprint(&StoreDir::default()));
    let key = made::key().public();
    assert!(narinfo.signatures.iter().any(|signature| key.verifies(&fingerprint, signature)));
    Some(narinfo)
}

async fn fetch(snowberry: &Snowberry, made: &Made) -> Answer {
    assert!(narinfo(snowberry, made).await.is_some(), "no narinfo of {}", made.store_path);
    let answer = snowberry.client().get(&made.nar_url()).await;
    assert_eq!((answer.status, answer.whole), (200, true), "{}", made.store_path);
    assert!(made.is_in(&answer.body), "another NAR than that of {}", made.store_path);
    answer
}

async fn is_held(snowberry: &Snowberry, made: &Made) -> bool {
    let answer = snowberry.client().head(&made.nar_url()).await;
    assert!(matches!(answer.status, 200 | 404), "HEAD of a NAR: {}", answer.status);
    answer.status == 200
}
