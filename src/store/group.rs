//! Landing rows, finishing NARs, and the group commit: segment first, then index.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::WriteTransaction;

use super::disk::Mode;
use super::fill::Fill;
use super::index::{META_NEXT_ID, META_TOTALS};
use super::layout::{Row, row_takes};
use super::nar::{HeldNar, entry_of};
use super::records::{NarRecord, nar_use_key, row_key};
use super::segment::WRITE_CACHE_BYTES;
use super::session::Entry;
use super::tables::{FILE_HASH, Fault, LISTING, META, NAR, NAR_HASH, NAR_USE, ROWS, SEGMENT};
use super::writer::{Durable, Reply, SegmentState, Writer, write_txn};
use super::{Error, Finished, lock};

/// Rows of one transaction: below a quarter of the segment's cache, or redb writes them twice.
const LANDING_BYTES_MAX: usize = 4 << 20;

/// A group is committed at so many bytes of rows: what a power cut may cost.
const GROUP_BYTES_MAX: u64 = 64 << 20;

/// A group is committed at so many NARs: their records are in memory only.
const GROUP_NARS_MAX: usize = 4096;

/// A group is committed after so long: what a power cut may cost, on a slow line.
pub(super) const GROUP_AGE_MAX: Duration = Duration::from_mins(1);

/// Ids that are reserved at a time; a crash wastes at most so many of 2^64.
const IDS_A_BLOCK: u64 = 4096;

/// A segment takes new rows while it counts less: with redb's own pages its file stays at 1 GiB,
/// whose allocator state is small enough to be written with each commit.
/// Tests want several.
const SEGMENT_FULL_BYTES: u64 = if cfg!(test) { 16 << 20 } else { 960 << 20 };

/// A segment that counts less is worth being filled again.
const SEGMENT_REUSE_BYTES: u64 = SEGMENT_FULL_BYTES / 4 * 3;

/// A row that is to be landed.
pub(super) struct Landing {
    pub(super) fill: Arc<Fill>,
    pub(super) row: Row,
    pub(super) value: Bytes,
}

/// A NAR whose rows have come.
pub(super) struct Finishing {
    pub(super) fill: Arc<Fill>,
    pub(super) finished: Finished,
    pub(super) reply: Reply<HeldNar>,
}

impl Writer {
    /// A row is to be landed with others.
    pub(super) fn row(&mut self, landing: Landing) -> Result<(), Fault> {
        self.landing_bytes += landing.value.len();
        self.landing.push(landing);
        if self.landing_bytes < LANDING_BYTES_MAX {
            return Ok(());
        }
        self.land()?;
        self.in_the_background()
    }

    /// Lands the rows that came and finishes the NARs that are whole with them.
    pub(super) fn land(&mut self) -> Result<(), Fault> {
        self.landing_bytes = 0;
        let mut rows = std::mem::take(&mut self.landing);
        loop {
            let void = rows.extract_if(.., |landing| !landing.fill.is_open());
            self.session.space.free(void.map(|landing| row_takes(landing.row.body)).sum());
            if rows.is_empty() {
                break;
            }
            let segment = self.segment_for_rows()?;
            match self.land_rows(segment, &rows) {
                Ok(()) => break,
                // Where only the segment failed, they go to another one.
                Err(fault) => self.segment_trouble(segment, fault)?,
            }
        }
        for finishing in std::mem::take(&mut self.finishing) {
            self.finish(finishing)?;
        }
        Ok(())
    }

