//! The bytes that go up: a NAR from its rows, a document as the bucket wants it.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::carry::{Carrier, Failed};
use super::{Inner, now_s};
use crate::limit::Limit;
use crate::nix::{CacheInfo, FileHash, NarHash, NarName, StorePath, UploadName};
use crate::store::{self, HeldNar, Queued};
use crate::upstream::{self, Object, ObjectHead, Source};

/// A NAR's media type, as Nix sends it.
const NAR_TYPE: &str = "application/x-nix-nar";

/// A debuginfo document comes before the NAR that it names. One whose NAR has not come in a day was
/// left behind by a client that gave up: it goes up as it is.
const EARLY_MAX: Duration = Duration::from_hours(24);

/// How often a target that is given something is asked whether it still calls itself a cache.
const CACHE_INFO_EVERY: Duration = Duration::from_hours(1);

/// How long that may take: it waits for nobody's build, but holds a place of four.
const CACHE_INFO_WAIT: Duration = Duration::from_secs(15);

/// What makes a bucket a cache for those who read it directly.
const CACHE_INFO: &str = "nix-cache-info";

/// Above cache.nixos.org's 40: a bucket is asked after it, a snowberry before it.
const CACHE_INFO_PRIORITY: u32 = 50;

/// The name of a NAR in the bucket.
pub(super) fn nar_key(held: &HeldNar) -> String {
    key_of(held.file_hash())
}

fn key_of(file_hash: FileHash) -> String {
    format!("nar/{}.nar.zst", file_hash.to_nix32())
}

/// Whether an object will be there for at least half of the time that the bucket's rule gives it:
/// what goes earlier than its narinfo, or than what refers to it, is put again in time.
pub(super) fn lasts(head: &ObjectHead, now: SystemTime) -> bool {
    let Some(expires) = head.expires else { return true };
    let since = head.modified.unwrap_or(now);
    let rule = expires.duration_since(since).unwrap_or(Duration::ZERO);
    expires.duration_since(now).is_ok_and(|left| left > rule / 2)
}

/// Which NARs are on their way to a target: two paths of one NAR send it once.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Mutex<HashSet<FileHash>>,
    given_back: Notify,
    cache_info_seen: Mutex<Option<Instant>>,
}

/// A turn, given back when it is dropped.
struct Turn<'a> {
    turns: &'a Turns,
    file_hash: FileHash,
}

impl Turns {
    async fn take(&self, file_hash: FileHash) -> Turn<'_> {
        loop {
            // Registered before the look, so that no giving back is missed.
            let mut given_back = std::pin::pin!(self.given_back.notified());
            given_back.as_mut().enable();
            if self.taken().insert(file_hash) {
                return Turn { turns: self, file_hash };
            }
            given_back.await;
        }
    }

    /// Whether it is time to look for the target's `nix-cache-info`; who is told so looks.
    fn is_cache_info_due(&self, now: Instant) -> bool {
        let mut seen = self.cache_info_seen.lock().unwrap_or_else(PoisonError::into_inner);
        let due = seen.is_none_or(|seen| now.duration_since(seen) >= CACHE_INFO_EVERY);
        if due {
            *seen = Some(now);
        }
        due
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<FileHash>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken().remove(&self.file_hash);
        self.turns.given_back.notify_waiters();
    }
}

/// Puts `nix-cache-info` again where it is gone or about to go: a bucket's rule of age takes it like
/// anything else, and the bucket is no cache any more for those who read it directly. Looked at
/// where something else has just gone well; that it does not go well costs nothing but itself.
pub(super) async fn cache_info(carrier: &Carrier) {
    let Carrier { inner, target, turns, .. } = carrier;
    if !turns.is_cache_info_due(Instant::now()) {
        return;
    }
    let kept = async {
        if target.head(CACHE_INFO).await?.is_some_and(|head| lasts(&head, SystemTime::now())) {
            return Ok(());
        }
        let there = target.document(CACHE_INFO, upstream::DOCUMENT_LEN_MAX).await?;
        let text = there.unwrap_or_else(|| {
            let store_dir = inner.config.store_dir.clone();
            let priority = Some(CACHE_INFO_PRIORITY);
            CacheInfo { store_dir, want_mass_query: true, priority }.to_string().into()
        });
        target.put_small(CACHE_INFO, "text/x-nix-cache-info", text).await?;
        info!(upstream = %target.url(), "put nix-cache-info of a push target");
        Ok::<_, upstream::Error>(())
    };
    let why = match tokio::time::timeout(CACHE_INFO_WAIT, kept).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Failed::from(error).chain(),
        Err(_) => "no answer in time".to_owned(),
    };
    warn!(upstream = %target.url(), why, "nix-cache-info of a push target could not be kept");
}

