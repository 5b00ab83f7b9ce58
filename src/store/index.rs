//! The index file: opened, looked at before that, made at first start; short read transactions.

use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase};

use super::backend::{Metered, Meters, Scratch};
use super::disk::{Disk, Mode};
use super::records::number;
use super::segment::guarded;
use super::tables::{Fault, INDEX_TABLES, META};
use super::writer::{Durable, write_txn};

/// The index's name.
pub(super) const FILE_NAME: &str = "index.redb";

/// What it is called until it is whole.
const NEW_NAME: &str = "index.redb.new";

/// redb's cache of the index.
const CACHE_BYTES: usize = 8 << 20;

/// What we write and read; a higher number is a newer snowberry's.
const FORMAT: u64 = 1;

/// Names in `meta-1`.
pub(super) const META_FORMAT: &[u8] = b"format";
pub(super) const META_STORE_ID: &[u8] = b"store-id";
pub(super) const META_BUDGET: &[u8] = b"budget";
pub(super) const META_NEXT_ID: &[u8] = b"next-id";
pub(super) const META_TOTALS: &[u8] = b"totals";

/// An open index.
#[derive(Debug)]
pub(super) struct Index {
    database: RwLock<Option<Database>>,
}

/// A store's name, made at random at its birth.
pub(super) type StoreId = [u8; 16];

impl Index {
    /// Opens the index of a folder. It is looked at first without a byte written: one that is
    /// damaged or of a newer format stays as it is.
    pub(super) fn open(disk: &Arc<dyn Disk>, meters: &Meters) -> Result<Self, Fault> {
        let open = || disk.open(FILE_NAME, Mode::Write).map_err(Fault::io("open the index"));
        let scratch = Scratch::new(open()?).map_err(Fault::io("read the index"))?;
        guarded(|| {
            let database =
                Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(scratch)?;
            check_format(&database)
        })?;
        let backend = Metered { file: open()?, meters: meters.clone() };
        let mut builder = Database::builder();
        let database =
            guarded(|| Ok(builder.set_cache_size(CACHE_BYTES).create_with_backend(backend)?))?;
        Ok(Self { database: RwLock::new(Some(database)) })
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
        for table in INDEX_TABLES {
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

    /// Reads in one short transaction.
    pub(super) fn read<T>(
        &self,
        act: impl FnOnce(&ReadTransaction) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.with(|database| act(&database.begin_read()?))
    }

    /// What the writer does with it.
    pub(super) fn with<T>(
        &self,
        act: impl FnOnce(&Database) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match &*database {
            Some(database) => guarded(|| act(database)),
            None => Err(Fault::Refused("the index is closed".into())),
        }
    }

    /// Closes it, once those who read have ended.
    pub(super) fn close(&self) -> Result<(), Fault> {
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        database.map_or(Ok(()), |database| Ok(database.close()?))
    }
}

fn check_format(database: &Database) -> Result<(), Fault> {
    let txn = database.begin_read()?;
    let format = META.get(&txn, META_FORMAT)?.ok_or(Fault::Damaged(META.name()))?;
    let format = number(META, &format)?;
    if format > FORMAT {
        let sentence = format!(
            "the store is of format {format} and this snowberry reads {FORMAT}: run the newer \
             snowberry again, or give another store.path"
        );
        return Err(Fault::Refused(sentence.into()));
    }
    for table in INDEX_TABLES {
        table.open_for_read(&txn)?;
    }
    Ok(())
}

/// A number in `meta-1`.
pub(super) fn meta_number(txn: &ReadTransaction, name: &[u8]) -> Result<Option<u64>, Fault> {
    META.get(txn, name)?.map(|body| number(META, &body)).transpose()
}