    fn land_rows(&mut self, segment: u32, rows: &[Landing]) -> Result<(), Fault> {
        self.session.segments.write(segment, |database| {
            let txn = write_txn(database, Durable::No)?;
            let mut table = ROWS.open_in(&txn)?;
            for Landing { fill, row, value } in rows {
                table.insert(row_key(fill.id, row.number).as_slice(), &**value)?;
            }
            drop(table);
            Ok(txn.commit()?)
        })?;
        self.segment_dirty = true;
        self.waiting_since.get_or_insert_with(Instant::now);
        let mut takes = 0;
        for Landing { fill, row, .. } in rows {
            fill.landed(segment, *row);
            takes += row_takes(row.body);
        }
        self.group_bytes += takes;
        let state = self.segments.entry(segment).or_default();
        state.unknown_bytes += takes;
        // What rows really took of the file system is known only now, and fills are let in by it.
        self.observe_disk();
        let state = self.segments.entry(segment).or_default();
        if state.bytes() >= SEGMENT_FULL_BYTES {
            self.leave_current()?;
        }
        Ok(())
    }

    /// Makes the current segment durable; it takes no more rows.
    pub(super) fn leave_current(&mut self) -> Result<(), Fault> {
        self.sync_segment()?;
        match self.current.take() {
            Some(segment) => self.session.segments.close(segment),
            None => Ok(()),
        }
    }

    /// What landed in the current segment is durable, or, where the segment failed, abandoned.
    fn sync_segment(&mut self) -> Result<(), Fault> {
        let Some(segment) = self.current.filter(|_| self.segment_dirty) else { return Ok(()) };
        self.segment_dirty = false;
        let segments = &self.session.segments;
        let synced =
            segments.write(segment, |database| Ok(write_txn(database, Durable::Yes)?.commit()?));
        synced.or_else(|fault| self.segment_trouble(segment, fault))
    }

    /// The segment that takes rows, noted durably in the index before it is written.
    fn segment_for_rows(&mut self) -> Result<u32, Fault> {
        if let Some(segment) = self.current {
            return Ok(segment);
        }
        loop {
            let shunned = lock(&self.shared.shunned).clone();
            let has_room = |(segment, state): &(&u32, &SegmentState)| {
                let takes_rows = !state.record.failed && !shunned.contains(segment);
                takes_rows && state.bytes() < SEGMENT_REUSE_BYTES
            };
            let reuse = self.segments.iter().find(has_room);
            let segment = reuse.map_or_else(|| self.next_segment(), |(segment, _)| *segment);
            let floor = self.floor(true);
            let state = self.segments.entry(segment).or_default();
            if state.record.noted_from.is_none_or(|from| from > floor) {
                state.record.noted_from = Some(floor);
                self.changed_segments.insert(segment);
                self.commit_index(Durable::Yes, |_, _| Ok(()))?;
            }
            let is_empty = self.segments.get(&segment).is_some_and(|state| state.bytes() == 0);
            match self.open_current(segment, is_empty) {
                Ok(()) => {
                    self.current = Some(segment);
                    return Ok(segment);
                }
                // Nobody loses anything by it, so it is the disk's trouble.
                Err(fault) if is_empty => return Err(fault),
                Err(fault) => {
                    let fault = super::session::sentence(&fault);
                    tracing::error!(segment, %fault, "segment cannot be written");
                    lock(&self.shared.shunned).insert(segment);
                }
            }
        }
    }

    /// A segment that counts nothing may have no file: noted and not made, or just unlinked.
    fn open_current(&self, segment: u32, is_empty: bool) -> Result<(), Fault> {
        let segments = &self.session.segments;
        if is_empty {
            segments.remove(segment)?;
            return segments.open_for_writing(segment, Mode::Create, WRITE_CACHE_BYTES);
        }
        // It may be open with the small cache of one from which rows are only removed.
        segments.close(segment)?;
        segments.open_for_writing(segment, Mode::Write, WRITE_CACHE_BYTES)
    }

    fn next_segment(&self) -> u32 {
        self.segments.last_key_value().map_or(0, |(last, _)| last.saturating_add(1))
    }

