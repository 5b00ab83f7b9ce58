//! Opening a store: the lock, the marker, the index; nothing of the segments is touched.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::ReadTransaction;

use super::index::{
    FILE_NAME, Index, META_BUDGET, META_NEXT_ID, META_STORE_ID, META_TOTALS, StoreId,
    has_push_tables, meta_number,
};
use super::kept::Kept;
use super::keys::id_of_key;
use super::lock;
use super::records::{NarRecord, SegmentRecord};
use super::removal::Removal;
use super::segment::{Segments, number_of};
use super::session::Session;
use super::shared::Shared;
use super::space::{Space, default_budget};
use super::tables::{DOOMED, Fault, META, NAR, SEGMENT};
use super::writer::SegmentState;

/// The figures that are kept with the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) narinfos: u64,
    pub(super) nars: u64,
    /// Bytes of narinfos and documents.
    pub(super) small_bytes: u64,
    /// Where the order of use goes on.
    pub(super) use_counter: u64,
    /// Bytes of NARs that may not be evicted.
    pub(super) kept_bytes: u64,
    /// Where the order of acceptance goes on.
    pub(super) next_seq: u64,
}

impl Totals {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let before_push = [self.narinfos, self.nars, self.small_bytes, self.use_counter];
        let numbers = before_push.into_iter().chain([self.kept_bytes, self.next_seq]);
        numbers.flat_map(u64::to_be_bytes).collect()
    }

    fn from_bytes(body: &[u8]) -> Result<Self, Fault> {
        let (numbers, rest) = body.as_chunks::<8>();
        // The first format had four.
        if !matches!((numbers.len(), rest), (4 | 6, [])) {
            return Err(Fault::Damaged(META.name()));
        }
        let mut numbers = numbers.iter().map(|number| u64::from_be_bytes(*number));
        let mut next = || numbers.next().unwrap_or(0);
        Ok(Self {
            narinfos: next(),
            nars: next(),
            small_bytes: next(),
            use_counter: next(),
            kept_bytes: next(),
            next_seq: next(),
        })
    }
}

/// Held while the folder is ours.
pub(super) type FolderLock = Box<dyn std::fmt::Debug + Send + Sync>;

/// What the writer begins with.
pub(super) struct Opened {
    pub(super) session: Arc<Session>,
    pub(super) totals: Totals,
    pub(super) segments: BTreeMap<u32, SegmentState>,
    pub(super) removals: Vec<Removal>,
    /// Segment, and the ids between which it may hold rows that the index does not know.
    pub(super) searches: Vec<(u32, u64, u64)>,
    /// Damaged segments whose NARs have to go, and from which id on.
    pub(super) sweeps: Vec<(u32, u64)>,
    /// Held while the session lives.
    pub(super) folder_lock: FolderLock,
}

/// Opens the store of a folder, or makes it where none was ever begun.
pub(super) fn open(shared: &Shared) -> Result<Opened, Fault> {
    let disk = &shared.disk;
    let folder_lock = disk.lock().map_err(lock_fault)?;
    let names = disk.names().map_err(Fault::io("list the store's folder"))?;
    let marker = shared.config.marker.as_deref();
    let marked = marker.map(read_marker).transpose()?.flatten();
    if !names.iter().any(|name| name == FILE_NAME) {
        if let (Some(_), Some(path)) = (marked, marker) {
            return Err(missing(path));
        }
        let mut store_id = StoreId::default();
        getrandom::fill(&mut store_id)
            .map_err(|error| Fault::Refused(format!("no random numbers: {error}").into()))?;
        let space = disk.space().map_err(Fault::io("ask for free space"))?;
        let budget = shared.config.budget.map_or_else(|| default_budget(space), |size| size.0);
        Index::create(disk, &shared.meters, store_id, budget)?;
    }
    let (index, loaded) = Index::open(disk, &shared.meters, |txn| {
        let loaded = load(txn)?;
        match (marker, marked) {
            (Some(path), Some(id)) if id != loaded.store_id => Err(another(path)),
            (_, _) => Ok(loaded),
        }
    })?;
    if let (Some(path), None) = (marker, marked) {
        write_marker(path, loaded.store_id)?;
    }
    index.take_over()?;
    remove_strangers(shared, &names, &loaded.segments)?;
    Ok(begin(shared, index, loaded, folder_lock))
}

fn lock_fault(source: std::io::Error) -> Fault {
    if source.kind() == std::io::ErrorKind::WouldBlock {
        return Fault::Refused("another process uses the store's folder: stop it".into());
    }
    Fault::Io { act: "the store's folder cannot be used: is its disk there and writable?", source }
}

fn missing(marker: &Path) -> Fault {
    let sentence = format!(
        "a store was begun here before and is missing: plug its disk in, or remove {} to begin a \
         new one",
        marker.display()
    );
    Fault::Refused(sentence.into())
}

fn another(marker: &Path) -> Fault {
    let sentence = format!(
        "the store's folder holds another store than the one that was begun here: plug the right \
         disk in, or remove {} to take this one",
        marker.display()
    );
    Fault::Refused(sentence.into())
}

