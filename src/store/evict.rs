//! What has to go: eviction, withdrawal, and what a crash or an abandoned fill left. The order is
//! the same for all: doomed durably in the index, then the rows, then the record.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redb::{ReadableTable, WriteTransaction};

use super::disk::Mode;
use super::fill::{Fill, Room};
use super::index::Index;
use super::layout::{row_takes, rows_between};
use super::records::{NarRecord, Part, id_of_key, id_of_row, nar_use_key, number, row_key};
use super::session::{Entry, Used, sentence};
use super::tables::{DOOMED, Fault, LISTING, NAR, NAR_HASH, NAR_USE, ROWS};
use super::writer::{Durable, Reply, Writer, write_txn};
use super::{Error, Origin, lock};
use crate::nix::NarHash;

/// Rows removed in one transaction: redb reads each, and the writer has others to serve.
const ROWS_A_SLICE: u32 = 64;

/// The same on a disk that is nearly full, where freed pages must soon be usable again: 4 MiB.
const ROWS_A_TIGHT_SLICE: u32 = 16;

/// NARs doomed in one transaction.
const NARS_A_SLICE: usize = 128;

/// When nothing could be evicted, it is tried again after this: readers may have left.
const STUCK: Duration = Duration::from_secs(2);

/// Rows that are to go.
#[derive(Debug, Clone)]
pub(super) struct Removal {
    pub(super) id: u64,
    pub(super) file_size: u64,
    /// All of its parts, when the index knows it: they leave the count together with the record.
    pub(super) known: Option<Vec<Part>>,
    /// What is left to remove.
    pub(super) left: Vec<Part>,
}

/// Somebody waits for room.
pub(super) struct Waiting {
    pub(super) bytes: u64,
    pub(super) reply: Reply<Room>,
}

impl Removal {
    pub(super) fn known(id: u64, record: &NarRecord) -> Self {
        let known = Some(record.parts.clone());
        Self { id, file_size: record.file_size, known, left: record.parts.clone() }
    }

    pub(super) fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// Takes up to `rows_max` rows in `segment` off what is left.
    fn take(&mut self, segment: u32, rows_max: u32) -> Vec<Part> {
        let mut taken = Vec::new();
        let mut room = rows_max;
        for part in self.left.iter_mut().filter(|part| part.segment == segment) {
            let rows = part.rows.min(room);
            taken.push(Part { rows, ..*part });
            part.first_row += rows;
            part.rows -= rows;
            room -= rows;
        }
        self.left.retain(|part| part.rows > 0);
        taken
    }
}

/// Bytes that parts take, by segment.
pub(super) fn takes_of(parts: &[Part], file_size: u64) -> BTreeMap<u32, u64> {
    let mut takes = BTreeMap::new();
    for part in parts {
        let rows = rows_between(part.first_row, part.rows, file_size);
        *takes.entry(part.segment).or_default() += rows.map(|row| row_takes(row.body)).sum::<u64>();
    }
    takes
}

impl Writer {
    pub(super) fn has_background_work(&self) -> bool {
        !self.room.is_empty()
            || !self.searches.is_empty()
            || !self.sweeps.is_empty()
            || self.ready_segment().is_some()
            || (self.session.space.excess() > 0 && !self.is_stuck())
    }

    fn is_stuck(&self) -> bool {
        self.stuck_since.is_some_and(|since| since.elapsed() < STUCK)
    }

    /// One slice of what can wait.
    pub(super) fn in_the_background(&mut self) -> Result<(), Fault> {
        self.give_room();
        if let Some(segment) = self.ready_segment() {
            self.remove_slice(segment)?;
            self.give_room();
        } else if !self.room.is_empty() || (self.session.space.excess() > 0 && !self.is_stuck()) {
            self.evict_slice()?;
        } else if let Some((segment, from)) = self.sweeps.pop_front() {
            self.sweep_slice(segment, from)?;
        } else if let Some((segment, from, end)) = self.searches.pop_front() {
            self.search_slice(segment, from, end)?;
        }
        Ok(())
    }