    /// Ids below are known to the index, or their rows are gone. `with_group`: those that enter the
    /// index only with the next group count as unknown.
    fn floor(&self, with_group: bool) -> u64 {
        let ids = lock(&self.session.ids);
        let fills = lock(&self.session.fills);
        let mut floor = fills.keys().copied().min().unwrap_or(ids.0).min(ids.0);
        drop(fills);
        drop(ids);
        let group = self.group.iter().filter(|_| with_group).map(|nar| nar.id);
        let finishing = self.finishing.iter().map(|finishing| finishing.fill.id);
        let orphans = self.removals.iter().filter(|gone| !gone.is_known()).map(|gone| gone.id);
        for id in group.chain(finishing).chain(orphans) {
            floor = floor.min(id);
        }
        floor
    }

    /// A block of ids, reserved durably: one that was given is never given again.
    pub(super) fn reserve_ids(&mut self) -> Result<(), Fault> {
        let (next, end) = *lock(&self.session.ids);
        if next < end {
            return Ok(());
        }
        let new_end = end + IDS_A_BLOCK;
        self.commit_index(Durable::Yes, |_, txn| {
            META.insert(txn, META_NEXT_ID, &new_end.to_be_bytes())
        })?;
        lock(&self.session.ids).1 = new_end;
        Ok(())
    }

    /// A NAR whose rows have landed is held, unless it is already.
    fn finish(&mut self, finishing: Finishing) -> Result<(), Fault> {
        let Finishing { fill, finished, reply } = finishing;
        if !fill.is_open() {
            drop(reply.send(Err(Error::Abandoned)));
            return Ok(());
        }
        let held = entry_of(&self.session, finished.nar_hash)?;
        let held = held.and_then(|entry| HeldNar::new(&self.shared, &self.session, entry));
        fill.finished();
        if let Some(held) = held {
            drop(reply.send(Ok(held)));
            self.orphan(&fill);
            return Ok(());
        }
        let entry = self.entry(&fill, &finished)?;
        lock(&self.session.overlay).nars.insert(finished.nar_hash, entry.clone());
        lock(&self.session.fills).remove(&fill.id);
        self.group.push(entry.clone());
        self.waiting_since.get_or_insert_with(Instant::now);
        let held = HeldNar::new(&self.shared, &self.session, entry);
        drop(reply.send(held.ok_or(Error::Abandoned)));
        Ok(())
    }

    fn entry(&self, fill: &Fill, finished: &Finished) -> Result<Arc<Entry>, Fault> {
        let (parts, file_size) = fill.rows();
        let before = self.session.index.read(|txn| {
            let body = FILE_HASH.get(txn, finished.nar_hash.as_bytes())?;
            body.map(|body| super::records::file_hash(FILE_HASH, &body)).transpose()
        })?;
        let changed = before.is_some_and(|before| before != finished.file_hash);
        let since = Instant::now();
        if changed {
            lock(&self.session.changed).insert(fill.id, since);
        }
        let record = NarRecord {
            nar_hash: finished.nar_hash,
            nar_size: finished.nar_size,
            file_hash: finished.file_hash,
            file_size,
            origin: finished.origin,
            doomed: false,
            changed,
            last_use: self.session.tick(),
            parts,
        };
        let listing = finished.listing.clone();
        Ok(Arc::new(Entry { id: fill.id, record, since, listing }))
    }

    /// Whether what waits should be made durable now.
    pub(super) fn group_is_due(&self) -> bool {
        let Some(since) = self.waiting_since else { return false };
        self.group_bytes >= GROUP_BYTES_MAX
            || self.group.len() >= GROUP_NARS_MAX
            || since.elapsed() >= GROUP_AGE_MAX
            || self.is_quiet()
    }

    /// Makes durable all that is finished: the segment first, so that what the index calls held is
    /// on the disk whole.
    pub(super) fn commit_group(&mut self) -> Result<(), Fault> {
        self.land()?;
        self.apply_ops()?;
        self.sync_segment()?;
        let group = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        self.waiting_since = None;
        self.observe_disk();
        if self.closing {
            self.renew_notes();
        }
        if group.is_empty() && !self.index_dirty && self.changed_segments.is_empty() {
            return Ok(());
        }
        for nar in &group {
            self.count_known(&nar.record);
        }
        self.renew_notes();
        self.commit_index(Durable::Yes, |writer, txn| {
            for nar in &group {
                insert_nar(txn, nar)?;
            }
            writer.write_uses(txn)
        })?;
        let mut overlay = lock(&self.session.overlay);
        for nar in &group {
            let hash = nar.record.nar_hash;
            if overlay.nars.get(&hash).is_some_and(|entry| entry.id == nar.id) {
                overlay.nars.remove(&hash);
            }
        }
        Ok(())
    }

