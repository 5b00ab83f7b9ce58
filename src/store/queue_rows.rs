//! Rows of the queue: what waits at which target, in the order in which it was accepted.

use std::collections::BTreeMap;

use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use super::keys::SmallKey;
use super::records::Reader;
use super::session::Session;
use super::tables::{Fault, QUEUE, QUEUE_SEQ, TARGET};
use super::writer::Writer;
use super::{Origin, QueueRow, Queued, TargetQueue, lock};
use crate::nix::StorePathHash;

/// A target as it is counted in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Target {
    pub(super) url: String,
    waiting: u64,
    waiting_bytes: u64,
    lost: u64,
    /// Of the oldest that waits: its place in the order, and when it was accepted.
    oldest: Option<(u64, u64)>,
}

impl Target {
    pub(super) fn new(url: String) -> Self {
        Self { url, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0 && self.lost == 0
    }

    pub(super) fn count(&mut self, row: Row) {
        if row.lost {
            self.lost += 1;
            return;
        }
        self.waiting += 1;
        self.waiting_bytes += row.len_bytes;
        if self.oldest.is_none_or(|(seq, _)| row.seq < seq) {
            self.oldest = Some((row.seq, row.queued_at_s));
        }
    }

    /// Says whether it was the oldest.
    fn uncount(&mut self, row: Row) -> bool {
        if row.lost {
            self.lost = self.lost.saturating_sub(1);
            return false;
        }
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting_bytes = self.waiting_bytes.saturating_sub(row.len_bytes);
        self.oldest.is_some_and(|(seq, _)| row.seq == seq)
    }

    pub(super) fn figures(&self) -> TargetQueue {
        TargetQueue {
            target: self.url.clone(),
            waiting: self.waiting,
            waiting_bytes: self.waiting_bytes,
            oldest_at_s: self.oldest.map(|(_, at_s)| at_s),
            lost: self.lost,
        }
    }
}

/// The body of a row in `queue-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) seq: u64,
    pub(super) queued_at_s: u64,
    pub(super) len_bytes: u64,
    pub(super) lost: bool,
}

impl Row {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let numbers = [self.seq, self.queued_at_s, self.len_bytes];
        let mut out: Vec<u8> = numbers.into_iter().flat_map(u64::to_be_bytes).collect();
        out.push(self.lost.into());
        out
    }

    pub(super) fn from_bytes(body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(QUEUE, body);
        let (seq, queued_at_s, len_bytes) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let lost = reader.flag()?;
        reader.end()?;
        Ok(Self { seq, queued_at_s, len_bytes, lost })
    }

    /// A row behind all others.
    pub(super) fn next(next_seq: &mut u64, len_bytes: u64, queued_at_s: u64) -> Self {
        // Callers ask for rows behind a number: the first one is 1.
        let seq = (*next_seq).max(1);
        *next_seq = seq + 1;
        Self { seq, queued_at_s, len_bytes, lost: false }
    }

    /// As a write transaction sees it.
    pub(super) fn of(
        txn: &WriteTransaction,
        target: u32,
        what: &Queued,
    ) -> Result<Option<Self>, Fault> {
        let body = QUEUE.get_in(txn, &row_key(target, what))?;
        body.map(|body| Self::from_bytes(&body)).transpose()
    }

    fn shown(self, what: Queued) -> QueueRow {
        let Self { seq, queued_at_s, len_bytes, lost } = self;
        QueueRow { what, seq, queued_at_s, len_bytes, lost }
    }
}

impl From<&Queued> for SmallKey {
    fn from(what: &Queued) -> Self {
        match what {
            Queued::Path(key) => Self::Narinfo(*key),
            Queued::Document(name) => Self::Document(name.clone()),
        }
    }
}

/// What is queued, in keys and in `queue-seq-1`: its kind, as in `small-use-1`, and its key.
pub(super) fn name_of(what: &Queued) -> Vec<u8> {
    match what {
        Queued::Path(key) => [&[0], key.as_bytes().as_slice()].concat(),
        Queued::Document(name) => [&[1], name.as_bytes()].concat(),
    }
}

pub(super) fn what_of(name: &[u8]) -> Result<Queued, Fault> {
    let mut reader = Reader::new(QUEUE_SEQ, name);
    match reader.u8()? {
        0 => {
            let key = StorePathHash::from_bytes(reader.array()?);
            reader.end()?;
            Ok(Queued::Path(key))
        }
        1 => String::from_utf8(reader.rest.to_vec())
            .map(Queued::Document)
            .map_err(|_| reader.damaged()),
        _ => Err(reader.damaged()),
    }
}

