//! Small documents: logs, realisations, build traces, debuginfo, listings. Passed through and kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::ask::{self, Said};
use super::{Inner, Outcome};
use crate::nix::{FileHash, StorePathHash};
use crate::store::Origin;
use crate::upstream::Upstream;

/// For the upstreams together: a log may be some MiB on a slow line, and nobody's build waits.
const UPSTREAM_WAIT: Duration = Duration::from_secs(10);

/// Documents in memory at once on their way to clients, those that are shorter than [`LARGE_FROM_LEN`]
/// left out: two of the longest, or the logs of a dozen readers. A client may take its time to read one,
/// and hundreds may ask.
const LARGE_BYTES_MAX: usize = 32 << 20;

/// Below this a document is nothing beside the buffers of its connection.
const LARGE_FROM_LEN: usize = 64 << 10;

/// How long a large one waits until others have gone out.
const LARGE_WAIT: Duration = Duration::from_secs(20);

/// Logs and the like that are asked of upstreams at once: each may have 16 MiB.
const ASKED_MAX: usize = 2;

/// What is short whatever it says, and asked for by the hundred.
const SHORT_KINDS: [&str; 2] = ["realisations/", "build-trace-v2/"];

/// What of documents may be in memory.
pub(super) struct Bounds {
    bytes: Arc<Semaphore>,
    asked: Semaphore,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: Arc::new(Semaphore::new(LARGE_BYTES_MAX)), asked: Semaphore::new(ASKED_MAX) }
    }
}

