//! Rows land: without durability, in the segment that takes rows.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::damage::is_full;
use super::disk::Mode;
use super::fill::Fill;
use super::keys::row_key;
use super::layout::{Row, row_takes};
use super::lock;
use super::segment::WRITE_CACHE_BYTES;
use super::shared::sentence;
use super::tables::{Fault, ROWS};
use super::writer::{Durable, SegmentState, Writer, write_txn};

/// Rows of one transaction: below a quarter of the segment's cache, or redb writes them twice.
const LANDING_BYTES_MAX: usize = 4 << 20;

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
    pub(super) fn sync_segment(&mut self) -> Result<(), Fault> {
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
                let is_last = self.last_current == Some(**segment);
                let full = if is_last { SEGMENT_FULL_BYTES } else { SEGMENT_REUSE_BYTES };
                takes_rows && state.bytes() < full
            };
            // One that was left for a rest is filled up before another is begun.
            let last = self.last_current.and_then(|last| self.segments.get_key_value(&last));
            let reuse = last.filter(has_room).or_else(|| self.segments.iter().find(has_room));
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
                    self.last_current = Some(segment);
                    return Ok(segment);
                }
                // Nobody loses anything by it, so it is the disk's trouble.
                Err(fault) if is_empty || is_full(&fault) => return Err(fault),
                Err(fault) => {
                    let fault = sentence(&fault);
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
}