/// The key of `queue-1`.
pub(super) fn row_key(target: u32, what: &Queued) -> Vec<u8> {
    [target.to_be_bytes().as_slice(), &name_of(what)].concat()
}

/// The key of `queue-seq-1`.
pub(super) fn seq_key(target: u32, seq: u64) -> Vec<u8> {
    [target.to_be_bytes().as_slice(), &seq.to_be_bytes()].concat()
}

/// Counts the rows of each target. Says whether the two tables of the queue disagree, or hold a row
/// that is damaged.
pub(super) fn load(
    txn: &ReadTransaction,
    targets: &mut BTreeMap<u32, Target>,
) -> Result<bool, Fault> {
    let mut is_damaged = false;
    // Number and mix of the places in the order, by target.
    let mut seen = BTreeMap::<u32, [(u64, u64); 2]>::new();
    for entry in QUEUE.open_for_read(txn)?.range::<&[u8]>(..)? {
        let (key, value) = entry?;
        let row = QUEUE.unseal(key.value(), value.value()).and_then(Row::from_bytes);
        let (Some((id, _)), Ok(row)) = (key.value().split_first_chunk(), row) else {
            is_damaged = true;
            continue;
        };
        let id = u32::from_be_bytes(*id);
        targets.entry(id).or_default().count(row);
        let [rows, _] = seen.entry(id).or_default();
        *rows = (rows.0 + 1, rows.1 ^ row.seq);
    }
    for entry in QUEUE_SEQ.open_for_read(txn)?.range::<&[u8]>(..)? {
        let (key, name) = entry?;
        let what = QUEUE_SEQ.unseal(key.value(), name.value()).and_then(what_of);
        let (Some((id, seq)), Ok(_)) = (key.value().split_first_chunk(), what) else {
            is_damaged = true;
            continue;
        };
        let seq = seq.first_chunk().map_or(0, |seq| u64::from_be_bytes(*seq));
        let [_, places] = seen.entry(u32::from_be_bytes(*id)).or_default();
        *places = (places.0 + 1, places.1 ^ seq);
    }
    Ok(is_damaged || seen.values().any(|[rows, places]| rows != places))
}

/// Rows of a target in their order, those behind `after_seq`.
pub(super) fn rows(
    session: &Session,
    target: &str,
    after_seq: u64,
    count_max: usize,
) -> Result<Vec<QueueRow>, Fault> {
    let Some(id) = lock(&session.kept).target_id(target) else { return Ok(Vec::new()) };
    let (from, end) = (seq_key(id, after_seq.saturating_add(1)), seq_key(id, u64::MAX));
    session.index.read(|txn| {
        let mut found = Vec::new();
        let rows = QUEUE.open_for_read(txn)?;
        for entry in QUEUE_SEQ.open_for_read(txn)?.range(from.as_slice()..end.as_slice())? {
            if found.len() >= count_max {
                break;
            }
            let (key, name) = entry?;
            let what = QUEUE_SEQ.unseal(key.value(), name.value()).and_then(what_of);
            let Some(what) = session.sound(what.map(Some))? else { continue };
            let key_of_row = row_key(id, &what);
            let Some(value) = rows.get(key_of_row.as_slice())? else { continue };
            let row = QUEUE.unseal(&key_of_row, value.value()).and_then(Row::from_bytes);
            let row = session.sound(row.map(Some))?;
            if let Some(row) = row.filter(|row| key.value() == seq_key(id, row.seq)) {
                found.push(row.shown(what));
            }
        }
        Ok(found)
    })
}

/// The row of one thing at a target.
pub(super) fn row(
    session: &Session,
    target: &str,
    what: Queued,
) -> Result<Option<QueueRow>, Fault> {
    let Some(id) = lock(&session.kept).target_id(target) else { return Ok(None) };
    let body = session.index.read(|txn| QUEUE.get(txn, &row_key(id, &what)))?;
    let row = body.map(|body| Row::from_bytes(&body)).transpose()?;
    Ok(row.map(|row| row.shown(what)))
}

