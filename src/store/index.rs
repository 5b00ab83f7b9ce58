//! The index file: opened, looked at before that, made at first start; short read transactions.

use std::sync::{Arc, PoisonError, RwLock, TryLockError};

use redb::{Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase};

use super::backend::{Metered, Meters, Scratch};
use super::disk::{Disk, Mode};
use super::records::number;
use super::segment::guarded;
use super::tables::{Fault, INDEX_TABLES, META, PUSH_TABLES};
use super::writer::{Durable, write_txn};

/// The index's name.
pub(super) const FILE_NAME: &str = "index.redb";

/// What it is called until it is whole.
const NEW_NAME: &str = "index.redb.new";

/// redb's cache of the index.
const CACHE_BYTES: usize = 8 << 20;

/// The same at rest: the first questions after it read the upper pages of each tree, which fit.
const REST_CACHE_BYTES: usize = 1 << 20;

/// What we write; a higher number is a newer snowberry's.
pub const FORMAT: u64 = 2;

/// The first one, without the tables of the push side: taken over when it is opened.
pub(super) const FORMAT_BEFORE_PUSH: u64 = 1;

/// Names in `meta-1`.
pub(super) const META_FORMAT: &[u8] = b"format";
pub(super) const META_STORE_ID: &[u8] = b"store-id";
pub(super) const META_BUDGET: &[u8] = b"budget";
pub(super) const META_NEXT_ID: &[u8] = b"next-id";
pub(super) const META_TOTALS: &[u8] = b"totals";

/// An open index.
#[derive(Debug)]
pub(super) struct Index {
    disk: Arc<dyn Disk>,
    meters: Meters,
    handle: RwLock<Handle>,
}

#[derive(Default)]
enum Handle {
    #[default]
    Closed,
    /// As it is written.
    Full(Database),
    /// At rest, for reading only: its file is clean.
    Resting(ReadOnlyDatabase),
    /// It could not be closed cleanly for its rest (a full disk), so it stays open for writing.
    Restless(Database),
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "Closed",
            Self::Full(_) => "Full",
            Self::Resting(_) => "Resting",
            Self::Restless(_) => "Restless",
        })
    }
}

fn open_full(disk: &Arc<dyn Disk>, meters: &Meters, cache: usize) -> Result<Database, Fault> {
    let file = disk.open(FILE_NAME, Mode::Write).map_err(Fault::io("open the index"))?;
    let backend = Metered { file, meters: meters.clone() };
    let mut builder = Database::builder();
    guarded(|| Ok(builder.set_cache_size(cache).create_with_backend(backend)?))
}

/// A store's name, made at random at its birth.
pub(super) type StoreId = [u8; 16];

impl Index {
    /// Opens the index of a folder. It is looked at first without a byte written: one that is
    /// damaged, of a newer format or not to the liking of `look` stays as it is.
    pub(super) fn open<T>(
        disk: &Arc<dyn Disk>,
        meters: &Meters,
        look: impl FnOnce(&ReadTransaction) -> Result<T, Fault>,
    ) -> Result<(Self, T), Fault> {
        let file = disk.open(FILE_NAME, Mode::Write).map_err(Fault::io("open the index"))?;
        let scratch = Scratch::new(file).map_err(Fault::io("read the index"))?;
        let seen = guarded(|| {
            let database =
                Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(scratch)?;
            check_format(&database)?;
            look(&database.begin_read()?)
        })?;
        let handle = RwLock::new(Handle::Full(open_full(disk, meters, CACHE_BYTES)?));
        Ok((Self { disk: disk.clone(), meters: meters.clone(), handle }, seen))
    }

    /// Whether the disk still gives anything of the index's file.
    pub(super) fn probe(disk: &Arc<dyn Disk>) -> Result<(), Fault> {
        let mut head = [0; 64];
        let file = disk.open(FILE_NAME, Mode::Read).map_err(Fault::io("open the index"))?;
        file.read(0, &mut head).map_err(Fault::io("read the index"))
    }

    /// Makes an index; it appears under its name when it is whole.
    pub(super) fn create(
        disk: &Arc<dyn Disk>,
        meters: &Meters,
        store_id: StoreId,
        budget: u64,
    ) -> Result<(), Fault> {
        let act = "make the index";
        if disk.names().map_err(Fault::io(act))?.iter().any(|name| name == NEW_NAME) {
            disk.remove(NEW_NAME).map_err(Fault::io(act))?;
        }
        let file = disk.open(NEW_NAME, Mode::Create).map_err(Fault::io(act))?;
        let backend = Metered { file, meters: meters.clone() };
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        let txn = write_txn(&database, Durable::Yes)?;
        for table in INDEX_TABLES.into_iter().chain(PUSH_TABLES) {
            table.open_in(&txn)?;
        }
        META.insert(&txn, META_FORMAT, &FORMAT.to_be_bytes())?;
        META.insert(&txn, META_STORE_ID, &store_id)?;
        META.insert(&txn, META_BUDGET, &budget.to_be_bytes())?;
        META.insert(&txn, META_NEXT_ID, &1_u64.to_be_bytes())?;
        txn.commit()?;
        database.close()?;
        disk.rename(NEW_NAME, FILE_NAME).map_err(Fault::io(act))
    }

