//! Every table, its version in its name, and the seal on each row: the only place that knows how
//! a row is wrapped. Keys are bytes whose order is the order of what they stand for (numbers
//! big-endian). What is inside the rows is in [`records`](super::records); `docs/format.md` has
//! both byte by byte.

use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use xxhash_rust::xxh3::Xxh3;

use super::layout::CHECKSUM_LEN;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Writable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;
type Readable = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// A key and what its row holds.
pub(super) type Scanned = (Vec<u8>, Vec<u8>);

/// A table by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table(&'static str);

/// Store path hash (20) -> narinfo.
pub(super) const NARINFO: Table = Table("narinfo-1");
/// NAR id (8) -> record.
pub(super) const NAR: Table = Table("nar-1");
/// `NarHash` (32) -> id of the held NAR (8).
pub(super) const NAR_HASH: Table = Table("nar-hash-1");
/// `NarHash` (32), store path hash (20) -> nothing.
pub(super) const PATHS: Table = Table("paths-1");
/// NAR id (8) -> its `.ls` document.
pub(super) const LISTING: Table = Table("listing-1");
/// Name -> document.
pub(super) const DOCUMENT: Table = Table("document-1");
/// Origin (1), use counter (8), NAR id (8) -> nothing: the order in which NARs are evicted.
pub(super) const NAR_USE: Table = Table("nar-use-1");
/// Use counter (8), kind (1), key -> nothing: the order in which narinfos and documents go.
pub(super) const SMALL_USE: Table = Table("small-use-1");
/// `NarHash` (32) -> last file hash (32). Outlives the NAR.
pub(super) const FILE_HASH: Table = Table("file-hash-1");
/// Segment number (4) -> its count and note.
pub(super) const SEGMENT: Table = Table("segment-1");
/// NAR id (8) -> nothing: its rows are to go.
pub(super) const DOOMED: Table = Table("doomed-1");
/// Hash and ending of an uploader's file (33) -> what it was.
pub(super) const ALIAS: Table = Table("alias-1");
/// `NarHash` (32), key of an alias (33) -> when it came, its length: waits for its narinfo.
pub(super) const UNBOUND: Table = Table("unbound-1");
/// Copy (1), target id (4) -> its URL.
pub(super) const TARGET: Table = Table("target-1");
/// Target id (4), kind (1), key -> what is queued there.
pub(super) const QUEUE: Table = Table("queue-1");
/// Target id (4), place in the order (8) -> kind (1), key.
pub(super) const QUEUE_SEQ: Table = Table("queue-seq-1");
/// Name -> figures that others keep. Made when it is first written.
pub(super) const FIGURES: Table = Table("figures-1");
/// Copy (1), pin id (4) -> what is pinned, under which name.
pub(super) const PIN: Table = Table("pin-1");
/// 0, store path hash (20), pin id (4) -> what its NAR becomes without; 1, pin id (4), store path
/// hash (20) -> nothing.
pub(super) const PINNED: Table = Table("pinned-1");
/// Use counter (8) -> what the clock said then.
pub(super) const USE_TIME: Table = Table("use-time-1");
/// A name -> how far the scrub has come. Made at its first write: its absence says "not begun".
pub(super) const SCRUB: Table = Table("scrub-1");
/// Name -> one of the store's few single values.
pub(super) const META: Table = Table("meta-1");
/// In segments: NAR id (8), row number (4) -> stream bytes.
pub(super) const ROWS: Table = Table("rows-1");

/// Tables of the index of format 1. Made at its birth, so that no reader meets one that is missing.
pub(super) const INDEX_TABLES: [Table; 12] = [
    NARINFO, NAR, NAR_HASH, PATHS, LISTING, DOCUMENT, NAR_USE, SMALL_USE, FILE_HASH, SEGMENT,
    DOOMED, META,
];

/// Tables that format 2 added.
pub(super) const PUSH_TABLES: [Table; 5] = [ALIAS, UNBOUND, TARGET, QUEUE, QUEUE_SEQ];

/// What goes wrong between us and a redb file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// redb says so.
    #[error("the database refuses")]
    Redb(#[source] Box<redb::Error>),
    /// The file system says so.
    #[error("{act}")]
    Io {
        act: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// A row is not what was written.
    #[error("a row of {0} is damaged")]
    Damaged(&'static str),
    /// A row that must be there is not: the tree above it is damaged.
    #[error("a row of {0} is missing")]
    Missing(&'static str),
    /// Whatever else keeps a store from being opened: a sentence that says what to do.
    #[error("{0}")]
    Refused(Arc<str>),
    /// redb panicked over a file.
    #[error("the database gave up over a damaged file")]
    Panicked,
}

impl Fault {
    pub(super) fn io(act: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { act, source }
    }
}

macro_rules! fault_from {
    ($($error:ty)+) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::Redb(Box::new(error.into()))
            }
        }
    )+};
}
fault_from!(redb::StorageError redb::TableError redb::CommitError redb::TransactionError);
fault_from!(redb::DatabaseError redb::SetDurabilityError);

