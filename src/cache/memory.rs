//! What the cache remembers for a short time, all of it bounded: ready narinfos, absences,
//! promises that were confirmed, sources that were wrong.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::nix::{FileHash, NarHash, NarName, StorePathHash};

/// Memory of ready narinfos: some 5,000 of them, more than a desktop's closure.
const READY_BYTES_MAX: u64 = 4 << 20;

/// What an entry takes beside its bytes.
const READY_ENTRY_BYTES: u64 = 160;

/// How long a ready narinfo is good. Eviction tells nobody, so this bounds how long the `FileHash`
/// of a NAR that has gone is still shown; a fill forgets its narinfos at once.
const READY_TTL: Duration = Duration::from_mins(1);

/// How long absence is remembered.
const ABSENT_TTL: Duration = Duration::from_mins(1);

/// How long a narinfo whose NAR is not here is believed after its upstream said it.
const CONFIRMED_TTL: Duration = Duration::from_hours(1);

/// How long a source that gave wrong bytes is not asked for that NAR.
const WRONG_TTL: Duration = Duration::from_mins(1);

/// How long a NAR that found no room in the middle streams through without trying again.
const NO_ROOM_TTL: Duration = Duration::from_mins(1);

/// How long a zstd stream that could not be kept is remembered to be compressed anew.
const UNKEEPABLE_TTL: Duration = Duration::from_hours(1);

/// How long the NAR behind an upstream's file name is known, for debuginfo's `archive`.
const FILE_NAME_TTL: Duration = Duration::from_hours(1);

/// Entries of the memories that grow with what clients ask: a large closure and its absences.
const MANY: usize = 16 * 1024;

/// Entries of the memories that grow with what goes wrong.
const FEW: usize = 1024;

/// Facts that hold for a while, at most so many of them.
pub(super) struct Lately<K, V = ()> {
    facts: Cache<K, (V, Instant)>,
    ttl: Duration,
}

impl<K: Eq + Hash + Clone, V: Clone> Lately<K, V> {
    fn new(count_max: usize, ttl: Duration) -> Self {
        Self { facts: Cache::new(count_max), ttl }
    }

    /// From now on, for a while.
    pub(super) fn note(&self, key: K, value: V) {
        self.facts.insert(key, (value, Instant::now()));
    }

    /// What was noted and still holds.
    pub(super) fn recall(&self, key: &K) -> Option<V> {
        let (value, noted) = self.facts.get(key)?;
        if noted.elapsed() < self.ttl {
            return Some(value);
        }
        self.facts.remove(key);
        None
    }

    /// Whether it was noted and still holds.
    pub(super) fn holds(&self, key: &K) -> bool {
        self.recall(key).is_some()
    }

    pub(super) fn forget(&self, key: &K) {
        self.facts.remove(key);
    }

    fn forget_all(&self) {
        self.facts.clear();
    }
}

/// Weighs a ready narinfo by its bytes.
#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<StorePathHash, (Bytes, Instant)> for ByBytes {
    fn weight(&self, _: &StorePathHash, (bytes, _): &(Bytes, Instant)) -> u64 {
        u64::try_from(bytes.len()).unwrap_or(u64::MAX).saturating_add(READY_ENTRY_BYTES)
    }
}

/// Everything that is remembered.
pub(super) struct Memory {
    ready: Cache<StorePathHash, (Bytes, Instant), ByBytes>,
    /// Keys that no upstream has.
    pub(super) absent: Lately<StorePathHash>,
    /// Documents that no upstream has.
    pub(super) absent_documents: Lately<Arc<str>>,
    /// Keys whose upstream said lately that it has them.
    pub(super) confirmed: Lately<StorePathHash>,
    /// Upstreams (by URL) that gave wrong bytes for a NAR.
    pub(super) wrong: Lately<(Arc<str>, NarHash)>,
    /// NARs for which there was no room in the middle of a fill.
    pub(super) no_room: Lately<NarHash>,
    /// NARs whose zstd stream must be compressed anew.
    pub(super) unkeepable: Lately<NarHash>,
    /// The NARs behind upstreams' file names.
    pub(super) file_names: Lately<FileHash, NarName>,
}

impl Memory {
    pub(super) fn new() -> Self {
        let estimated = usize::try_from(READY_BYTES_MAX / 1024).unwrap_or(MANY);
        Self {
            ready: Cache::with_weighter(estimated, READY_BYTES_MAX, ByBytes),
            absent: Lately::new(MANY, ABSENT_TTL),
            absent_documents: Lately::new(FEW, ABSENT_TTL),
            confirmed: Lately::new(MANY, CONFIRMED_TTL),
            wrong: Lately::new(FEW, WRONG_TTL),
            no_room: Lately::new(FEW, NO_ROOM_TTL),
            unkeepable: Lately::new(FEW, UNKEEPABLE_TTL),
            file_names: Lately::new(MANY, FILE_NAME_TTL),
        }
    }

    /// Others are asked from now on: what nobody had may be had.
    pub(super) fn forget_absences(&self) {
        self.absent.forget_all();
        self.absent_documents.forget_all();
    }

    /// Gives up what only saves a question to the disk or an upstream.
    pub(super) fn shed(&self) {
        self.ready.clear();
        self.forget_absences();
        self.confirmed.forget_all();
        self.file_names.forget_all();
    }

    /// A narinfo as clients see it, when it is at hand and fresh.
    pub(super) fn ready(&self, key: StorePathHash) -> Option<Bytes> {
        let (bytes, since) = self.ready.get(&key)?;
        (since.elapsed() < READY_TTL).then_some(bytes)
    }

    pub(super) fn make_ready(&self, key: StorePathHash, narinfo: Bytes) {
        self.ready.insert(key, (narinfo, Instant::now()));
    }

    /// What was ready for this key is not what is to be said any more.
    pub(super) fn forget_ready(&self, key: StorePathHash) {
        self.ready.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn absence_is_remembered_for_a_minute_and_not_longer() {
        let memory = Memory::new();
        let key = StorePathHash::from_bytes([7; 20]);
        memory.absent.note(key, ());
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(memory.absent.holds(&key));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!memory.absent.holds(&key));
    }

    #[test]
    fn ready_narinfos_are_bounded_by_their_bytes() {
        let memory = Memory::new();
        for n in 0..20_000_u32 {
            let mut key = [0; 20];
            key[..4].copy_from_slice(&n.to_le_bytes());
            memory.make_ready(StorePathHash::from_bytes(key), Bytes::from(vec![b'x'; 1000]));
        }
        assert!(memory.ready.weight() <= READY_BYTES_MAX);
        assert!(memory.ready.len() > 1000);
    }
}
