//! Mending: rows of the index that are not what was written are removed, and what hung on them is
//! put right from the rows that are left. One pass over all tables in one transaction: whoever met
//! one such row does not know about the others. `docs/format.md` has the rules.

use std::collections::BTreeMap;

use redb::{ReadableTable, WriteTransaction};

use super::index::{
    FORMAT, META_BUDGET, META_FORMAT, META_NEXT_ID, META_STORE_ID, META_TOTALS, StoreId,
};
use super::kept::NEVER_GOES;
use super::keys::{SmallKey, id_of_key, key_of_path, nar_use_key, path_key};
use super::layout::stream_takes;
use super::load::Totals;
use super::pin_mend::mend_pins;
use super::queue_care::mend_queue;
use super::records::{
    NarRecord, SegmentRecord, Small, file_hash, number, record_in, small_last_use,
};
use super::removal::takes_of;
use super::small::small_takes;
use super::tables::{
    ALIAS, DOCUMENT, DOOMED, FILE_HASH, Fault, INDEX_TABLES, LISTING, META, NAR, NAR_HASH, NAR_USE,
    NARINFO, PATHS, SEGMENT, SMALL_USE, Table, UNBOUND,
};
use super::uploads::{Unbound, alias_from_bytes};
use super::{Origin, StoredNarInfo};

/// Damaged rows of one table that are logged one by one: a damaged page holds a hundred.
const LOGGED_MAX: u64 = 8;

/// When the next id is lost, it goes on so far above all that are seen: what was given since and
/// came to nothing is seen nowhere, and is less by far.
const IDS_SKIPPED: u64 = 1 << 32;

/// What the file hash of a NAR is taken for when it is lost: no stream has it, so that whoever has
/// half of the old one is not given half of another.
const NO_FILE_HASH: [u8; 32] = [0; 32];

/// What the index said of itself, in case it does not any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) store_id: StoreId,
    pub(super) budget: u64,
    /// `None`: it is lost.
    pub(super) next_id: Option<u64>,
}

/// What a pass found.
#[derive(Debug, Default)]
pub(super) struct Mended {
    /// Damaged rows, all removed.
    pub(super) rows: u64,
    /// Counted anew.
    pub(super) totals: Totals,
    /// Where records of NARs are lost: the first id that one may have had, and the first that none
    /// had. Their rows are in segments yet.
    pub(super) lost: Vec<(u64, u64)>,
    /// Rows about segments are lost.
    pub(super) lost_segments: bool,
    counts: BTreeMap<u32, u64>,
    id_seen: u64,
}

impl Mended {
    /// Whether the record of a NAR may be lost.
    pub(super) fn has_lost(&self, id: u64) -> bool {
        self.lost.iter().any(|(from, end)| (*from..*end).contains(&id))
    }
}

/// Mends the index. `segments` is what is known of segments; those of `files` become known when
/// rows about segments are lost.
pub(super) fn mend(
    txn: &WriteTransaction,
    known: &Known,
    segments: &mut BTreeMap<u32, SegmentRecord>,
    files: &[u32],
) -> Result<Mended, Fault> {
    let mut mended = Mended::default();
    // A damaged row of the queue says all the same that something waits.
    for table in INDEX_TABLES.into_iter().chain([ALIAS, UNBOUND]) {
        mended.remove_damaged(txn, table)?;
    }
    mended.nars(txn)?;
    mended.smalls(txn)?;
    remove_dangling(txn)?;
    mended.segments(txn, segments, files)?;
    mended.queue(txn)?;
    mended.meta(txn, known)?;
    Ok(mended)
}

/// Whether a body is one that its table may have.
fn is_read(table: Table, key: &[u8], body: &[u8]) -> bool {
    match table {
        NAR => key.len() == 8 && NarRecord::from_bytes(table, body).is_ok(),
        NARINFO => key.len() == 20 && Small::<StoredNarInfo>::from_bytes(table, body).is_ok(),
        NAR_HASH => key.len() == 32 && number(table, body).is_ok(),
        SEGMENT => key.len() == 4 && SegmentRecord::from_bytes(table, body).is_ok(),
        FILE_HASH => key.len() == 32 && file_hash(table, body).is_ok(),
        DOCUMENT => small_last_use(table, body).is_ok(),
        ALIAS => key.len() == 33 && alias_from_bytes(body).is_ok(),
        UNBOUND => Unbound::from_row(key, body).is_ok(),
        SMALL_USE => SmallKey::from_use_key(table, key).is_ok(),
        _ => true,
    }
}

/// A row is put where none is.
fn restore(txn: &WriteTransaction, table: Table, key: &[u8], body: &[u8]) -> Result<(), Fault> {
    match table.get_in(txn, key)? {
        Some(_) => Ok(()),
        None => table.insert(txn, key, body),
    }
}