    /// The rows of a NAR are known to the index from now on.
    fn count_known(&mut self, record: &NarRecord) {
        for (segment, takes) in super::evict::takes_of(&record.parts, record.file_size) {
            let state = self.segments.entry(segment).or_default();
            state.unknown_bytes = state.unknown_bytes.saturating_sub(takes);
            state.record.count_bytes += takes;
            state.record.peak_bytes = state.record.peak_bytes.max(state.record.count_bytes);
            self.changed_segments.insert(segment);
        }
        self.totals.nars += 1;
    }

    /// Notes say from which id on rows may be unknown: after this group that is a later one, and
    /// none where nothing is written any more.
    fn renew_notes(&mut self) {
        let floor = self.floor(false);
        let searched: BTreeSet<u32> = self.searches.iter().map(|search| search.0).collect();
        let (current, closing) = (self.current, self.closing);
        for (segment, state) in &mut self.segments {
            if state.record.noted_from.is_none() || searched.contains(segment) {
                continue;
            }
            let written = current == Some(*segment) && !closing;
            let noted = (written || state.unknown_bytes > 0).then_some(floor);
            if state.record.noted_from != noted {
                state.record.noted_from = noted;
                self.changed_segments.insert(*segment);
            }
        }
    }

    /// One transaction of the index, with the records of the segments that changed.
    pub(super) fn commit_index(
        &mut self,
        durable: Durable,
        act: impl FnOnce(&mut Self, &WriteTransaction) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let session = self.session.clone();
        session.index.with(|database| {
            let txn = write_txn(database, durable)?;
            act(self, &txn)?;
            for segment in std::mem::take(&mut self.changed_segments) {
                let key = segment.to_be_bytes();
                match self.segments.get(&segment) {
                    Some(state) => SEGMENT.insert(&txn, &key, &state.record.to_bytes())?,
                    None => drop(SEGMENT.remove(&txn, &key)?),
                }
            }
            self.totals.use_counter = session.use_counter.load(Ordering::Relaxed);
            META.insert(&txn, META_TOTALS, &self.totals.to_bytes())?;
            Ok(txn.commit()?)
        })?;
        self.index_dirty = durable == Durable::No;
        if self.index_dirty {
            self.waiting_since.get_or_insert_with(Instant::now);
        }
        session.narinfos.store(self.totals.narinfos, Ordering::Relaxed);
        session.nars.store(self.totals.nars, Ordering::Relaxed);
        session.space.publish(&self.shared.metrics);
        Ok(())
    }

    /// Looks at the file system's free space.
    pub(super) fn observe_disk(&self) {
        if let Ok(space) = self.shared.disk.space() {
            let peak = |state: &SegmentState| state.record.peak_bytes.max(state.bytes());
            self.session.space.observe(space, self.segments.values().map(peak).sum());
        }
    }
}

fn insert_nar(txn: &WriteTransaction, nar: &Entry) -> Result<(), Fault> {
    let (id, record) = (nar.id.to_be_bytes(), &nar.record);
    NAR.insert(txn, &id, &record.to_bytes())?;
    NAR_HASH.insert(txn, record.nar_hash.as_bytes(), &id)?;
    FILE_HASH.insert(txn, record.nar_hash.as_bytes(), record.file_hash.as_bytes())?;
    let use_key = nar_use_key(record.origin, record.last_use, nar.id);
    NAR_USE.insert(txn, &use_key, &[])?;
    match &nar.listing {
        Some(listing) => LISTING.insert(txn, &id, listing),
        None => Ok(()),
    }
}
