//! What failed is told apart: a NAR whose rows are not what was written, a segment that cannot be
//! used, the disk. Each takes only its own with it.

use super::index::Index;
use super::keys::id_of_key;
use super::lock;
use super::nar::Place;
use super::records::{NarRecord, Part, record};
use super::shared::sentence;
use super::tables::{Fault, NAR};
use super::writer::{Durable, Writer};
use crate::nix::NarHash;

/// Records looked at in one slice of a sweep; what is doomed is written in one transaction.
const RECORDS_A_SWEEP: usize = 512;

/// Whether it is the system that failed, and not what the file says.
fn is_io(fault: &Fault) -> bool {
    match fault {
        Fault::Io { source, .. } => source.kind() != std::io::ErrorKind::NotFound,
        Fault::Redb(error) => {
            let by_length = |error: &std::io::Error| {
                error.kind() == std::io::ErrorKind::UnexpectedEof
                    || error.kind() == std::io::ErrorKind::InvalidData
            };
            if let redb::Error::Io(error) = &**error {
                return !by_length(error);
            }
            matches!(**error, redb::Error::PreviousIo)
        }
        Fault::Damaged(_) | Fault::Missing(_) | Fault::Refused(_) | Fault::Panicked => false,
    }
}

/// Whether the disk is full, or takes nothing any more: a segment is no worse for it, and what was
/// refused is done when there is room again.
pub(super) fn is_full(fault: &Fault) -> bool {
    let by_kind = |error: &std::io::Error| {
        use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
    };
    match fault {
        Fault::Io { source, .. } => by_kind(source),
        Fault::Redb(error) => matches!(&**error, redb::Error::Io(error) if by_kind(error)),
        Fault::Damaged(_) | Fault::Missing(_) | Fault::Refused(_) | Fault::Panicked => false,
    }
}

impl Writer {
    /// A reader could not read a row, or it is not what was written.
    pub(super) fn damaged(&mut self, place: Place, nar_hash: NarHash) -> Result<(), Fault> {
        let Place { segment, id, row } = place;
        if lock(&self.session.pins).is_doomed(id) {
            return Ok(());
        }
        // A dead disk fails the index too: then nothing is lost but the session.
        Index::probe(&self.shared.disk)?;
        let is_failed = self.segments.get(&segment).is_none_or(|state| state.record.failed);
        if !is_failed && let Err(fault) = self.session.segments.check_open(segment) {
            if is_io(&fault) && (is_full(&fault) || self.can_be_read(segment)) {
                let fault = sentence(&fault);
                tracing::warn!(segment, %fault, "segment cannot be opened now");
                return Ok(());
            }
            return self.fail_segment(segment, &fault);
        }
        match self.session.segments.read_row(segment, id, row.number) {
            Ok(_) if !is_failed => {
                tracing::warn!(segment, id, row = row.number, "row could be read at second try");
                return Ok(());
            }
            Err(fault) if !is_failed && is_full(&fault) => return Ok(()),
            Err(fault) if !is_failed && !is_io(&fault) && !matches!(fault, Fault::Damaged(_)) => {
                return self.fail_segment(segment, &fault);
            }
            Ok(_) | Err(_) => {}
        }
        self.shared.metrics.corrupt.inc();
        tracing::error!(id, nar = %nar_hash.to_nix32(), "stored NAR is damaged and withdrawn");
        self.session.scrub.was_withdrawn([nar_hash]);
        self.withdraw_id(id)
    }

    /// The rows of a NAR are as they were written, and what is in them is not the NAR.
    pub(super) fn wrong(&mut self, id: u64, nar_hash: NarHash) -> Result<(), Fault> {
        if self.is_gone(id)? {
            return Ok(());
        }
        self.shared.metrics.corrupt.inc();
        tracing::error!(id, nar = %nar_hash.to_nix32(), "stored NAR is another and withdrawn");
        lock(&self.session.pins).is_found_wrong(id);
        self.session.scrub.was_withdrawn([nar_hash]);
        self.withdraw_id(id)
    }

    /// Whether nobody is given this NAR any more.
    pub(super) fn is_gone(&self, id: u64) -> Result<bool, Fault> {
        if lock(&self.session.pins).is_doomed(id) {
            return Ok(true);
        }
        if self.group.iter().any(|nar| nar.id == id) {
            return Ok(false);
        }
        let found = self.session.sound(self.session.index.read(|txn| record(txn, id)))?;
        Ok(found.is_none_or(|record| record.doomed))
    }