/// Puts a NAR unless it is there. Says how many bytes were sent.
pub(super) async fn nar(carrier: &Carrier, held: &HeldNar) -> Result<u64, Failed> {
    let Carrier { inner, target, turns, .. } = carrier;
    let key = nar_key(held);
    let _turn = turns.take(held.file_hash()).await;
    if let Some(head) = target.head(&key).await?
        && head.len == held.file_size()
        && lasts(&head, SystemTime::now())
    {
        return Ok(0);
    }
    let rows = Rows { held, limit: &inner.limit, failed: Mutex::default() };
    let object = Object {
        key: &key,
        content_type: NAR_TYPE,
        len: held.file_size(),
        sha256: held.file_hash(),
        source: &rows,
    };
    let put = target.put(object).await;
    // Whatever the target made of a body that broke off here, the cause is ours.
    if let Some(failed) = rows.failed().take() {
        return Err(failed.into());
    }
    put?;
    Ok(held.file_size())
}

/// A held NAR as the source of an object.
struct Rows<'a> {
    held: &'a HeldNar,
    limit: &'a Limit,
    failed: Mutex<Option<store::Error>>,
}

impl Rows<'_> {
    fn failed(&self) -> MutexGuard<'_, Option<store::Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece at `at`, out of what was read or from the next row.
    async fn piece(&self, at: u64, to: u64, mut read: Bytes) -> io::Result<(Bytes, Bytes)> {
        if read.is_empty() {
            read = match self.held.read(at).await {
                Ok(read) if read.is_empty() => Err(store::Error::Corrupt(self.held.nar_hash())),
                read => read,
            }
            .map_err(|error| {
                let said = io::Error::other(error.to_string());
                *self.failed() = Some(error);
                said
            })?;
        }
        let len_max = (to - at).min(self.limit.piece_len_max());
        let len = usize::try_from(len_max).unwrap_or(usize::MAX).min(read.len());
        Ok((read.split_to(len), read))
    }
}

impl Source for Rows<'_> {
    fn read(&self, from: u64, to: u64) -> BoxStream<'_, io::Result<Bytes>> {
        let pieces = stream::try_unfold((from, Bytes::new()), move |(at, read)| async move {
            if at >= to {
                return Ok(None);
            }
            let (piece, read) = self.piece(at, to, read).await?;
            let next = at + u64::try_from(piece.len()).unwrap_or(u64::MAX);
            Ok(Some((piece, (next, read))))
        });
        pieces.boxed()
    }

    fn may_go(&self, len: usize) -> BoxFuture<'_, ()> {
        Box::pin(self.limit.wait(len))
    }
}

/// A document as the bucket gets it: debuginfo names a NAR file, which has another name there.
pub(super) async fn document(
    inner: &Arc<Inner>,
    name: &str,
    body: Bytes,
    queued_at_s: u64,
) -> Result<Bytes, Failed> {
    let Some(archive) = archive_of(name, &body) else { return Ok(body) };
    let nar_hash = match archive {
        Archive::Ours(nar_hash) => Some(nar_hash),
        Archive::Upload(upload) => inner.store.alias(upload).await?.map(|alias| alias.nar_hash),
    };
    let held = match nar_hash {
        Some(nar_hash) => inner.store.nar(nar_hash).await?,
        None if now_s().saturating_sub(queued_at_s) < EARLY_MAX.as_secs() => {
            return Err(Failed::Early);
        }
        None => None,
    };
    Ok(held.and_then(|held| with_archive(&body, &nar_key(&held))).unwrap_or(body))
}

/// The NAR file that a debuginfo document names.
enum Archive {
    /// By our own name for it.
    Ours(NarHash),
    /// By its uploader's.
    Upload(UploadName),
}

fn archive_of(name: &str, body: &[u8]) -> Option<Archive> {
    name.strip_prefix("debuginfo/")?;
    let document: Value = serde_json::from_slice(body).ok()?;
    let file_name = document.get("archive")?.as_str()?.rsplit('/').next()?;
    let ours = NarName::parse(file_name).map(|name| Archive::Ours(name.nar_hash));
    ours.or_else(|| UploadName::parse(file_name).map(Archive::Upload))
}

