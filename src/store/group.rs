//! Finishing NARs, and the group commit: segment first, then index.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redb::WriteTransaction;

use super::accepts::PushOp;
use super::command::Reply;
use super::fill::Fill;
use super::history;
use super::index::{META_NEXT_ID, META_TOTALS};
use super::keys::nar_use_key;
use super::nar::{HeldNar, entry_of};
use super::records::{NarRecord, file_hash};
use super::removal::takes_of;
use super::session::Entry;
use super::tables::{FILE_HASH, Fault, LISTING, META, NAR, NAR_HASH, NAR_USE, SEGMENT};
use super::writer::{Durable, SegmentState, Writer, write_txn};
use super::{Error, Finished, Origin, lock};

/// A group is committed at so many bytes of rows, which a power cut may cost, and of listings, which
/// wait in memory.
const GROUP_BYTES_MAX: u64 = 64 << 20;

/// A group is committed at so many NARs: their records are in memory only.
const GROUP_NARS_MAX: usize = 4096;

/// A group is committed after so long: what a power cut may cost, on a slow line.
pub(super) const GROUP_AGE_MAX: Duration = Duration::from_mins(1);

/// Ids that are reserved at a time; a crash wastes at most so many of 2^64.
const IDS_A_BLOCK: u64 = 4096;

/// A NAR whose rows have come.
pub(super) struct Finishing {
    pub(super) fill: Arc<Fill>,
    pub(super) finished: Finished,
    pub(super) reply: Reply<HeldNar>,
}

impl Writer {
    /// Ids below are known to the index, or their rows are gone. `with_group`: those that enter the
    /// index only with the next group count as unknown.
    pub(super) fn floor(&self, with_group: bool) -> u64 {
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
    pub(super) fn finish(&mut self, finishing: Finishing) -> Result<(), Fault> {
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
        // Its listing waits in memory with the record.
        let listing_len = entry.listing.as_ref().map_or(0, Bytes::len);
        self.group_bytes += u64::try_from(listing_len).unwrap_or(u64::MAX);
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
            body.map(|body| file_hash(FILE_HASH, &body)).transpose()
        });
        // What is damaged may have been another one.
        let changed = match before {
            Err(Fault::Damaged(_)) => true,
            before => before?.is_some_and(|before| before != finished.file_hash),
        };
        let since = Instant::now();
        if changed {
            lock(&self.session.changed).insert(fill.id, since);
        }
        let record = NarRecord {
            nar_hash: finished.nar_hash,
            nar_size: finished.nar_size,
            file_hash: finished.file_hash,
            file_size,
            // What waits for something is kept with the group.
            origin: finished.origin.min(Origin::Ours),
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
            || self.pushes_are_due()
            || self.is_quiet()
    }

    /// Makes durable all that is finished: the segment first, so that what the index calls held is
    /// on the disk whole.
    pub(super) fn commit_group(&mut self) -> Result<(), Fault> {
        self.land()?;
        self.apply_ops()?;
        self.sync_segment()?;
        if self.pushes.iter().any(|op| matches!(op, PushOp::Pin(_))) {
            self.count_pins()?;
        }
        let group = std::mem::take(&mut self.group);
        let pushes = std::mem::take(&mut self.pushes);
        self.urgent_since = None;
        self.group_bytes = 0;
        self.waiting_since = None;
        self.observe_disk();
        if self.closing {
            self.renew_notes();
        }
        // Where nothing is written, neither are uses; what was written is written once more at the
        // end for them.
        let has_uses = self.closing && self.index_written.is_some() && self.session.has_uses();
        // Figures are written at the end, even of a time in which all was only read.
        let has_figures = self.closing && !self.shared.history.due().is_empty();
        // How far the scrub has come is written once more at the end for its own sake: it is hours
        // of reading.
        let has_mark = self.closing && self.session.scrub.unwritten().is_some();
        if group.is_empty()
            && pushes.is_empty()
            && !self.is_index_dirty()
            && self.changed_segments.is_empty()
            && !has_uses
            && !has_figures
            && !has_mark
        {
            return Ok(());
        }
        for nar in &group {
            self.count_known(&nar.record);
        }
        self.renew_notes();
        let mut pushed = Vec::new();
        let figures = self.shared.history.due();
        let any_kept = !lock(&self.session.kept).is_nothing();
        self.commit_index(Durable::Yes, |writer, txn| {
            for nar in &group {
                insert_nar(txn, nar)?;
                if any_kept {
                    writer.settle(txn, nar.record.nar_hash, Origin::Ours)?;
                }
            }
            pushed = writer.pushes_in(txn, pushes)?;
            writer.bound_small(txn)?;
            history::write(txn, &figures)?;
            writer.write_uses(txn)
        })?;
        self.shared.history.written(figures);
        let mut overlay = lock(&self.session.overlay);
        for nar in &group {
            let hash = nar.record.nar_hash;
            if overlay.nars.get(&hash).is_some_and(|entry| entry.id == nar.id) {
                overlay.nars.remove(&hash);
            }
        }
        drop(overlay);
        self.pushed(pushed)
    }

    /// The rows of a NAR are known to the index from now on.
    fn count_known(&mut self, record: &NarRecord) {
        for (segment, takes) in takes_of(&record.parts, record.file_size) {
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
        let marked = session.scrub.unwritten();
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
            if durable == Durable::Yes {
                self.note_time(&txn, now_s())?;
            }
            if let Some(mark) = marked {
                mark.write(&txn)?;
            }
            self.totals.use_counter = session.use_counter.load(Ordering::Relaxed);
            META.insert(&txn, META_TOTALS, &self.totals.to_bytes())?;
            Ok(txn.commit()?)
        })?;
        session.scrub.is_written(marked);
        self.index_written = Some(durable);
        if self.is_index_dirty() {
            self.waiting_since.get_or_insert_with(Instant::now);
        }
        session.narinfos.store(self.totals.narinfos, Ordering::Relaxed);
        session.nars.store(self.totals.nars, Ordering::Relaxed);
        lock(&session.kept).bytes = self.totals.kept_bytes;
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

/// What the clock says, for people: nothing here goes by it.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
