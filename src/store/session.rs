//! The store while it is open: what is in memory about it, shared by callers, reading threads and the
//! writer.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::command::{Act, Command};
use super::fill::Fill;
use super::index::Index;
use super::kept::Kept;
use super::keys::{AliasKey, SmallKey};
use super::records::NarRecord;
use super::scrub::Scrub;
use super::segment::Segments;
use super::shared::Shared;
use super::space::Space;
use super::tables::{Fault, Scanned, Table};
use super::{Alias, Figures, StoredNarInfo, lock};
use crate::nix::{NarHash, StorePathHash};

/// Uses kept in memory until they are written with something else; more are not recorded, which
/// costs a little accuracy of the order of eviction.
const USES_MAX: usize = 16_384;

/// A NAR that is held: what its handles share.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) record: NarRecord,
    /// When it was finished, or the store was opened if that was before.
    pub(super) since: Instant,
    /// Its `.ls`, until it is in the index.
    pub(super) listing: Option<Bytes>,
}

/// What is in memory and not in the index yet. Looked at before the index.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// NARs whose group has not been committed: served as held.
    pub(super) nars: HashMap<NarHash, Arc<Entry>>,
    /// narinfos on their way to the index; `None`: withdrawn.
    pub(super) narinfos: HashMap<StorePathHash, Arc<Option<StoredNarInfo>>>,
    /// Names of uploads on their way to the index.
    pub(super) aliases: HashMap<AliasKey, Alias>,
}

/// Who reads what, and what nobody may begin to read.
#[derive(Debug, Default)]
pub(super) struct Pins {
    counts: HashMap<u64, usize>,
    doomed: HashSet<u64>,
    /// Doomed ones whose bytes are wrong: whoever reads them is cut.
    wrong: HashSet<u64>,
    /// How many were forgotten so far.
    forgotten: u64,
}

impl Pins {
    /// Nobody is given the NAR any more.
    pub(super) fn doom(&mut self, id: u64) {
        self.doomed.insert(id);
    }

    /// The same, unless somebody reads it; says whether.
    pub(super) fn doom_unread(&mut self, id: u64) -> bool {
        let unread = !self.is_read(id);
        if unread {
            self.doomed.insert(id);
        }
        unread
    }

    /// Its bytes are not what they should be: nobody is given more of them.
    pub(super) fn is_found_wrong(&mut self, id: u64) {
        self.wrong.insert(id);
        self.doomed.insert(id);
    }

    pub(super) fn is_wrong(&self, id: u64) -> bool {
        self.wrong.contains(&id)
    }

    pub(super) fn is_read(&self, id: u64) -> bool {
        self.counts.contains_key(&id)
    }

    pub(super) fn is_doomed(&self, id: u64) -> bool {
        self.doomed.contains(&id)
    }

    /// Its rows are gone.
    pub(super) fn forget(&mut self, id: u64) {
        self.doomed.remove(&id);
        self.wrong.remove(&id);
        self.forgotten += 1;
    }

    /// While this stays the same, an id that was seen in the index can be pinned, or is known as
    /// doomed.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

/// What was used and is not written yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Used {
    Nar(u64),
    Small(SmallKey),
}

/// The store while it is open: from one opening to the next failure.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) index: Index,
    pub(super) segments: Segments,
    pub(super) space: Space,
    pub(super) overlay: Mutex<Overlay>,
    pub(super) pins: Mutex<Pins>,
    /// What may not be evicted, in figures.
    pub(super) kept: Arc<Mutex<Kept>>,
    /// Fills that are being written, by their ids.
    pub(super) fills: Mutex<HashMap<u64, Arc<Fill>>>,
    /// Ids reserved durably and not given: the next, and the end.
    pub(super) ids: Mutex<(u64, u64)>,
    pub(super) opened: Instant,
    pub(super) use_counter: AtomicU64,
    pub(super) narinfos: AtomicU64,
    pub(super) nars: AtomicU64,
    /// When NARs were finished whose `NarHash` was held with another file hash before.
    pub(super) changed: Mutex<HashMap<u64, Instant>>,
    /// How far the scrub has come.
    pub(super) scrub: Scrub,
    /// Whether the writer has something to do of its own accord.
    pub(super) busy: AtomicBool,
    /// A row of the index is damaged, and the writer has not looked yet.
    hurt: AtomicBool,
    /// When something was last read, in ms since `opened`.
    last_read_ms: AtomicU64,
    uses: Mutex<HashMap<Used, u64>>,
    over: AtomicBool,
}

