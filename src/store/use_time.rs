//! When uses were: the order of use is a counter, and now and then it is noted what the clock says
//! beside it, in a commit that happens anyway.

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata as _, WriteTransaction};

use super::records::number;
use super::tables::{Fault, USE_TIME};
use super::writer::Writer;

/// How far apart notes are, in seconds: nobody wants to know it to the minute.
const NOTE_EVERY_S: u64 = 3600;

/// Notes that are kept: those of half a year of a store that is always busy, 200 KiB.
const NOTES_MAX: u64 = 4096;

/// 2026: a clock that says less has not been set yet.
const CLOCK_MIN_S: u64 = 1_767_225_600;

impl Writer {
    /// Notes the time in a commit, when it is time. Nothing is noted of a clock that went back.
    pub(super) fn note_time(&mut self, txn: &WriteTransaction, now_s: u64) -> Result<(), Fault> {
        let before = match self.noted_s {
            Some(noted) => noted,
            None => last_note(txn)?,
        };
        self.noted_s = Some(before);
        if now_s < CLOCK_MIN_S.max(before.saturating_add(NOTE_EVERY_S)) {
            return Ok(());
        }
        let counter = self.session.use_counter.load(std::sync::atomic::Ordering::Relaxed);
        USE_TIME.insert(txn, &counter.to_be_bytes(), &now_s.to_be_bytes())?;
        self.noted_s = Some(now_s);
        let mut notes = USE_TIME.open_in(txn)?;
        while notes.len()? > NOTES_MAX {
            drop(notes.pop_first()?);
        }
        Ok(())
    }
}

fn last_note(txn: &WriteTransaction) -> Result<u64, Fault> {
    let notes = USE_TIME.open_in(txn)?;
    let Some((key, value)) = notes.last()? else { return Ok(0) };
    let body = USE_TIME.unseal(key.value(), value.value());
    Ok(body.and_then(|body| number(USE_TIME, body)).unwrap_or(0))
}

/// Since when, at the latest, something has not been used whose last use had this number: the first
/// note behind it.
pub(super) fn unused_since(txn: &ReadTransaction, last_use: u64) -> Result<Option<u64>, Fault> {
    let from = last_use.saturating_add(1).to_be_bytes();
    let (notes, _) = USE_TIME.scan_sound(txn, &from, 1, |_| true)?;
    Ok(notes.first().and_then(|(_, body)| number(USE_TIME, body).ok()))
}