fn read_marker(path: &Path) -> Result<Option<StoreId>, Fault> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Fault::Io { act: "read the store's marker", source }),
    };
    let number = u128::from_str_radix(text.trim(), 16);
    let number = number.map_err(|_| {
        Fault::Refused(format!("{} is no store's marker: remove it", path.display()).into())
    })?;
    Ok(Some(number.to_be_bytes()))
}

/// The marker appears whole: a torn one would keep the store closed for ever.
fn write_marker(path: &Path, store_id: StoreId) -> Result<(), Fault> {
    let act = "write the store's marker";
    let draft = path.with_extension("new");
    let mut file = std::fs::File::create(&draft).map_err(Fault::io(act))?;
    let text = format!("{:032x}\n", u128::from_be_bytes(store_id));
    file.write_all(text.as_bytes()).map_err(Fault::io(act))?;
    file.sync_all().map_err(Fault::io(act))?;
    std::fs::rename(&draft, path).map_err(Fault::io(act))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = std::fs::File::open(folder.unwrap_or(Path::new("."))).map_err(Fault::io(act))?;
    folder.sync_all().map_err(Fault::io(act))
}

struct Loaded {
    store_id: StoreId,
    budget: u64,
    next_id: u64,
    totals: Totals,
    segments: BTreeMap<u32, SegmentState>,
    doomed: Vec<Removal>,
    kept: Kept,
}

fn load(txn: &ReadTransaction) -> Result<Loaded, Fault> {
    let damaged = || Fault::Damaged(META.name());
    let store_id = META.get(txn, META_STORE_ID)?.ok_or_else(damaged)?;
    let totals = META.get(txn, META_TOTALS)?;
    let mut segments = BTreeMap::new();
    for (key, body) in SEGMENT.scan(txn, &[], usize::MAX, |_| true)? {
        let number = key.first_chunk().map(|number| u32::from_be_bytes(*number));
        let record = SegmentRecord::from_bytes(SEGMENT, &body)?;
        let state = SegmentState { record, ..SegmentState::default() };
        segments.insert(number.ok_or(Fault::Damaged(SEGMENT.name()))?, state);
    }
    let mut doomed = Vec::new();
    for (key, _) in DOOMED.scan(txn, &[], usize::MAX, |_| true)? {
        let record = NAR.get(txn, &key)?.map(|body| NarRecord::from_bytes(NAR, &body));
        if let (Some(id), Some(record)) = (id_of_key(&key), record.transpose()?) {
            doomed.push(Removal::known(id, &record));
        }
    }
    let totals = totals.map(|body| Totals::from_bytes(&body)).transpose()?.unwrap_or_default();
    let mut kept = if has_push_tables(txn)? { Kept::load(txn)? } else { Kept::default() };
    kept.bytes = totals.kept_bytes;
    Ok(Loaded {
        store_id: store_id.try_into().map_err(|_| damaged())?,
        budget: meta_number(txn, META_BUDGET)?.ok_or_else(damaged)?,
        next_id: meta_number(txn, META_NEXT_ID)?.ok_or_else(damaged)?,
        totals,
        segments,
        doomed,
        kept,
    })
}

/// A segment is noted before it is made: a file that the index does not know holds nothing.
fn remove_strangers(
    shared: &Shared,
    names: &[String],
    segments: &BTreeMap<u32, SegmentState>,
) -> Result<(), Fault> {
    for name in names {
        if number_of(name).is_some_and(|number| !segments.contains_key(&number)) {
            shared.disk.remove(name).map_err(Fault::io("unlink a segment"))?;
        }
    }
    Ok(())
}

fn begin(shared: &Shared, index: Index, loaded: Loaded, folder_lock: FolderLock) -> Opened {
    let budget = shared.config.budget.map_or(loaded.budget, |size| size.0);
    let kept = loaded.segments.values().map(|segment| segment.record.count_bytes).sum();
    let segments = Segments::new(shared.disk.clone(), shared.meters.clone());
    let session = Session::new(index, segments, Space::new(budget, kept));
    *lock(&session.kept) = loaded.kept;
    *lock(&shared.kept) = session.kept.clone();
    *lock(&session.ids) = (loaded.next_id, loaded.next_id);
    session.use_counter.store(loaded.totals.use_counter, Ordering::Relaxed);
    session.narinfos.store(loaded.totals.narinfos, Ordering::Relaxed);
    session.nars.store(loaded.totals.nars, Ordering::Relaxed);
    session.space.publish(&shared.metrics);
    let searches = loaded.segments.iter().filter_map(|(number, state)| {
        let noted = state.record.noted_from.filter(|_| !state.record.failed);
        noted.map(|from| (*number, from, loaded.next_id))
    });
    let sweeps = loaded.segments.iter().filter(|(_, state)| state.record.failed);
    Opened {
        session: Arc::new(session),
        totals: loaded.totals,
        searches: searches.collect(),
        sweeps: sweeps.map(|(number, _)| (*number, 0)).collect(),
        segments: loaded.segments,
        removals: loaded.doomed,
        folder_lock,
    }
}
