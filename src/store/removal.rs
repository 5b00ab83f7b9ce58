//! How rows go: those of NARs that are to go, and what a crash or an abandoned fill left. The order
//! is the same for all: doomed durably in the index, then the rows, then the record.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadableTable, WriteTransaction};

use super::disk::Mode;
use super::fill::Fill;
use super::keys::{id_of_row, row_key};
use super::layout::{row_takes, rows_between};
use super::lock;
use super::records::{NarRecord, Part};
use super::session::{Entry, Session};
use super::shared::sentence;
use super::tables::{DOOMED, Fault, LISTING, NAR, ROWS};
use super::writer::{Durable, Writer, write_txn};

/// Rows removed in one transaction: redb reads each, and the writer has others to serve.
const ROWS_A_SLICE: u32 = 64;

/// The same on a disk that is nearly full, where freed pages must soon be usable again: 4 MiB.
const ROWS_A_TIGHT_SLICE: u32 = 16;

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
    /// A segment that holds rows which may be removed now.
    pub(super) fn ready_segment(&self) -> Option<u32> {
        if self.removals.is_empty() {
            return None;
        }
        let pins = lock(&self.session.pins);
        let ready = self.removals.iter().find(|removal| !pins.is_read(removal.id))?;
        Some(ready.left.first().map_or(u32::MAX, |part| part.segment))
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
    pub(super) fn remove_slice(&mut self, segment: u32) -> Result<(), Fault> {
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
        let emptied = self.forget_removed()?;
        self.tidy_segment(segment)?;
        // A NAR that went on in the next segment counts in both until its last row is gone.
        emptied.into_iter().try_for_each(|segment| self.tidy_segment(segment))
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

    /// Records whose rows are gone leave the index, and the count with them. Returns the segments in
    /// which nothing counts any more.
    fn forget_removed(&mut self) -> Result<BTreeSet<u32>, Fault> {
        let done: Vec<Removal> =
            self.removals.iter().filter(|removal| removal.left.is_empty()).cloned().collect();
        let mut emptied = BTreeSet::new();
        if done.is_empty() {
            return Ok(emptied);
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
                if state.record.count_bytes == 0 {
                    emptied.insert(segment);
                }
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
        })?;
        Ok(emptied)
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
    pub(super) fn search_slice(&mut self, segment: u32, from: u64, end: u64) -> Result<(), Fault> {
        let session = self.session.clone();
        let alive = self.ids_alive();
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
                let known = is_known(&session, id)? || alive.contains(&id);
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

/// Whether the index knows a NAR. One whose record is damaged is known until that is mended.
fn is_known(session: &Session, id: u64) -> Result<bool, Fault> {
    let known = session.index.read(|txn| NAR.get(txn, &id.to_be_bytes()));
    let known = session.sound(known.map(|record| Some(record.is_some())))?;
    Ok(known.unwrap_or(true))
}