fn with_archive(body: &[u8], key: &str) -> Option<Bytes> {
    let mut document: Value = serde_json::from_slice(body).ok()?;
    *document.get_mut("archive")? = Value::String(format!("../{key}"));
    Some(document.to_string().into())
}

/// A document's media type, as Nix sends it.
pub(super) fn media_type(name: &str) -> &'static str {
    if name.starts_with("log/") { "text/plain; charset=utf-8" } else { "application/json" }
}

/// What a thing refers to, itself left out. A realisation refers to its output.
pub(super) async fn references(inner: &Inner, what: &Queued) -> Result<Vec<Queued>, store::Error> {
    let references = match what {
        Queued::Path(key) => {
            let found = inner.store.lookup(*key).await?;
            let references = found.map(|(stored, _)| stored.narinfo.references).unwrap_or_default();
            references.iter().map(StorePath::hash).filter(|to| to != key).collect()
        }
        Queued::Document(name) if is_realisation(name) => {
            let body = inner.store.document(name).await?;
            body.and_then(|body| output_of(&body)).iter().map(StorePath::hash).collect::<Vec<_>>()
        }
        Queued::Document(_) => Vec::new(),
    };
    Ok(references.into_iter().map(Queued::Path).collect())
}

fn is_realisation(name: &str) -> bool {
    name.starts_with("realisations/") || name.starts_with("build-trace-v2/")
}

fn output_of(body: &[u8]) -> Option<StorePath> {
    let document: Value = serde_json::from_slice(body).ok()?;
    let path = document.get("outPath")?.as_str()?;
    StorePath::parse(path.rsplit('/').next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn what_goes_within_half_of_the_buckets_rule_is_put_again() {
        let written = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let head = |modified, expires| ObjectHead { len: 1, modified, expires };
        let rule = head(Some(written), Some(written + DAY * 30));
        for (days, wanted) in [(0, true), (14, true), (15, false), (29, false), (31, false)] {
            assert_eq!(lasts(&rule, written + DAY * days), wanted, "{days}");
        }
        assert!(lasts(&head(Some(written), None), written + DAY * 9999), "no rule");
        assert!(lasts(&head(None, Some(written)), written - DAY), "no age is known");
        assert!(!lasts(&head(None, Some(written)), written + DAY));
        assert!(!lasts(&head(Some(written), Some(written - DAY)), written), "clocks are odd");
    }

    #[test]
    fn debuginfo_names_the_buckets_file() {
        let hash = FileHash::from_bytes([5; 32]).to_nix32();
        let body = format!(r#"{{"archive":"../nar/{hash}.nar.xz","member":"m"}}"#);
        let name = "debuginfo/abc.debug";
        assert!(matches!(archive_of(name, body.as_bytes()), Some(Archive::Upload(_))));
        assert!(archive_of("log/abc", body.as_bytes()).is_none());
        assert!(archive_of(name, b"\x7fELF").is_none());
        let key = key_of(FileHash::from_bytes([6; 32]));
        let there = with_archive(body.as_bytes(), &key).unwrap();
        assert_eq!(&there[..], format!(r#"{{"archive":"../{key}","member":"m"}}"#).as_bytes());
        assert!(matches!(archive_of(name, &there), Some(Archive::Upload(_))));
    }

    #[test]
    fn a_realisation_refers_to_its_output() {
        let path = "9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0";
        for text in [path.to_owned(), format!("/nix/store/{path}")] {
            let body = format!(r#"{{"id":"sha256:x!out","outPath":"{text}","signatures":[]}}"#);
            assert_eq!(output_of(body.as_bytes()).unwrap().base_name(), path);
        }
        assert_eq!(output_of(b"[]"), None);
    }

    #[tokio::test]
    async fn two_paths_of_one_nar_take_turns() {
        let turns = Turns::default();
        let (one, other) = (FileHash::from_bytes([1; 32]), FileHash::from_bytes([2; 32]));
        let first = turns.take(one).await;
        let _other = turns.take(other).await;
        let mut second = std::pin::pin!(turns.take(one));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        assert!(futures_util::poll!(&mut second).is_ready());
    }
}
