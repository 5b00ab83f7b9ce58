//! The writer mends the index while the store is open: readers are not disturbed, and what waits to
//! be written is not lost.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use super::kept::Kept;
use super::lock;
use super::mend::{Mended, mend};
use super::records::Part;
use super::removal::takes_of;
use super::tables::Fault;
use super::writer::{Durable, SegmentState, Writer};

/// The whole index is read to mend it, so it is done at most so often: a row that is damaged is
/// absent meanwhile.
const MEND_PAUSE: Duration = Duration::from_mins(1);

impl Writer {
    pub(super) fn is_mend_due(&self) -> bool {
        self.session.is_hurt() && self.mended.is_none_or(|then| then.elapsed() >= MEND_PAUSE)
    }

    /// Mends the index when somebody met a damaged row.
    pub(super) fn mend_if_due(&mut self) -> Result<(), Fault> {
        if !self.is_mend_due() {
            return Ok(());
        }
        self.session.is_looked_at();
        self.mended = Some(Instant::now());
        let mut records =
            self.segments.iter().map(|(segment, state)| (*segment, state.record)).collect();
        let mut found = Mended::default();
        self.commit_index(Durable::Yes, |writer, txn| {
            let mut known = writer.known;
            known.next_id = Some(lock(&writer.session.ids).1);
            found = mend(txn, &known, &mut records, &[])?;
            writer.totals = found.totals;
            Ok(())
        })?;
        let counted = self.session.index.read(Kept::load)?;
        let mut kept = lock(&self.session.kept);
        kept.targets = counted.targets;
        kept.pinned = counted.pinned;
        drop(kept);
        self.pins_counted = None;
        // The one that was met may have gone by itself.
        self.shared.metrics.corrupt.inc_by(found.rows.max(1));
        tracing::warn!(rows = found.rows, "index is mended");
        let before = self.bytes_of_segments();
        for (segment, record) in records {
            self.segments.entry(segment).or_default().record = record;
        }
        self.take_stock(&found);
        self.session.space.corrected(before, self.bytes_of_segments());
        let end = lock(&self.session.ids).1;
        for (segment, state) in &self.segments {
            if state.record.failed {
                self.sweeps.push_back((*segment, 0));
                continue;
            }
            let lost = found.lost.iter().map(|(from, to)| (*segment, *from, end.min(*to)));
            self.searches.extend(lost);
        }
        Ok(())
    }

    fn bytes_of_segments(&self) -> u64 {
        self.segments.values().map(SegmentState::bytes).sum()
    }

    /// What the index does not know of segments, counted anew.
    fn take_stock(&mut self, found: &Mended) {
        let mut unknown = BTreeMap::<u32, u64>::new();
        let mut gone = BTreeMap::<u32, u64>::new();
        let add = |counts: &mut BTreeMap<u32, u64>, parts: &[Part], file_size| {
            for (segment, takes) in takes_of(parts, file_size) {
                *counts.entry(segment).or_default() += takes;
            }
        };
        for removal in &mut self.removals {
            // Without a record its rows are like those of a fill that came to nothing.
            removal.known = removal.known.take().filter(|_| !found.has_lost(removal.id));
            match &removal.known {
                Some(known) => {
                    add(&mut gone, known, removal.file_size);
                    for (segment, takes) in takes_of(&removal.left, removal.file_size) {
                        let gone = gone.entry(segment).or_default();
                        *gone = gone.saturating_sub(takes);
                    }
                }
                None => add(&mut unknown, &removal.left, removal.file_size),
            }
        }
        for fill in lock(&self.session.fills).values() {
            let (parts, len) = fill.rows();
            add(&mut unknown, &parts, len);
        }
        for nar in &self.group {
            add(&mut unknown, &nar.record.parts, nar.record.file_size);
        }
        for (segment, state) in &mut self.segments {
            state.unknown_bytes = unknown.get(segment).copied().unwrap_or(0);
            state.gone_bytes = gone.get(segment).copied().unwrap_or(0);
        }
    }

    /// Ids whose rows are in segments for a good reason, though the index does not know them.
    pub(super) fn ids_alive(&self) -> HashSet<u64> {
        let mut alive: HashSet<u64> = lock(&self.session.fills).keys().copied().collect();
        alive.extend(self.group.iter().map(|nar| nar.id));
        alive.extend(self.finishing.iter().map(|finishing| finishing.fill.id));
        alive.extend(self.removals.iter().map(|removal| removal.id));
        alive
    }
}
