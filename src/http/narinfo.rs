//! narinfos and small documents: bytes at hand, or absent.

use bytes::Bytes;

use super::reply::{Media, Reply};
use super::route::Family;
use crate::cache::{Cache, Outcome};
use crate::metrics::Ended;
use crate::nix::StorePathHash;

/// Answers a question for a narinfo: from memory on the reactor where it is ready.
pub(super) async fn answer(cache: &Cache, key: StorePathHash) -> (Reply, Ended) {
    match cache.ready_narinfo(key) {
        Some(narinfo) => (Reply::Found(Media::Narinfo, narinfo), Ended::Hit),
        None => found(cache.narinfo(key).await, Media::Narinfo),
    }
}

/// Answers a question for a `.ls`.
pub(super) async fn listing(cache: &Cache, key: StorePathHash) -> (Reply, Ended) {
    found(cache.listing(key).await, Media::Json)
}

/// Answers a question for a small document.
pub(super) async fn document(cache: &Cache, family: Family, path: &str) -> (Reply, Ended) {
    found(cache.document(path).await, media(family, path))
}

/// The media type of a small document.
pub(super) fn media(family: Family, path: &str) -> Media {
    match family {
        Family::Log => Media::Text,
        Family::Realisation => Media::Json,
        // dwarffs takes a JSON redirect as well as an ELF file.
        Family::DebugInfo => match path.rsplit_once('.') {
            Some((_, "debug")) => Media::Json,
            Some(_) | None => Media::Octets,
        },
    }
}

fn found(outcome: Outcome<Bytes>, media: Media) -> (Reply, Ended) {
    match outcome {
        Outcome::Hit(body) => (Reply::Found(media, body), Ended::Hit),
        Outcome::Miss(body) => (Reply::Found(media, body), Ended::Miss),
        Outcome::Absent => (Reply::Absent, Ended::Absent),
    }
}
