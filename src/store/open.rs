//! Opening a store: the lock, the marker, the index; nothing of the segments is touched.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::index::{FILE_NAME, Index, StoreId, has_push_tables};
use super::load::{Loaded, Totals, first_budget, load, mended, new_store_id};
use super::lock;
use super::mend::Known;
use super::removal::Removal;
use super::segment::{Segments, number_of};
use super::session::Session;
use super::shared::Shared;
use super::space::Space;
use super::tables::{Fault, META};
use super::writer::SegmentState;

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
    pub(super) known: Known,
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
        let space = disk.space().map_err(Fault::io("ask for free space"))?;
        Index::create(disk, &shared.meters, new_store_id()?, first_budget(shared, space))?;
    }
    let (index, mut loaded) = Index::open(disk, &shared.meters, |txn| {
        if shared.config.holds_format && !has_push_tables(txn)? {
            return Err(held());
        }
        let loaded = load(txn)?;
        match (marker, marked) {
            (Some(path), Some(id)) if loaded.store_id.is_some_and(|found| found != id) => {
                Err(another(path))
            }
            (_, _) => Ok(loaded),
        }
    })?;
    index.take_over()?;
    if loaded.hurt {
        loaded = mended(shared, &index, &names, marked, &loaded)?;
    }
    let (Some(store_id), Some(budget), Some(next_id)) =
        (loaded.store_id, loaded.budget, loaded.next_id)
    else {
        return Err(Fault::Damaged(META.name()));
    };
    if let (Some(path), None) = (marker, marked) {
        write_marker(path, store_id)?;
    }
    remove_strangers(shared, &names, &loaded.segments)?;
    let known = Known { store_id, budget, next_id: Some(next_id) };
    Ok(begin(shared, index, loaded, known, folder_lock))
}

fn lock_fault(source: std::io::Error) -> Fault {
    if source.kind() == std::io::ErrorKind::WouldBlock {
        return Fault::Refused("another process uses the store's folder: stop it".into());
    }
    Fault::Io { act: "the store's folder cannot be used: is its disk there and writable?", source }
}

fn held() -> Fault {
    let sentence = "the store is of an older format, and is kept so while this version runs on \
                    trial: the one before could not read it any more";
    Fault::Refused(sentence.into())
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

fn begin(
    shared: &Shared,
    index: Index,
    loaded: Loaded,
    known: Known,
    folder_lock: FolderLock,
) -> Opened {
    let budget = shared.config.budget.map_or(known.budget, |size| size.0);
    let next_id = known.next_id.unwrap_or(0);
    let kept = loaded.segments.values().map(|segment| segment.record.count_bytes).sum();
    let enders = shared.row_jobs.clone();
    let segments = Segments::new(shared.disk.clone(), shared.meters.clone(), enders);
    let session = Session::new(index, segments, Space::new(budget, kept));
    session.scrub.begin(loaded.scrub);
    *lock(&session.kept) = loaded.kept;
    *lock(&shared.kept) = session.kept.clone();
    *lock(&session.ids) = (next_id, next_id);
    session.use_counter.store(loaded.totals.use_counter, Ordering::Relaxed);
    session.narinfos.store(loaded.totals.narinfos, Ordering::Relaxed);
    session.nars.store(loaded.totals.nars, Ordering::Relaxed);
    session.space.publish(&shared.metrics);
    let searches = loaded.segments.iter().filter_map(|(number, state)| {
        let noted = state.record.noted_from.filter(|_| !state.record.failed);
        noted.map(|from| (*number, from, next_id))
    });
    let sweeps = loaded.segments.iter().filter(|(_, state)| state.record.failed);
    Opened {
        session: Arc::new(session),
        totals: loaded.totals,
        searches: searches.collect(),
        sweeps: sweeps.map(|(number, _)| (*number, 0)).collect(),
        segments: loaded.segments,
        removals: loaded.doomed,
        known,
        folder_lock,
    }
}