/// Rows stay of which this is true; the first fault ends it.
fn retain(
    txn: &WriteTransaction,
    table: Table,
    stays: impl Fn(&[u8], &[u8]) -> Result<bool, Fault>,
) -> Result<(), Fault> {
    let mut ended = Ok(());
    table.retain(txn, |key, value| {
        let stays = table.unseal(key, value).and_then(|body| stays(key, body));
        ended.is_err()
            || stays.unwrap_or_else(|fault| {
                ended = Err(fault);
                true
            })
    })?;
    ended
}

/// Rows that lead to what is not there any more.
fn remove_dangling(txn: &WriteTransaction) -> Result<(), Fault> {
    let record = |key: &[u8]| match id_of_key(key) {
        Some(id) => Ok(record_in(txn, id)?.map(|record| (id, record))),
        None => Ok::<_, Fault>(None),
    };
    retain(txn, NAR_HASH, |key, body| {
        Ok(record(body)?.is_some_and(|(_, record)| record.nar_hash.as_bytes() == key))
    })?;
    retain(txn, NAR_USE, |key, _| {
        Ok(record(key)?.is_some_and(|(id, record)| {
            !record.doomed && nar_use_key(record.origin, record.last_use, id) == key
        }))
    })?;
    retain(txn, LISTING, |key, _| Ok(record(key)?.is_some()))?;
    retain(txn, DOOMED, |key, _| Ok(record(key)?.is_some_and(|(_, record)| record.doomed)))?;
    retain(txn, PATHS, |key, _| {
        let Some(narinfo) = key_of_path(key) else { return Ok(false) };
        let Some(body) = NARINFO.get_in(txn, narinfo.as_bytes())? else { return Ok(false) };
        let small = Small::<StoredNarInfo>::from_bytes(NARINFO, &body)?;
        Ok(path_key(small.value.narinfo.nar_hash, narinfo) == key)
    })?;
    retain(txn, SMALL_USE, |key, _| {
        let small = SmallKey::from_use_key(SMALL_USE, key)?;
        let Some(body) = small.table().get_in(txn, small.key())? else { return Ok(false) };
        Ok(small.use_key(small_last_use(small.table(), &body)?) == key)
    })
}

impl Mended {
    fn remove_damaged(&mut self, txn: &WriteTransaction, table: Table) -> Result<(), Fault> {
        let mut removed = 0;
        // Ids ascend, so a lost one is between its sound neighbours, even where its key is damaged.
        let (mut from, mut is_gap) = (0, false);
        let mut lost = Vec::new();
        let mut lost_hashes = Vec::new();
        table.retain(txn, |key, value| {
            let body = table.unseal(key, value).ok();
            if body.is_some_and(|body| is_read(table, key, body)) {
                if let Some(id) = id_of_key(key).filter(|_| table == NAR) {
                    lost.extend(is_gap.then_some((from, id)));
                    (from, is_gap) = (id + 1, false);
                }
                return true;
            }
            removed += 1;
            is_gap = true;
            if table == FILE_HASH && key.len() == 32 {
                lost_hashes.push(key.to_vec());
            }
            if removed <= LOGGED_MAX {
                let (table, key) = (table.name(), key.escape_ascii());
                tracing::error!(table, %key, "damaged row of the index is removed");
            }
            false
        })?;
        for key in lost_hashes {
            restore(txn, FILE_HASH, &key, &NO_FILE_HASH)?;
        }
        if table == NAR {
            lost.extend(is_gap.then_some((from, u64::MAX)));
            self.lost = lost;
        }
        self.lost_segments |= table == SEGMENT && removed > 0;
        self.rows += removed;
        Ok(())
    }

    /// What follows from the records of NARs.
    fn nars(&mut self, txn: &WriteTransaction) -> Result<(), Fault> {
        for entry in NAR.open_in(txn)?.iter()? {
            let (key, value) = entry?;
            let key = key.value();
            let Some(id) = id_of_key(key) else { continue };
            let record = NarRecord::from_bytes(NAR, NAR.unseal(key, value.value())?)?;
            self.id_seen = self.id_seen.max(id);
            self.totals.use_counter = self.totals.use_counter.max(record.last_use + 1);
            for (segment, takes) in takes_of(&record.parts, record.file_size) {
                *self.counts.entry(segment).or_default() += takes;
            }
            if record.doomed {
                restore(txn, DOOMED, key, &[])?;
                continue;
            }
            self.totals.nars += 1;
            if record.origin == Origin::Kept {
                self.totals.kept_bytes += stream_takes(record.file_size);
            }
            restore(txn, NAR_HASH, record.nar_hash.as_bytes(), key)?;
            let hash = record.nar_hash.as_bytes();
            let file_hash = FILE_HASH.get_in(txn, hash)?;
            if file_hash.is_none_or(|hash| hash == NO_FILE_HASH) {
                FILE_HASH.insert(txn, hash, record.file_hash.as_bytes())?;
            }
            restore(txn, NAR_USE, &nar_use_key(record.origin, record.last_use, id), &[])?;
        }
        for (table, is_key) in [(LISTING, true), (DOOMED, true), (NAR_HASH, false)] {
            for entry in table.open_in(txn)?.iter()? {
                let (key, value) = entry?;
                let id = id_of_key(if is_key { key.value() } else { value.value() });
                self.id_seen = self.id_seen.max(id.unwrap_or(0));
            }
        }
        Ok(())
    }

