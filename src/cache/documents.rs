//! Small documents: logs, realisations, build traces, debuginfo, listings. Passed through and kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::ask::{self, Said};
use super::{Inner, Outcome};
use crate::nix::{FileHash, StorePathHash};
use crate::store::{self, Origin};
use crate::upstream::{self, Upstream};

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

/// What is fetched without more ado: nearly every document, 64 of them at once from each upstream.
const SHORT_LEN_MAX: usize = 256 << 10;

/// Longer ones that are fetched at once.
const LONG_MAX: usize = 2;

/// What is short whatever it says.
const SHORT_KINDS: [&str; 3] = ["realisations/", "build-trace-v2/", "debuginfo/"];

/// What of documents may be in memory.
pub(super) struct Bounds {
    bytes: Arc<Semaphore>,
    long: Semaphore,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: Arc::new(Semaphore::new(LARGE_BYTES_MAX)), long: Semaphore::new(LONG_MAX) }
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

impl Large {
    fn with(body: Bytes, share: OwnedSemaphorePermit) -> Bytes {
        Bytes::from_owner(Self { body, _share: share })
    }
}

impl Bounds {
    /// A document as it is handed out. A large one for which there is no room now is let go of, and
    /// is what `again` reads once there is; `None` where that took too long.
    async fn admit(
        &self,
        body: Bytes,
        again: impl Future<Output = Option<Bytes>>,
    ) -> Option<Bytes> {
        if body.len() < LARGE_FROM_LEN {
            return Some(body);
        }
        let share_len = u32::try_from(body.len().min(LARGE_BYTES_MAX)).ok()?;
        if let Ok(share) = Arc::clone(&self.bytes).try_acquire_many_owned(share_len) {
            return Some(Large::with(body, share));
        }
        let len = body.len();
        drop(body);
        let share = Arc::clone(&self.bytes).acquire_many_owned(share_len);
        let share = timeout(LARGE_WAIT, share).await.ok()?.ok()?;
        // Another one may have taken its place, for which that share is too small.
        let body = again.await.filter(|body| body.len() <= len)?;
        Some(Large::with(body, share))
    }
}

/// The `.ls` of a store path: made here while its NAR passed, else the upstream's.
pub(super) async fn listing(inner: &Inner, key: StorePathHash) -> Outcome<Bytes> {
    if inner.is_degraded() {
        return Outcome::Absent;
    }
    if let Ok(Some((stored, Some(_)))) = inner.store.lookup(key).await {
        let made = || inner.store.listing(stored.narinfo.nar_hash);
        if let Ok(Some(listing)) = made().await {
            let again = async { made().await.ok().flatten() };
            let listing = inner.documents.admit(listing, again).await;
            return listing.map_or(Outcome::Absent, Outcome::Hit);
        }
    }
    document(inner, &format!("{key}.ls")).await
}

/// A document by its path.
pub(super) async fn document(inner: &Inner, path: &str) -> Outcome<Bytes> {
    if inner.is_degraded() {
        return Outcome::Absent;
    }
    let kept = || async {
        let body = inner.store.document(path).await?;
        Ok::<_, store::Error>(body.map(|body| shown(inner, path, body)))
    };
    let again = async { kept().await.ok().flatten() };
    match kept().await {
        Ok(Some(body)) => {
            let body = inner.documents.admit(body, again).await;
            return body.map_or(Outcome::Absent, Outcome::Hit);
        }
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
        .map(|upstream| -> BoxFuture<'_, Said<_>> { Box::pin(ask_one(inner, upstream, path)) });
    let asking = ask::first(questions.collect::<Vec<_>>());
    let Ok(asked) = timeout(UPSTREAM_WAIT, asking).await else { return Outcome::Absent };
    let Some(Fetched { body, place }) = asked.found else {
        if !asked.trouble {
            inner.memory.absent_documents.note(name, ());
        }
        return Outcome::Absent;
    };
    if let Err(error) = inner.store.keep_document(path, body.clone(), Origin::Upstream).await {
        warn!(path, error = &error as &dyn std::error::Error, "document could not be kept");
    }
    // From here on it counts among those that go out.
    drop(place);
    let body = inner.documents.admit(shown(inner, path, body), again).await;
    body.map_or(Outcome::Absent, Outcome::Miss)
}

/// What came, and the place among the long ones that it has until it has gone on.
struct Fetched<'a> {
    body: Bytes,
    place: Option<SemaphorePermit<'a>>,
}

async fn ask_one<'a>(inner: &'a Inner, upstream: &Upstream, path: &str) -> Said<Fetched<'a>> {
    if upstream.is_resting() {
        return Said::Trouble;
    }
    let mut place = None;
    let mut answer = upstream.document(path, SHORT_LEN_MAX).await;
    let is_short = SHORT_KINDS.iter().any(|kind| path.starts_with(kind));
    if matches!(answer, Err(upstream::Error::TooLong { .. })) && !is_short {
        // Asked again: a place that is waited for before it is known to be needed would be kept by
        // those who say nothing.
        place = inner.documents.long.acquire().await.ok();
        answer = upstream.document(path, upstream::DOCUMENT_LEN_MAX).await;
    }
    match answer {
        Ok(Some(body)) => Said::Found(Fetched { body, place }),
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
    use std::sync::atomic::{AtomicBool, Ordering};

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

    /// Tells when nobody has it any more.
    struct Told(Vec<u8>, Arc<AtomicBool>);

    impl AsRef<[u8]> for Told {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            self.1.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_documents_wait_for_those_that_are_being_read_and_short_ones_do_not() {
        let bounds = Bounds::default();
        let long = |byte: u8| Bytes::from(vec![byte; LARGE_BYTES_MAX / 2]);
        let admit = |body| bounds.admit(body, async { None });
        let (first, second) = (admit(long(1)).await, admit(long(2)).await);
        assert_eq!((&first, &second), (&Some(long(1)), &Some(long(2))));
        let part = first.as_ref().map(|first| first.slice(5..6));
        assert!(admit(Bytes::from_static(b"short")).await.is_some());
        let began = tokio::time::Instant::now();
        drop(first);
        assert_eq!(admit(long(3)).await, None, "a client still has a part of it");
        assert_eq!(began.elapsed(), LARGE_WAIT);
        drop(part);
        assert!(admit(long(3)).await.is_some());
        drop(second);
        let longest = Bytes::from(vec![0; LARGE_BYTES_MAX + 1]);
        assert!(admit(longest).await.is_some(), "one that is too long for it is alone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_document_that_waits_is_not_in_memory_and_is_read_again() {
        let bounds = Bounds::default();
        let all = bounds.admit(vec![0; LARGE_BYTES_MAX].into(), async { None }).await;
        let is_gone = Arc::new(AtomicBool::new(false));
        let waits = Told(vec![1; LARGE_FROM_LEN], Arc::clone(&is_gone));
        let again = async { Some(vec![1; LARGE_FROM_LEN].into()) };
        let waiting = bounds.admit(Bytes::from_owner(waits), again);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert!(is_gone.load(Ordering::Relaxed));
        drop(all);
        assert_eq!(waiting.await, Some(vec![1; LARGE_FROM_LEN].into()));
        let all = bounds.admit(vec![0; LARGE_BYTES_MAX].into(), async { None }).await;
        let longer = async { Some(vec![1; LARGE_FROM_LEN + 1].into()) };
        let waiting = bounds.admit(vec![1; LARGE_FROM_LEN].into(), longer);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(all);
        assert_eq!(waiting.await, None, "its share is for less");
    }
}