    /// Those who wait for room get it in the order in which they came.
    fn give_room(&mut self) {
        self.room.retain(|waiting| !waiting.reply.is_closed());
        while let Some(waiting) = self.room.front() {
            if !self.session.space.try_reserve(waiting.bytes) {
                return;
            }
            let room = Room::new(self.session.clone(), waiting.bytes);
            if let Some(waiting) = self.room.pop_front() {
                // What nobody takes gives itself back.
                drop(waiting.reply.send(Ok(room)));
            }
        }
    }

    /// A segment that holds rows which may be removed now.
    fn ready_segment(&self) -> Option<u32> {
        if self.removals.is_empty() {
            return None;
        }
        let pins = lock(&self.session.pins);
        let ready = self.removals.iter().find(|removal| !pins.is_read(removal.id))?;
        Some(ready.left.first().map_or(u32::MAX, |part| part.segment))
    }

    /// Dooms the least recently used NARs that nobody reads.
    fn evict_slice(&mut self) -> Result<(), Fault> {
        let wanted = self.room.front().map_or(0, |waiting| waiting.bytes);
        let wanted = wanted.max(self.session.space.excess());
        let (chosen, renewed) = self.choose(wanted)?;
        if renewed && chosen.is_empty() {
            return Ok(());
        }
        if !chosen.is_empty() {
            self.stuck_since = None;
            self.shared.metrics.evicted.inc_by(u64::try_from(chosen.len()).unwrap_or(0));
            return self.doom(&chosen);
        }
        if !self.group.is_empty() {
            return self.commit_group();
        }
        self.stuck_since = Some(Instant::now());
        if let Some(waiting) = self.room.pop_front() {
            let wanted_bytes = waiting.bytes;
            drop(waiting.reply.send(Err(Error::NoRoom { wanted_bytes })));
        }
        Ok(())
    }

    /// What goes next; and whether some turned out to be used lately, which is written down.
    fn choose(&mut self, wanted: u64) -> Result<(Vec<(u64, NarRecord)>, bool), Fault> {
        let session = self.session.clone();
        let mut chosen = Vec::new();
        let mut renewed = Vec::new();
        session.index.read(|txn| {
            let mut bytes = 0;
            for entry in NAR_USE.open_for_read(txn)?.range::<&[u8]>(..)? {
                let (key, _) = entry?;
                if bytes >= wanted || chosen.len() + renewed.len() >= NARS_A_SLICE {
                    break;
                }
                let Some(id) = id_of_key(key.value()) else { continue };
                if session.unwritten_use(&Used::Nar(id)).is_some() {
                    renewed.push(id);
                    continue;
                }
                let Some(body) = NAR.get(txn, &id.to_be_bytes())? else { continue };
                let record = NarRecord::from_bytes(NAR, &body)?;
                // What only we have goes after all that upstream has, the group's NARs too.
                if record.origin == Origin::Ours && !self.group.is_empty() {
                    break;
                }
                if lock(&session.pins).doom_unread(id) {
                    bytes += takes_of(&record.parts, record.file_size).values().sum::<u64>();
                    chosen.push((id, record));
                }
            }
            Ok(())
        })?;
        if !renewed.is_empty() {
            self.commit_index(Durable::No, Self::write_uses)?;
        }
        Ok((chosen, !renewed.is_empty()))
    }

    /// Nobody is given these NARs any more, not even after a crash; their rows go next.
    pub(super) fn doom(&mut self, chosen: &[(u64, NarRecord)]) -> Result<(), Fault> {
        self.commit_index(Durable::Yes, |writer, txn| {
            for (id, record) in chosen {
                doom_in(txn, *id, record)?;
            }
            writer.totals.nars -= u64::try_from(chosen.len()).unwrap_or(0).min(writer.totals.nars);
            Ok(())
        })?;
        let removals = chosen.iter().map(|(id, record)| Removal::known(*id, record));
        self.removals.extend(removals);
        Ok(())
    }

    /// A NAR has to go, whoever reads it; they are not disturbed.
    pub(super) fn withdraw(&mut self, nar_hash: NarHash) -> Result<(), Fault> {
        self.land()?;
        self.leave_group(|nar| nar.record.nar_hash == nar_hash);
        let found = held_in(&self.session.index, nar_hash)?;
        if let Some((id, record)) = found {
            lock(&self.session.pins).doom(id);
            self.doom(&[(id, record)])?;
        }
        Ok(())
    }