/// A document with its share of what may be in memory, which lasts as long as its bytes.
struct Large {
    body: Bytes,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Bounds {
    /// A document as it is handed out: a large one once there is room for it; `None` where none came.
    async fn admit(&self, body: Bytes) -> Option<Bytes> {
        if body.len() < LARGE_FROM_LEN {
            return Some(body);
        }
        let len = u32::try_from(body.len().min(LARGE_BYTES_MAX)).ok()?;
        let share = Arc::clone(&self.bytes).acquire_many_owned(len);
        let share = timeout(LARGE_WAIT, share).await.ok()?.ok()?;
        Some(Bytes::from_owner(Large { body, _share: share }))
    }
}

async fn bounded(inner: &Inner, found: Outcome<Bytes>) -> Outcome<Bytes> {
    let bounds = &inner.documents;
    match found {
        Outcome::Hit(body) => bounds.admit(body).await.map_or(Outcome::Absent, Outcome::Hit),
        Outcome::Miss(body) => bounds.admit(body).await.map_or(Outcome::Absent, Outcome::Miss),
        Outcome::Absent => Outcome::Absent,
    }
}

/// The `.ls` of a store path: made here while its NAR passed, else the upstream's.
pub(super) async fn listing(inner: &Inner, key: StorePathHash) -> Outcome<Bytes> {
    if inner.is_degraded() {
        return Outcome::Absent;
    }
    if let Ok(Some((stored, Some(_)))) = inner.store.lookup(key).await
        && let Ok(Some(listing)) = inner.store.listing(stored.narinfo.nar_hash).await
    {
        return bounded(inner, Outcome::Hit(listing)).await;
    }
    document(inner, &format!("{key}.ls")).await
}

/// A document by its path.
pub(super) async fn document(inner: &Inner, path: &str) -> Outcome<Bytes> {
    let found = find(inner, path).await;
    bounded(inner, found).await
}

async fn find(inner: &Inner, path: &str) -> Outcome<Bytes> {
    if inner.is_degraded() {
        return Outcome::Absent;
    }
    match inner.store.document(path).await {
        Ok(Some(body)) => return Outcome::Hit(shown(inner, path, body)),
        Ok(None) => {}
        Err(_) => return Outcome::Absent,
    }
    let name: Arc<str> = path.into();
    if inner.memory.absent_documents.holds(&name) {
        return Outcome::Absent;
    }
    let upstreams = inner.upstreams();
    let questions = upstreams
        .iter()
        .map(|upstream| -> BoxFuture<'_, Said<Bytes>> { Box::pin(ask_one(upstream, path)) });
    let asking = async {
        let is_short = SHORT_KINDS.iter().any(|kind| path.starts_with(kind));
        let places = &inner.documents.asked;
        let _place = if is_short { None } else { places.acquire().await.ok() };
        ask::first(questions.collect::<Vec<_>>()).await
    };
    let Ok(asked) = timeout(UPSTREAM_WAIT, asking).await else { return Outcome::Absent };
    let Some(body) = asked.found else {
        if !asked.trouble {
            inner.memory.absent_documents.note(name, ());
        }
        return Outcome::Absent;
    };
    if let Err(error) = inner.store.keep_document(path, body.clone(), Origin::Upstream).await {
        warn!(path, error = &error as &dyn std::error::Error, "document could not be kept");
    }
    Outcome::Miss(shown(inner, path, body))
}

async fn ask_one(upstream: &Upstream, path: &str) -> Said<Bytes> {
    if upstream.is_resting() {
        return Said::Trouble;
    }
    match upstream.document(path).await {
        Ok(Some(body)) => Said::Found(body),
        Ok(None) => Said::Absent,
        Err(error) => {
            debug!(upstream = %upstream.url(), path, error = &error as &dyn std::error::Error,
                "document could not be fetched");
            Said::Trouble
        }
    }
}

/// The document as clients see it: debuginfo names a NAR file of its upstream, which is replaced by
/// our name for that NAR where it is known; other documents are passed on as they are.
fn shown(inner: &Inner, path: &str, body: Bytes) -> Bytes {
    if !path.starts_with("debuginfo/") {
        return body;
    }
    let ours = |file_hash: &FileHash| inner.memory.file_names.recall(file_hash);
    rewritten(&body, |file_hash| ours(file_hash).map(|name| format!("../{name}"))).unwrap_or(body)
}

/// `{"archive":"../nar/<file hash>.nar.xz", ...}` with another archive; `None` when it is no such
/// document or its NAR is not known.
fn rewritten(body: &[u8], archive_of: impl Fn(&FileHash) -> Option<String>) -> Option<Bytes> {
    let mut document: Value = serde_json::from_slice(body).ok()?;
    let archive = document.get_mut("archive")?;
    let file = archive.as_str()?.rsplit('/').next()?;
    let file_hash = FileHash::from_nix32(file.split('.').next()?).ok()?;
    *archive = Value::String(archive_of(&file_hash)?);
    Some(document.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_of_debuginfo_becomes_our_name_where_it_is_known() {
        let hash = FileHash::from_bytes([5; 32]);
        let body = format!(r#"{{"archive":"../nar/{}.nar.xz","member":"m"}}"#, hash.to_nix32());
        let known = rewritten(body.as_bytes(), |found| {
            (*found == hash).then(|| "../nar/ours.nar.zst".to_owned())
        });
        let expected = r#"{"archive":"../nar/ours.nar.zst","member":"m"}"#;
        assert_eq!(known.as_deref(), Some(expected.as_bytes()));
        assert_eq!(rewritten(body.as_bytes(), |_| None), None);
        assert_eq!(rewritten(b"\x7fELF", |_| Some(String::new())), None);
    }

    #[tokio::test(start_paused = true)]
    async fn large_documents_wait_for_those_that_are_being_read_and_short_ones_do_not() {
        let bounds = Bounds::default();
        let long = |byte: u8| Bytes::from(vec![byte; LARGE_BYTES_MAX / 2]);
        let (first, second) = (bounds.admit(long(1)).await, bounds.admit(long(2)).await);
        assert_eq!((&first, &second), (&Some(long(1)), &Some(long(2))));
        let part = first.as_ref().map(|first| first.slice(5..6));
        assert!(bounds.admit(Bytes::from_static(b"short")).await.is_some());
        let began = tokio::time::Instant::now();
        drop(first);
        assert_eq!(bounds.admit(long(3)).await, None, "a client still has a part of it");
        assert_eq!(began.elapsed(), LARGE_WAIT);
        drop(part);
        assert!(bounds.admit(long(3)).await.is_some());
        drop(second);
        let longest = Bytes::from(vec![0; LARGE_BYTES_MAX + 1]);
        assert!(bounds.admit(longest).await.is_some(), "one that is too long for it is alone");
    }
}