    /// This NAR has to go, and not one that has its name by now.
    fn withdraw_id(&mut self, id: u64) -> Result<(), Fault> {
        self.leave_group(|nar| nar.id == id);
        let found = self.session.sound(self.session.index.read(|txn| record(txn, id)))?;
        match found.filter(|record| !record.doomed) {
            Some(record) => {
                lock(&self.session.pins).doom(id);
                self.doom(&[(id, record)])
            }
            None => Ok(()),
        }
    }

    /// The writer met a fault in a segment: the disk's, which ends the session, or the segment's.
    pub(super) fn segment_trouble(&mut self, segment: u32, fault: Fault) -> Result<(), Fault> {
        if is_io(&fault) {
            // A second time it is this place of the disk.
            if is_full(&fault) || lock(&self.shared.shunned).insert(segment) {
                return Err(fault);
            }
            if self.can_be_read(segment) {
                let fault = sentence(&fault);
                tracing::error!(segment, %fault, "segment cannot be written and takes no rows");
                self.give_up_writing(segment);
                return Ok(());
            }
        }
        self.fail_segment(segment, &fault)
    }

    /// Whether the disk gives all of a segment's file, whatever it says to writing. What is in such
    /// a segment is not lost. Looked at once: it is a GiB.
    fn can_be_read(&mut self, segment: u32) -> bool {
        if !self.readable.contains(&segment) && self.session.segments.probe(segment).is_ok() {
            self.readable.insert(segment);
        }
        self.readable.contains(&segment)
    }

    /// What was not durable in a segment is lost, and all else that is in it stays. Rows that were
    /// to be removed from it go with its file.
    fn give_up_writing(&mut self, segment: u32) {
        if self.current == Some(segment) {
            self.current = None;
            self.segment_dirty = false;
        }
        if let Err(fault) = self.session.segments.close(segment) {
            tracing::warn!(segment, fault = %sentence(&fault), "segment did not close cleanly");
        }
        self.searches.retain(|search| search.0 != segment);
        let lies = |parts: &[Part]| parts.iter().any(|part| part.segment == segment);
        let fills: Vec<_> = lock(&self.session.fills).values().cloned().collect();
        for fill in fills.iter().filter(|fill| lies(&fill.rows().0)) {
            fill.abandoned();
            self.orphan(fill);
        }
        self.leave_group(|nar| lies(&nar.record.parts));
    }

    /// A segment is lost with all that is in it; nothing else is.
    fn fail_segment(&mut self, segment: u32, fault: &Fault) -> Result<(), Fault> {
        self.shared.metrics.corrupt.inc();
        let fault = sentence(fault);
        tracing::error!(segment, %fault, "segment is damaged, its NARs are withdrawn");
        self.segments.entry(segment).or_default().record.failed = true;
        self.changed_segments.insert(segment);
        self.give_up_writing(segment);
        self.sweeps.push_back((segment, 0));
        self.commit_index(Durable::Yes, |_, _| Ok(()))
    }

    /// Dooms some of a failed segment's NARs.
    pub(super) fn sweep_slice(&mut self, segment: u32, from: u64) -> Result<(), Fault> {
        let found = self.session.index.read(|txn| {
            let rows = NAR.scan_sound(txn, &from.to_be_bytes(), RECORDS_A_SWEEP, |_| true)?;
            let rows = self.session.sound_scan(NAR, rows);
            let record = |(key, body): (Vec<u8>, Vec<u8>)| {
                let id = id_of_key(&key).ok_or(Fault::Damaged(NAR.name()))?;
                Ok((id, NarRecord::from_bytes(NAR, &body)?))
            };
            rows.into_iter().map(record).collect::<Result<Vec<_>, Fault>>()
        })?;
        let last = found.last().map(|(id, _)| *id);
        let lies = |record: &NarRecord| {
            !record.doomed && record.parts.iter().any(|part| part.segment == segment)
        };
        let chosen: Vec<_> = found.into_iter().filter(|(_, record)| lies(record)).collect();
        if !chosen.is_empty() {
            let mut pins = lock(&self.session.pins);
            for (id, _) in &chosen {
                pins.doom(*id);
            }
            drop(pins);
            let hashes = chosen.iter().map(|(_, record)| record.nar_hash);
            self.session.scrub.was_withdrawn(hashes);
            self.doom(&chosen)?;
        }
        match last {
            Some(last) => {
                self.sweeps.push_front((segment, last + 1));
                Ok(())
            }
            None => self.tidy_segment(segment),
        }
    }
}