impl Session {
    pub(super) fn new(index: Index, segments: Segments, space: Space) -> Self {
        Self {
            index,
            segments,
            space,
            overlay: Mutex::default(),
            pins: Mutex::default(),
            kept: Arc::default(),
            fills: Mutex::default(),
            ids: Mutex::default(),
            opened: Instant::now(),
            use_counter: AtomicU64::new(0),
            narinfos: AtomicU64::new(0),
            nars: AtomicU64::new(0),
            changed: Mutex::default(),
            scrub: Scrub::default(),
            busy: AtomicBool::new(true),
            hurt: AtomicBool::new(false),
            last_read_ms: AtomicU64::new(0),
            uses: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    /// Somebody reads.
    pub(super) fn touch(&self) {
        let now_ms = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_read_ms.fetch_max(now_ms, Ordering::Relaxed);
    }

    /// For how long nobody has read.
    pub(super) fn unread_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_read_ms.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(last)
    }

    /// A damaged row of the index is as good as absent; what is to be done about it is the writer's.
    pub(super) fn sound<T: Default>(&self, read: Result<T, Fault>) -> Result<T, Fault> {
        match read {
            Err(Fault::Damaged(table)) => {
                self.is_hurt_in(table);
                Ok(T::default())
            }
            other => other,
        }
    }

    /// The same of a scan that says whether it met damaged rows.
    pub(super) fn sound_scan(
        &self,
        table: Table,
        (rows, damaged): (Vec<Scanned>, bool),
    ) -> Vec<Scanned> {
        if damaged {
            self.is_hurt_in(table.name());
        }
        rows
    }

    fn is_hurt_in(&self, table: &'static str) {
        if !self.hurt.swap(true, Ordering::AcqRel) {
            tracing::error!(table, "row of the index is damaged");
        }
    }

    /// Whether the writer has to look for damaged rows.
    pub(super) fn is_hurt(&self) -> bool {
        self.hurt.load(Ordering::Acquire)
    }

    /// The writer looks.
    pub(super) fn is_looked_at(&self) {
        self.hurt.store(false, Ordering::Release);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub(super) fn figures(&self) -> Figures {
        let waiting = u64::try_from(lock(&self.overlay).nars.len()).unwrap_or(u64::MAX);
        Figures {
            budget_bytes: self.space.budget_bytes(),
            used_bytes: self.space.kept_bytes(),
            narinfos: self.narinfos.load(Ordering::Relaxed),
            nars: self.nars.load(Ordering::Relaxed) + waiting,
            pinned_bytes: lock(&self.kept).pinned.bytes,
            written_bytes: 0,
            disk_free_bytes: self.space.disk_free_bytes(),
        }
    }

    /// A fill with an id of its own; `None` when all reserved ones are given. It is known as being
    /// written as soon as its id is taken.
    pub(super) fn new_fill(&self) -> Option<Arc<Fill>> {
        let mut ids = lock(&self.ids);
        let (next, end) = *ids;
        if next >= end {
            return None;
        }
        ids.0 += 1;
        let fill = Arc::new(Fill::new(next));
        lock(&self.fills).insert(next, fill.clone());
        Some(fill)
    }

    /// The next tick of the order of use.
    pub(super) fn tick(&self) -> u64 {
        self.use_counter.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn used(&self, used: Used) {
        let now = self.tick();
        let mut uses = lock(&self.uses);
        if uses.len() < USES_MAX || uses.contains_key(&used) {
            uses.insert(used, now);
        }
    }

    pub(super) fn take_uses(&self) -> HashMap<Used, u64> {
        std::mem::take(&mut *lock(&self.uses))
    }

    /// NARs whose last use is not written yet.
    pub(super) fn unwritten_nars(&self) -> Vec<(u64, u64)> {
        let uses = lock(&self.uses);
        let nars = uses.iter().filter_map(|(used, last_use)| match used {
            Used::Nar(id) => Some((*id, *last_use)),
            Used::Small(_) => None,
        });
        nars.collect()
    }

    pub(super) fn has_uses(&self) -> bool {
        !lock(&self.uses).is_empty()
    }

    /// When the NAR was last used, if that is not written yet.
    pub(super) fn unwritten_use(&self, used: &Used) -> Option<u64> {
        lock(&self.uses).get(used).copied()
    }
}

/// Keeps a NAR's rows from going while it lives.
pub(super) struct Pin {
    shared: Arc<Shared>,
    pub(super) session: Arc<Session>,
    id: u64,
}

impl Pin {
    /// `None` when the NAR is doomed.
    pub(super) fn new(shared: &Arc<Shared>, session: &Arc<Session>, id: u64) -> Option<Self> {
        let mut pins = lock(&session.pins);
        if pins.doomed.contains(&id) {
            return None;
        }
        *pins.counts.entry(id).or_default() += 1;
        drop(pins);
        Some(Self { shared: shared.clone(), session: session.clone(), id })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.session.pins);
        let left = match pins.counts.get_mut(&self.id) {
            Some(count) => {
                *count -= 1;
                *count
            }
            None => 0,
        };
        if left == 0 {
            pins.counts.remove(&self.id);
        }
        let goes = left == 0 && pins.doomed.contains(&self.id);
        drop(pins);
        if goes && !self.session.is_over() {
            let act = Command::In(self.session.clone(), Act::Unread);
            self.shared.commands.push_now(act);
        }
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").field("id", &self.id).finish_non_exhaustive()
    }
}