fn checksum(table: &str, key: &[u8], body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut hasher = Xxh3::new();
    let key_len = u32::try_from(key.len()).unwrap_or(u32::MAX);
    hasher.update(table.as_bytes());
    hasher.update(&[0]);
    hasher.update(&key_len.to_be_bytes());
    hasher.update(key);
    hasher.update(body);
    hasher.digest().to_be_bytes()
}

impl Table {
    pub(super) fn name(self) -> &'static str {
        self.0
    }

    fn definition(self) -> Definition {
        TableDefinition::new(self.0)
    }

    /// Writes the checksum into the first bytes of a value that has room for it there.
    pub(super) fn seal(self, key: &[u8], value: &mut [u8]) {
        if let Some((head, body)) = value.split_at_mut_checked(CHECKSUM_LEN) {
            head.copy_from_slice(&checksum(self.0, key, body));
        }
    }

    /// What a value holds behind its checksum, when that is right.
    pub(super) fn unseal<'v>(self, key: &[u8], value: &'v [u8]) -> Result<&'v [u8], Fault> {
        match value.split_at_checked(CHECKSUM_LEN) {
            Some((head, body)) if head == checksum(self.0, key, body) => Ok(body),
            Some(_) | None => Err(Fault::Damaged(self.0)),
        }
    }

    pub(super) fn open_in(self, txn: &WriteTransaction) -> Result<Writable<'_>, Fault> {
        Ok(txn.open_table(self.definition())?)
    }

    pub(super) fn insert(
        self,
        txn: &WriteTransaction,
        key: &[u8],
        body: &[u8],
    ) -> Result<(), Fault> {
        let mut value = vec![0; CHECKSUM_LEN];
        value.extend_from_slice(body);
        self.seal(key, &mut value);
        self.open_in(txn)?.insert(key, value.as_slice())?;
        Ok(())
    }

    /// Says whether there was one.
    pub(super) fn remove(self, txn: &WriteTransaction, key: &[u8]) -> Result<bool, Fault> {
        let there = self.open_in(txn)?.remove(key)?.is_some();
        Ok(there)
    }

    /// What a write transaction sees.
    pub(super) fn get_in(
        self,
        txn: &WriteTransaction,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, Fault> {
        let table = self.open_in(txn)?;
        let value = table.get(key)?;
        value.map(|value| Ok(self.unseal(key, value.value())?.to_vec())).transpose()
    }

    pub(super) fn open_for_read(self, txn: &ReadTransaction) -> Result<Readable, Fault> {
        Ok(txn.open_table(self.definition())?)
    }

    /// `None`: one that was added without a new format, and that nobody has written to yet.
    fn open_if_made(self, txn: &ReadTransaction) -> Result<Option<Readable>, Fault> {
        match txn.open_table(self.definition()) {
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }

    pub(super) fn get(self, txn: &ReadTransaction, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let Some(table) = self.open_if_made(txn)? else { return Ok(None) };
        let value = table.get(key)?;
        value.map(|value| Ok(self.unseal(key, value.value())?.to_vec())).transpose()
    }

    /// Removes the rows that are not to stay, wherever they stand: a key that is damaged cannot be
    /// looked up.
    pub(super) fn retain(
        self,
        txn: &WriteTransaction,
        stays: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        let mut table = self.open_in(txn)?;
        Ok(table.retain(stays)?)
    }

    /// The same of a table that must be sound.
    #[cfg(test)]
    pub(super) fn scan(
        self,
        txn: &ReadTransaction,
        from: &[u8],
        max: usize,
        while_key: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Scanned>, Fault> {
        let (found, damaged) = self.scan_sound(txn, from, max, while_key)?;
        if damaged { Err(Fault::Damaged(self.0)) } else { Ok(found) }
    }

    /// Keys and bodies from `from` on, in order, at most `max`, as long as `while_key` holds; and
    /// whether damaged rows were left out.
    pub(super) fn scan_sound(
        self,
        txn: &ReadTransaction,
        from: &[u8],
        max: usize,
        while_key: impl Fn(&[u8]) -> bool,
    ) -> Result<(Vec<Scanned>, bool), Fault> {
        let (mut found, mut damaged) = (Vec::new(), false);
        let Some(table) = self.open_if_made(txn)? else { return Ok((found, damaged)) };
        for entry in table.range::<&[u8]>(from..)? {
            let (key, value) = entry?;
            if found.len() >= max {
                break;
            }
            let Ok(body) = self.unseal(key.value(), value.value()) else {
                damaged = true;
                continue;
            };
            if !while_key(key.value()) {
                break;
            }
            found.push((key.value().to_vec(), body.to_vec()));
        }
        Ok((found, damaged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_table_key_and_body() {
        let mut value = vec![0; CHECKSUM_LEN];
        value.extend_from_slice(b"body");
        NAR.seal(b"key", &mut value);
        assert_eq!(NAR.unseal(b"key", &value).unwrap(), b"body");
        assert!(NARINFO.unseal(b"key", &value).is_err());
        assert!(NAR.unseal(b"kez", &value).is_err());
        for at in 0..value.len() {
            let mut torn = value.clone();
            torn[at] ^= 1;
            assert!(NAR.unseal(b"key", &torn).is_err());
        }
        assert!(NAR.unseal(b"key", &value[..7]).is_err());
    }
}