    /// NARs of the group are not held after all.
    pub(super) fn leave_group(&mut self, goes: impl Fn(&Entry) -> bool) {
        let gone: Vec<_> = self.group.extract_if(.., |nar| goes(nar)).collect();
        for nar in gone {
            let (id, record) = (nar.id, &nar.record);
            let mut overlay = lock(&self.session.overlay);
            if overlay.nars.get(&record.nar_hash).is_some_and(|there| there.id == id) {
                overlay.nars.remove(&record.nar_hash);
            }
            drop(overlay);
            lock(&self.session.pins).doom(id);
            let left = record.parts.clone();
            let file_size = record.file_size;
            self.removals.push_back(Removal { id, file_size, known: None, left });
        }
    }

    /// The rows of a fill that came to nothing go when its followers have left.
    pub(super) fn orphan(&mut self, fill: &Fill) {
        lock(&self.session.fills).remove(&fill.id);
        let (left, file_size) = fill.rows();
        if !left.is_empty() {
            lock(&self.session.pins).doom(fill.id);
            self.removals.push_back(Removal { id: fill.id, file_size, known: None, left });
        }
    }

    /// Removes some rows of one segment in one commit, which is durable before a record goes.
    fn remove_slice(&mut self, segment: u32) -> Result<(), Fault> {
        let is_tight = self.session.space.is_disk_tight();
        let mut room = if is_tight { ROWS_A_TIGHT_SLICE } else { ROWS_A_SLICE };
        let mut rows = Vec::new();
        let session = self.session.clone();
        let pins = lock(&session.pins);
        for removal in self.removals.iter_mut().filter(|removal| !pins.is_read(removal.id)) {
            for part in removal.take(segment, room) {
                room -= part.rows;
                rows.push((removal.id, removal.file_size, removal.is_known(), part));
            }
        }
        drop(pins);
        self.remove_rows(segment, &rows)?;
        for (_, file_size, known, part) in &rows {
            let takes = takes_of(std::slice::from_ref(part), *file_size).values().sum();
            let state = self.segments.entry(segment).or_default();
            if *known {
                state.gone_bytes += takes;
            } else {
                state.unknown_bytes = state.unknown_bytes.saturating_sub(takes);
            }
            self.session.space.free(takes);
        }
        self.forget_removed()?;
        self.tidy_segment(segment)
    }

    fn remove_rows(&mut self, segment: u32, rows: &[(u64, u64, bool, Part)]) -> Result<(), Fault> {
        let failed = self.segments.get(&segment).is_some_and(|state| state.record.failed);
        if rows.is_empty() || failed {
            return Ok(());
        }
        let keys = rows.iter().flat_map(|(id, _, _, part)| {
            (part.first_row..part.first_row + part.rows).map(|row| row_key(*id, row))
        });
        let removed = self.in_segment(segment, |txn| {
            let mut table = ROWS.open_in(txn)?;
            for key in keys {
                table.remove(key.as_slice())?;
            }
            Ok(())
        });
        // redb uses a freed page again only after one more commit. On a disk that is nearly full the
        // room of these rows must be there before somebody is let in for it.
        let removed = removed.and_then(|()| {
            if self.session.space.is_disk_tight() {
                self.in_segment(segment, |_| Ok(()))?;
            }
            Ok(())
        });
        // Where the segment failed, they go with its file.
        removed.or_else(|fault| self.segment_trouble(segment, fault))
    }

    /// A durable transaction in a segment, which need not be the one that takes rows.
    fn in_segment(
        &self,
        segment: u32,
        act: impl FnOnce(&WriteTransaction) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let segments = &self.session.segments;
        segments.open_to_remove(segment, Mode::Write)?;
        segments.write(segment, |database| {
            let txn = write_txn(database, Durable::Yes)?;
            act(&txn)?;
            Ok(txn.commit()?)
        })
    }

