//! Segments: files of at most 1 GiB that hold rows of NARs and nothing else. Knows which are open
//! and how; which one takes the next row is the writer's business.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use redb::{Database, OwnedAccessGuard, ReadOnlyDatabase, ReadableDatabase};

use super::backend::{Metered, Meters};
use super::disk::{Disk, Mode};
use super::keys::row_key;
use super::layout::CHECKSUM_LEN;
use super::lock;
use super::queue::Queue;
use super::shared::Job;
use super::tables::{Fault, ROWS};

/// Segments that are open for reading at once: each open handle costs some 100 KiB.
const OPEN_MAX: usize = 16;

/// A reader that opened a segment may find it closed again by the writer, which has to open it in
/// its own way; so often in a row only when something is wrong.
const OPEN_TRIES_MAX: usize = 8;

/// redb's cache of a segment that is only read, or only deleted from: it buys no speed, the page
/// cache does.
const READ_CACHE_BYTES: usize = 1 << 20;

/// A file is probed in pieces of so many bytes: large enough for a card to be fast.
const PROBE_BYTES: usize = 1 << 20;

/// redb's cache of the segment being written. Rows land in transactions of at most 4 MiB, which
/// must stay below a quarter of this, or redb writes its pages twice.
pub(super) const WRITE_CACHE_BYTES: usize = 16 << 20;

/// See the module.
pub(super) struct Segments {
    disk: Arc<dyn Disk>,
    meters: Meters,
    enders: Arc<Queue<Job>>,
    slots: Mutex<HashMap<u32, Arc<Slot>>>,
    clock: AtomicU64,
    /// No handle is opened any more: the next session's would stand beside it, and redb has no
    /// lock of its own here.
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Slot {
    handle: RwLock<Handle>,
    used: AtomicU64,
}

#[derive(Default)]
enum Handle {
    #[default]
    Closed,
    Read(ReadOnlyDatabase),
    /// Only read, and open for writing since it could not be closed cleanly.
    Dirty(Database),
    Write(Database),
}

impl Handle {
    /// Whether it is there for readers alone, and may be closed and opened again at any time.
    const fn is_reader(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Dirty(_))
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "Closed",
            Self::Read(_) => "Read",
            Self::Dirty(_) => "Dirty",
            Self::Write(_) => "Write",
        })
    }
}

/// The file of a segment.
pub(super) fn file_name(segment: u32) -> String {
    format!("nars-{segment}.redb")
}

/// The segment of a file's name.
pub(super) fn number_of(file_name: &str) -> Option<u32> {
    file_name.strip_prefix("nars-")?.strip_suffix(".redb")?.parse().ok()
}

/// A row's page, kept by its own short transaction while somebody holds the bytes. redb ends a
/// transaction under a lock that it also holds while a file grows or its cache is written out, so
/// it is ended on a reading thread: the last bytes are dropped where they were sent, by a thread
/// that all clients share.
struct Page {
    guard: Option<OwnedAccessGuard<&'static [u8]>>,
    enders: Arc<Queue<Job>>,
}

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        self.guard.as_ref().map_or(&[], OwnedAccessGuard::value)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let Some(guard) = self.guard.take() else { return };
        if let Err(unended) = self.enders.put_now(Box::new(move || drop(guard))) {
            // The store is closed, and a disk that stands still must not keep the process alive.
            Box::leak(unended);
        }
    }
}

/// redb may panic over a damaged file; that is the file's trouble and not the thread's.
pub(super) fn guarded<T>(act: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(Fault::Panicked))
}