    /// An index of the first format gets the tables that came later, and the number that keeps an
    /// older snowberry away: it would evict what waits to be carried on.
    pub(super) fn take_over(&self) -> Result<(), Fault> {
        if self.read(has_push_tables)? {
            return Ok(());
        }
        self.with(|database| {
            let txn = write_txn(database, Durable::Yes)?;
            for table in PUSH_TABLES {
                table.open_in(&txn)?;
            }
            META.insert(&txn, META_FORMAT, &FORMAT.to_be_bytes())?;
            Ok(txn.commit()?)
        })
    }

    /// Reads in one short transaction.
    pub(super) fn read<T>(
        &self,
        act: impl FnOnce(&ReadTransaction) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner);
        guarded(|| {
            let txn = match &*handle {
                Handle::Closed => return Err(closed()),
                Handle::Full(database) | Handle::Restless(database) => database.begin_read()?,
                Handle::Resting(database) => database.begin_read()?,
            };
            act(&txn)
        })
    }

    /// What the writer does with it. Ends its rest.
    pub(super) fn with<T>(
        &self,
        act: impl FnOnce(&Database) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.wake()?;
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner);
        match &*handle {
            Handle::Full(database) | Handle::Restless(database) => guarded(|| act(database)),
            Handle::Closed | Handle::Resting(_) => Err(closed()),
        }
    }

    /// Opens it for writing when it rests. Readers wait that long.
    fn wake(&self) -> Result<(), Fault> {
        let is_resting = |handle: &Handle| matches!(*handle, Handle::Resting(_));
        if !is_resting(&self.handle.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let mut handle = self.handle.write().unwrap_or_else(PoisonError::into_inner);
        *handle = Handle::Closed;
        *handle = Handle::Full(open_full(&self.disk, &self.meters, CACHE_BYTES)?);
        Ok(())
    }

    /// Closes it and opens it for reading only, with a small cache: redb gives the memory of a cache
    /// back only so. Nothing is done when it rests already or somebody is at it. Readers that come
    /// meanwhile wait. Says whether it went to rest.
    pub(super) fn rest(&self) -> Result<bool, Fault> {
        let mut handle = match self.handle.try_write() {
            Ok(handle) => handle,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let was_full = matches!(*handle, Handle::Full(_));
        *handle = match std::mem::take(&mut *handle) {
            Handle::Full(database) => self.close_for_rest(database)?,
            other @ (Handle::Closed | Handle::Resting(_) | Handle::Restless(_)) => other,
        };
        Ok(was_full)
    }

    fn close_for_rest(&self, database: Database) -> Result<Handle, Fault> {
        if let Err(fault) = guarded(|| Ok(database.close()?)) {
            // All that counts is durable already; what is missing is redb's own housekeeping.
            let error: &dyn std::error::Error = &fault;
            tracing::warn!(error, "index did not close cleanly for its rest");
            return Ok(Handle::Restless(open_full(&self.disk, &self.meters, REST_CACHE_BYTES)?));
        }
        let file = self.disk.open(FILE_NAME, Mode::Read).map_err(Fault::io("open the index"))?;
        let backend = Metered { file, meters: self.meters.clone() };
        let mut builder = Database::builder();
        builder.set_cache_size(REST_CACHE_BYTES);
        let database = guarded(|| Ok(builder.open_read_only_with_backend(backend)?))?;
        Ok(Handle::Resting(database))
    }

    /// Whether it went to rest, even badly.
    #[cfg(test)]
    pub(super) fn has_rested(&self) -> bool {
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner);
        matches!(*handle, Handle::Resting(_) | Handle::Restless(_))
    }

    /// Whether it is open for reading only.
    #[cfg(test)]
    pub(super) fn is_resting(&self) -> bool {
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner);
        matches!(*handle, Handle::Resting(_))
    }

    /// Closes it, once those who read have ended.
    pub(super) fn close(&self) -> Result<(), Fault> {
        let mut handle = self.handle.write().unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *handle) {
            Handle::Closed | Handle::Resting(_) => Ok(()),
            Handle::Full(database) | Handle::Restless(database) => Ok(database.close()?),
        }
    }
}

fn closed() -> Fault {
    Fault::Refused("the index is closed".into())
}

/// Without its format nobody knows what the rest means.
const FORMAT_LOST: &str = "the store's index is damaged where it says its format: put a copy of \
                           index.redb back, or move the store's files away to begin a new store";

fn check_format(database: &Database) -> Result<(), Fault> {
    let txn = database.begin_read()?;
    let format = META.get(&txn, META_FORMAT).and_then(|body| match body {
        Some(body) => number(META, &body),
        None => Err(Fault::Damaged(META.name())),
    });
    if let Err(Fault::Damaged(_)) = &format {
        return Err(Fault::Refused(FORMAT_LOST.into()));
    }
    let format = format?;
    if format > FORMAT {
        let sentence = format!(
            "the store is of format {format} and this snowberry reads {FORMAT}: run the newer \
             snowberry again, or give another store.path"
        );
        return Err(Fault::Refused(sentence.into()));
    }
    let later = PUSH_TABLES.into_iter().filter(|_| format > FORMAT_BEFORE_PUSH);
    for table in INDEX_TABLES.into_iter().chain(later) {
        table.open_for_read(&txn)?;
    }
    Ok(())
}

/// Whether the index has the tables of the push side.
pub(super) fn has_push_tables(txn: &ReadTransaction) -> Result<bool, Fault> {
    let format = META.get(txn, META_FORMAT)?.map(|body| number(META, &body)).transpose()?;
    Ok(format.is_some_and(|format| format > FORMAT_BEFORE_PUSH))
}