    /// What follows from narinfos, documents and aliases.
    fn smalls(&mut self, txn: &WriteTransaction) -> Result<(), Fault> {
        for table in [NARINFO, DOCUMENT, ALIAS] {
            for entry in table.open_in(txn)?.iter()? {
                let (key, value) = entry?;
                let body = table.unseal(key.value(), value.value())?;
                let last_use = small_last_use(table, body)?;
                self.totals.small_bytes += small_takes(body.len());
                let Some(small) = SmallKey::of(table, key.value()) else { continue };
                if last_use != NEVER_GOES {
                    self.totals.use_counter = self.totals.use_counter.max(last_use + 1);
                    restore(txn, SMALL_USE, &small.use_key(last_use), &[])?;
                }
                if let SmallKey::Narinfo(narinfo) = small {
                    self.totals.narinfos += 1;
                    let stored = Small::<StoredNarInfo>::from_bytes(table, body)?.value;
                    let path = path_key(stored.narinfo.nar_hash, narinfo);
                    restore(txn, PATHS, &path, &[])?;
                }
            }
        }
        Ok(())
    }

    /// Segments count what the records say. Where rows are lost, what they left is searched for.
    fn segments(
        &mut self,
        txn: &WriteTransaction,
        segments: &mut BTreeMap<u32, SegmentRecord>,
        files: &[u32],
    ) -> Result<(), Fault> {
        let files = files.iter().filter(|_| self.lost_segments);
        for segment in files.chain(self.counts.keys()) {
            let searched = SegmentRecord { noted_from: Some(0), ..SegmentRecord::default() };
            segments.entry(*segment).or_insert(searched);
        }
        let lost_from = self.lost.first().map(|(from, _)| *from);
        SEGMENT.retain(txn, |_, _| false)?;
        for (segment, record) in segments {
            record.count_bytes = self.counts.get(segment).copied().unwrap_or(0);
            record.peak_bytes = record.peak_bytes.max(record.count_bytes);
            let noted = [record.noted_from, lost_from];
            record.noted_from = noted.into_iter().flatten().min();
            self.id_seen = self.id_seen.max(record.noted_from.unwrap_or(0));
            SEGMENT.insert(txn, &segment.to_be_bytes(), &record.to_bytes())?;
        }
        Ok(())
    }

    /// The queue, and where its order goes on.
    fn queue(&mut self, txn: &WriteTransaction) -> Result<(), Fault> {
        let before = META.get_in(txn, META_TOTALS)?;
        let before = before.map(|body| Totals::from_bytes(&body)).transpose()?;
        // Where that is lost, those that were struck are seen nowhere.
        let skipped = if before.is_some() { 0 } else { IDS_SKIPPED };
        self.totals.next_seq = before.unwrap_or_default().next_seq + skipped;
        self.rows += mend_queue(txn, &mut self.totals.next_seq)?;
        self.rows += mend_pins(txn)?;
        Ok(())
    }

    fn meta(&mut self, txn: &WriteTransaction, known: &Known) -> Result<(), Fault> {
        let next_id = known.next_id.unwrap_or(self.id_seen.saturating_add(IDS_SKIPPED));
        // The format was checked when the index was opened.
        restore(txn, META, META_FORMAT, &FORMAT.to_be_bytes())?;
        restore(txn, META, META_STORE_ID, &known.store_id)?;
        restore(txn, META, META_BUDGET, &known.budget.to_be_bytes())?;
        restore(txn, META, META_NEXT_ID, &next_id.to_be_bytes())?;
        if let Some(before) = META.get_in(txn, META_TOTALS)? {
            let before = Totals::from_bytes(&before)?;
            self.totals.use_counter = self.totals.use_counter.max(before.use_counter);
        }
        META.insert(txn, META_TOTALS, &self.totals.to_bytes())
    }
}