    /// Records whose rows are gone leave the index, and the count with them.
    fn forget_removed(&mut self) -> Result<(), Fault> {
        let done: Vec<Removal> =
            self.removals.iter().filter(|removal| removal.left.is_empty()).cloned().collect();
        if done.is_empty() {
            return Ok(());
        }
        self.removals.retain(|removal| !removal.left.is_empty());
        for removal in &done {
            lock(&self.session.pins).forget(removal.id);
            lock(&self.session.changed).remove(&removal.id);
            for (segment, takes) in
                takes_of(removal.known.as_deref().unwrap_or_default(), removal.file_size)
            {
                let state = self.segments.entry(segment).or_default();
                state.record.count_bytes = state.record.count_bytes.saturating_sub(takes);
                state.gone_bytes = state.gone_bytes.saturating_sub(takes);
                self.changed_segments.insert(segment);
            }
        }
        self.commit_index(Durable::No, |_, txn| {
            for removal in done.iter().filter(|removal| removal.is_known()) {
                let id = removal.id.to_be_bytes();
                NAR.remove(txn, &id)?;
                LISTING.remove(txn, &id)?;
                DOOMED.remove(txn, &id)?;
            }
            Ok(())
        })
    }

    /// A segment that is not needed for more is closed, an empty one unlinked.
    pub(super) fn tidy_segment(&mut self, segment: u32) -> Result<(), Fault> {
        if self.current == Some(segment) || self.ready_segment() == Some(segment) {
            return Ok(());
        }
        let Some(state) = self.segments.get(&segment) else { return Ok(()) };
        if state.bytes() > 0 || state.record.count_bytes > 0 {
            if let Err(fault) = self.session.segments.close(segment) {
                tracing::warn!(segment, fault = %sentence(&fault), "segment did not close cleanly");
            }
            return Ok(());
        }
        self.session.segments.remove(segment)?;
        self.segments.remove(&segment);
        self.changed_segments.insert(segment);
        self.commit_index(Durable::No, |_, _| Ok(()))
    }

    /// Removes rows of ids in `from..end` that the index does not know: a crash left them.
    fn search_slice(&mut self, segment: u32, from: u64, end: u64) -> Result<(), Fault> {
        let session = self.session.clone();
        let mut next = None;
        let searched = self.in_segment(segment, |txn| {
            let mut table = ROWS.open_in(txn)?;
            let mut from = from;
            let mut seen = 0;
            while seen < ROWS_A_SLICE {
                seen += 1;
                let start = row_key(from, 0);
                let found = table.range::<&[u8]>(start.as_slice()..)?.next().transpose()?;
                let Some(key) = found.map(|(key, _)| key.value().to_vec()) else { return Ok(()) };
                let Some(id) = id_of_row(&key).filter(|id| *id < end) else { return Ok(()) };
                let known = session.index.read(|txn| NAR.get(txn, &id.to_be_bytes()))?.is_some();
                from = if known { id + 1 } else { id };
                if !known {
                    table.remove(key.as_slice())?;
                }
            }
            next = Some(from);
            Ok(())
        });
        if let Err(fault) = searched {
            return self.segment_trouble(segment, fault);
        }
        match next {
            Some(from) => self.searches.push_front((segment, from, end)),
            None => self.tidy_segment(segment)?,
        }
        Ok(())
    }
}

fn doom_in(txn: &WriteTransaction, id: u64, record: &NarRecord) -> Result<(), Fault> {
    let key = id.to_be_bytes();
    // The use may have been written since the record was read.
    let current = NAR.get_in(txn, &key)?.map(|body| NarRecord::from_bytes(NAR, &body));
    let current = current.transpose()?.unwrap_or_else(|| record.clone());
    NAR_USE.remove(txn, &nar_use_key(current.origin, current.last_use, id))?;
    NAR.insert(txn, &key, &NarRecord { doomed: true, ..current }.to_bytes())?;
    DOOMED.insert(txn, &key, &[])?;
    let held = NAR_HASH.get_in(txn, record.nar_hash.as_bytes())?;
    if held.is_some_and(|held| held == key) {
        NAR_HASH.remove(txn, record.nar_hash.as_bytes())?;
    }
    Ok(())
}

fn held_in(index: &Index, nar_hash: NarHash) -> Result<Option<(u64, NarRecord)>, Fault> {
    index.read(|txn| {
        let Some(id) = NAR_HASH.get(txn, nar_hash.as_bytes())? else { return Ok(None) };
        let id = number(NAR_HASH, &id)?;
        let record = NAR.get(txn, &id.to_be_bytes())?;
        let record = record.map(|body| NarRecord::from_bytes(NAR, &body)).transpose()?;
        Ok(record.map(|record| (id, record)))
    })
}
