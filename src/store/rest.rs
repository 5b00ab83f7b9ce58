//! Rest: after a while without a question the files are closed, since what redb keeps of them in
//! memory goes no other way. Nobody notices but by some milliseconds: segments are opened again when
//! they are asked for, and the index stays open for reading.

use std::time::Duration;

use super::lock;
use super::tables::Fault;
use super::writer::Writer;
use crate::allocator;

/// So long nobody asks before the files are closed: longer than the pauses within a build, so that
/// what closing writes is written a few times a day.
const REST_AFTER: Duration = Duration::from_mins(1);

/// Free bytes below which nothing is closed: closing writes, may make a file longer, and a file that
/// could not be closed cleanly has to be written again before it is read.
const REST_FREE_MIN_BYTES: u64 = 64 << 20;

impl Writer {
    fn rest_after(&self) -> Duration {
        self.shared.config.rest_after.unwrap_or(REST_AFTER)
    }

    /// For how long nobody has asked or read.
    fn idle_for(&self) -> Duration {
        self.last_ask.elapsed().min(self.session.unread_for())
    }

    /// When to look next whether all is quiet; readers do not say when they open a file.
    pub(super) fn until_rest(&self) -> Duration {
        let left = self.rest_after().saturating_sub(self.idle_for());
        if left.is_zero() { self.rest_after() } else { left }
    }

    /// Closes what is open when all is quiet. A file that was only read is closed without a byte
    /// written; one that was written, once until it is written again.
    pub(super) fn rest(&mut self) -> Result<(), Fault> {
        if self.idle_for() < self.rest_after() || !self.has_nothing_to_do() {
            return Ok(());
        }
        let space = self.shared.disk.space();
        if !space.is_ok_and(|space| space.free_bytes >= REST_FREE_MIN_BYTES) {
            return Ok(());
        }
        let mut any = self.session.segments.rest();
        self.current = None;
        any |= self.session.index.rest()?;
        if any {
            allocator::give_back();
        }
        Ok(())
    }

    /// No fill, nothing that waits to be durable, nothing to remove.
    fn has_nothing_to_do(&self) -> bool {
        lock(&self.session.fills).is_empty()
            && self.waiting_since.is_none()
            && !self.segment_dirty
            && !self.is_index_dirty()
            && self.landing.is_empty()
            && self.finishing.is_empty()
            && self.ops.is_empty()
            && self.pushes.is_empty()
            && self.group.is_empty()
            && self.removals.is_empty()
            && !self.has_background_work()
    }
}