fn read_guard(slot: &Slot) -> RwLockReadGuard<'_, Handle> {
    slot.handle.read().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Segments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl Segments {
    /// `enders` are the threads that read rows: they end what they began.
    pub(super) fn new(disk: Arc<dyn Disk>, meters: Meters, enders: Arc<Queue<Job>>) -> Self {
        Self {
            disk,
            meters,
            enders,
            slots: Mutex::default(),
            clock: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    fn slot(&self, segment: u32) -> Arc<Slot> {
        let slot = lock(&self.slots).entry(segment).or_default().clone();
        slot.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        slot
    }

    fn backend(&self, segment: u32, mode: Mode) -> Result<Metered, Fault> {
        let opened = self.disk.open(&file_name(segment), mode);
        let file = opened.map_err(Fault::io("open a segment"))?;
        Ok(Metered { file, meters: self.meters.clone() })
    }

    fn open_write(&self, segment: u32, mode: Mode, cache: usize) -> Result<Database, Fault> {
        let backend = self.backend(segment, mode)?;
        let mut builder = Database::builder();
        guarded(|| Ok(builder.set_cache_size(cache).create_with_backend(backend)?))
    }

    /// Opens a segment to read it. One that a crash left dirty, or a disk that was full when it was
    /// closed, is opened and closed once for writing; where it still cannot be closed cleanly it stays
    /// open so: nothing that is in it is worse for that.
    fn open_read(&self, segment: u32) -> Result<Handle, Fault> {
        let mut builder = Database::builder();
        builder.set_cache_size(READ_CACHE_BYTES);
        let open = || {
            let backend = self.backend(segment, Mode::Read)?;
            guarded(|| Ok(builder.open_read_only_with_backend(backend)?))
        };
        match open() {
            Err(Fault::Redb(error)) if matches!(*error, redb::Error::RepairAborted) => {}
            other => return Ok(Handle::Read(other?)),
        }
        let open_write = || self.open_write(segment, Mode::Write, READ_CACHE_BYTES);
        let database = open_write()?;
        if let Err(fault) = guarded(|| Ok(database.close()?)) {
            let error: &dyn std::error::Error = &fault;
            tracing::warn!(segment, error, "segment did not close cleanly and stays open");
            return Ok(Handle::Dirty(open_write()?));
        }
        Ok(Handle::Read(open()?))
    }

    /// The stream bytes of a row, whole and as they were written; nothing is copied.
    pub(super) fn read_row(&self, segment: u32, id: u64, row: u32) -> Result<Bytes, Fault> {
        let slot = self.slot(segment);
        let mut handle = read_guard(&slot);
        for _ in 0..OPEN_TRIES_MAX {
            if !matches!(*handle, Handle::Closed) {
                break;
            }
            drop(handle);
            self.open_for_reading(segment, &slot)?;
            handle = read_guard(&slot);
        }
        let key = row_key(id, row);
        let page = guarded(|| {
            let txn = match &*handle {
                Handle::Closed => return Err(Fault::Refused("the segment is being closed".into())),
                Handle::Read(database) => database.begin_read()?,
                Handle::Dirty(database) | Handle::Write(database) => database.begin_read()?,
            };
            let found = ROWS.open_for_read(&txn)?.get_owned(key.as_slice())?;
            let guard = found.ok_or(Fault::Missing(ROWS.name()))?;
            ROWS.unseal(&key, guard.value())?;
            Ok(guard)
        })?;
        drop(handle);
        let page = Page { guard: Some(page), enders: self.enders.clone() };
        let mut bytes = Bytes::from_owner(page);
        Ok(bytes.split_off(CHECKSUM_LEN.min(bytes.len())))
    }

    fn open_for_reading(&self, segment: u32, slot: &Arc<Slot>) -> Result<(), Fault> {
        self.close_least_used(slot);
        let mut handle = slot.handle.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*handle, Handle::Closed) {
            // Asked while the slot is held: whoever closes all comes to it later.
            if self.over.load(Ordering::Acquire) {
                return Err(Fault::Refused("the store was opened again".into()));
            }
            *handle = self.open_read(segment)?;
        }
        Ok(())
    }

    /// Makes room for one more open segment. One that is busy stays.
    fn close_least_used(&self, except: &Arc<Slot>) {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        let is_read = |slot: &&Arc<Slot>| {
            !Arc::ptr_eq(slot, except)
                && slot.handle.try_read().is_ok_and(|handle| handle.is_reader())
        };
        let mut open: Vec<_> = slots.iter().filter(is_read).collect();
        open.sort_by_key(|slot| slot.used.load(Ordering::Relaxed));
        let surplus = (open.len() + 1).saturating_sub(OPEN_MAX);
        for slot in open.into_iter().take(surplus) {
            if let Ok(mut handle) = slot.handle.try_write()
                && handle.is_reader()
            {
                *handle = Handle::Closed;
            }
        }
    }

    /// Forgets a reader's handle, after an error for instance: the next read opens afresh.
    pub(super) fn forget_reader(&self, segment: u32) {
        let slot = self.slot(segment);
        if let Ok(mut handle) = slot.handle.try_write()
            && handle.is_reader()
        {
            *handle = Handle::Closed;
        }
    }

    /// Whether a segment can be opened for reading at all.
    pub(super) fn check_open(&self, segment: u32) -> Result<(), Fault> {
        self.forget_reader(segment);
        let slot = self.slot(segment);
        self.open_for_reading(segment, &slot)
    }

    /// Whether the disk gives all bytes of a segment's file.
    pub(super) fn probe(&self, segment: u32) -> Result<(), Fault> {
        let act = "read a segment";
        let file = self.disk.open(&file_name(segment), Mode::Read).map_err(Fault::io(act))?;
        let (len, mut at) = (file.len_bytes().map_err(Fault::io(act))?, 0);
        let mut bytes = vec![0; PROBE_BYTES];
        while at < len {
            let rest = usize::try_from(len - at).unwrap_or(usize::MAX);
            let piece = bytes.split_at_mut(rest.min(PROBE_BYTES)).0;
            file.read(at, piece).map_err(Fault::io(act))?;
            at += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Opens a segment for the writer; a reader's handle is closed first.
    pub(super) fn open_for_writing(
        &self,
        segment: u32,
        mode: Mode,
        cache: usize,
    ) -> Result<(), Fault> {
        let slot = self.slot(segment);
        let mut handle = slot.handle.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*handle, Handle::Write(_)) {
            *handle = Handle::Closed;
            *handle = Handle::Write(self.open_write(segment, mode, cache)?);
        }
        Ok(())
    }

    /// The same for a segment from which rows are only removed.
    pub(super) fn open_to_remove(&self, segment: u32, mode: Mode) -> Result<(), Fault> {
        self.open_for_writing(segment, mode, READ_CACHE_BYTES)
    }

    /// What the writer does with a segment that it opened.
    pub(super) fn write<T>(
        &self,
        segment: u32,
        act: impl FnOnce(&Database) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let slot = self.slot(segment);
        match &*read_guard(&slot) {
            Handle::Write(database) => guarded(|| act(database)),
            Handle::Closed | Handle::Read(_) | Handle::Dirty(_) => Err(Fault::Missing(ROWS.name())),
        }
    }

    /// Closes a segment; redb makes durable what was committed to it.
    pub(super) fn close(&self, segment: u32) -> Result<(), Fault> {
        // The slot stays: whoever waits for it must meet the next handle there.
        let slot = lock(&self.slots).get(&segment).cloned();
        let Some(slot) = slot else { return Ok(()) };
        let mut handle = slot.handle.write().unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *handle) {
            Handle::Closed | Handle::Read(_) => Ok(()),
            Handle::Dirty(database) | Handle::Write(database) => guarded(|| Ok(database.close()?)),
        }
    }

    /// Closes those that nobody is at, for what they take in memory; they are opened again when they
    /// are asked for. Says whether there were any.
    pub(super) fn rest(&self) -> bool {
        let slots: Vec<_> =
            lock(&self.slots).iter().map(|(segment, slot)| (*segment, slot.clone())).collect();
        let mut any = false;
        for (segment, slot) in slots {
            let Ok(mut handle) = slot.handle.try_write() else { continue };
            any |= !matches!(*handle, Handle::Closed);
            let (Handle::Dirty(database) | Handle::Write(database)) = std::mem::take(&mut *handle)
            else {
                continue;
            };
            if let Err(fault) = guarded(|| Ok(database.close()?)) {
                let fault: &dyn std::error::Error = &fault;
                tracing::warn!(segment, error = fault, "segment did not close cleanly");
            }
        }
        any
    }

    /// How many are open.
    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        let slots = lock(&self.slots);
        slots.values().filter(|slot| !matches!(*read_guard(slot), Handle::Closed)).count()
    }

    /// The keys of all rows of a segment.
    #[cfg(test)]
    pub(super) fn keys(&self, segment: u32) -> Result<Vec<[u8; 12]>, Fault> {
        use redb::ReadableTable as _;
        let slot = self.slot(segment);
        self.open_for_reading(segment, &slot)?;
        let txn = match &*read_guard(&slot) {
            Handle::Closed => return Err(Fault::Refused("the segment is being closed".into())),
            Handle::Read(database) => database.begin_read()?,
            Handle::Dirty(database) | Handle::Write(database) => database.begin_read()?,
        };
        let rows = ROWS.open_for_read(&txn)?;
        let keys = rows.iter()?.map(|row| Ok(row?.0.value().try_into().expect("a row's key")));
        keys.collect()
    }

    /// Closes all for good, whatever they say.
    pub(super) fn close_all(&self) {
        self.over.store(true, Ordering::Release);
        let open: Vec<_> = lock(&self.slots).keys().copied().collect();
        for segment in open {
            if let Err(error) = self.close(segment) {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(segment, error, "segment did not close cleanly");
            }
        }
    }

    /// Closes and unlinks a segment.
    pub(super) fn remove(&self, segment: u32) -> Result<(), Fault> {
        self.close(segment)?;
        match self.disk.remove(&file_name(segment)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(Fault::io("unlink a segment")),
        }
    }
}