/// Whether something waits at any target.
pub(super) fn waits(session: &Session, what: &Queued) -> Result<bool, Fault> {
    let busy: Vec<String> = {
        let kept = lock(&session.kept);
        kept.queues().into_iter().map(|queue| queue.target).collect()
    };
    for target in busy {
        if row(session, &target, what.clone())?.is_some_and(|row| !row.lost) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Writer {
    /// Queues something at a target, behind all that is there.
    pub(super) fn queue_in(
        &mut self,
        txn: &WriteTransaction,
        target: &str,
        what: &Queued,
        (len_bytes, now_s): (u64, u64),
    ) -> Result<(), Fault> {
        let id = self.target_in(txn, target)?;
        if let Some(before) = self.session.sound(Row::of(txn, id, what))? {
            self.remove_row(txn, id, what, before)?;
        }
        let row = Row::next(&mut self.totals.next_seq, len_bytes, now_s);
        QUEUE.insert(txn, &row_key(id, what), &row.to_bytes())?;
        QUEUE_SEQ.insert(txn, &seq_key(id, row.seq), &name_of(what))?;
        lock(&self.session.kept).targets.entry(id).or_default().count(row);
        Ok(())
    }

    /// The id of a target, which may be new.
    fn target_in(&mut self, txn: &WriteTransaction, url: &str) -> Result<u32, Fault> {
        let mut kept = lock(&self.session.kept);
        if let Some(id) = kept.target_id(url) {
            return Ok(id);
        }
        let id = kept.targets.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
        kept.targets.insert(id, Target::new(url.to_owned()));
        drop(kept);
        for key in target_keys(id) {
            TARGET.insert(txn, &key, url.as_bytes())?;
        }
        Ok(id)
    }

    pub(super) fn remove_row(
        &self,
        txn: &WriteTransaction,
        target: u32,
        what: &Queued,
        row: Row,
    ) -> Result<(), Fault> {
        QUEUE.remove(txn, &row_key(target, what))?;
        QUEUE_SEQ.remove(txn, &seq_key(target, row.seq))?;
        self.uncount(txn, target, row)
    }

    /// A row does not count any more; the next one that waits may be the oldest now.
    fn uncount(&self, txn: &WriteTransaction, target: u32, row: Row) -> Result<(), Fault> {
        let was_oldest = {
            let mut kept = lock(&self.session.kept);
            kept.targets.entry(target).or_default().uncount(row)
        };
        if was_oldest {
            let next = self.session.sound(oldest(txn, target, row.seq))?;
            lock(&self.session.kept).targets.entry(target).or_default().oldest = next;
        }
        Ok(())
    }

    /// A target has something: its row goes, unless it is another one by now.
    pub(super) fn strike_in(
        &mut self,
        txn: &WriteTransaction,
        target: &str,
        what: &Queued,
        seq: u64,
    ) -> Result<(), Fault> {
        let Some(id) = lock(&self.session.kept).target_id(target) else { return Ok(()) };
        let row = self.session.sound(Row::of(txn, id, what))?;
        let Some(row) = row.filter(|row| row.seq == seq) else { return Ok(()) };
        self.remove_row(txn, id, what, row)?;
        self.release(txn, what, Origin::Upstream)
    }

    /// The bytes of something are damaged: it waits no more, and its row is shown.
    pub(super) fn lose_in(
        &mut self,
        txn: &WriteTransaction,
        target: &str,
        what: &Queued,
    ) -> Result<(), Fault> {
        let Some(id) = lock(&self.session.kept).target_id(target) else { return Ok(()) };
        let row = self.session.sound(Row::of(txn, id, what))?;
        let Some(row) = row.filter(|row| !row.lost) else { return Ok(()) };
        let lost = Row { lost: true, ..row };
        QUEUE.insert(txn, &row_key(id, what), &lost.to_bytes())?;
        self.uncount(txn, id, row)?;
        lock(&self.session.kept).targets.entry(id).or_default().count(lost);
        self.release(txn, what, Origin::Ours)
    }
}

/// The keys of a target in `target-1`, which has each twice: without its URL nothing that waits for
/// it could be carried there.
pub(super) fn target_keys(id: u32) -> [Vec<u8>; 2] {
    [0, 1].map(|copy: u8| [[copy].as_slice(), &id.to_be_bytes()].concat())
}

/// The target of a key in `target-1`.
pub(super) fn target_of(key: &[u8]) -> Option<u32> {
    key.last_chunk().filter(|_| key.len() == 5).map(|id| u32::from_be_bytes(*id))
}

/// The first that waits at a target, behind a place in the order.
fn oldest(
    txn: &WriteTransaction,
    target: u32,
    after_seq: u64,
) -> Result<Option<(u64, u64)>, Fault> {
    let (from, end) = (seq_key(target, after_seq.saturating_add(1)), seq_key(target, u64::MAX));
    let order = QUEUE_SEQ.open_in(txn)?;
    for entry in order.range(from.as_slice()..end.as_slice())? {
        let (key, name) = entry?;
        let what = what_of(QUEUE_SEQ.unseal(key.value(), name.value())?)?;
        if let Some(row) = Row::of(txn, target, &what)?
            && !row.lost
        {
            return Ok(Some((row.seq, row.queued_at_s)));
        }
    }
    Ok(None)
}
