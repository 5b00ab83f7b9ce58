//! The queue as a whole: a target that is forgotten, and rows that were damaged.

use std::collections::BTreeMap;

use redb::{ReadableTable, WriteTransaction};

use super::queue_rows::{Row, name_of, row_key, seq_key, target_key, what_of};
use super::tables::{Fault, QUEUE, QUEUE_SEQ, TARGET};
use super::writer::Writer;
use super::{Origin, lock};

/// Rows of a target that are looked at in one transaction while it is forgotten: the writer has
/// others to serve.
const ROWS_A_SLICE: usize = 1024;

/// How far the forgetting of a target has come.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    /// The last key that was looked at.
    after: Option<Vec<u8>>,
    pub(super) count: u64,
    pub(super) done: bool,
}

impl Writer {
    /// Forgets some rows of a target, or its lost ones among them.
    pub(super) fn forget_in(
        &mut self,
        txn: &WriteTransaction,
        target: &str,
        only_lost: bool,
        at: &mut Forgetting,
    ) -> Result<(), Fault> {
        at.done = true;
        let Some(id) = lock(&self.session.kept).target_id(target) else { return Ok(()) };
        let prefix = id.to_be_bytes();
        let found: Vec<(Vec<u8>, Vec<u8>)> = {
            let table = QUEUE.open_in(txn)?;
            let from = at.after.as_deref().unwrap_or(&prefix);
            let rows = table.range::<&[u8]>(from..)?.take(ROWS_A_SLICE);
            let rows = rows.map(|row| row.map(|(key, it)| (key.value().into(), it.value().into())));
            rows.collect::<Result<_, _>>()?
        };
        for (key, value) in found {
            let Some(name) = key.strip_prefix(prefix.as_slice()) else { break };
            if at.after.as_ref() == Some(&key) {
                continue;
            }
            at.done = false;
            let row = QUEUE.unseal(&key, &value).and_then(Row::from_bytes);
            match (row, what_of(name)) {
                (Ok(row), _) if only_lost && !row.lost => {}
                (Ok(row), Ok(what)) => {
                    self.remove_row(txn, id, &what, row)?;
                    self.release(txn, &what, Origin::Ours)?;
                    at.count += 1;
                }
                (_, _) if only_lost => {}
                (_, _) => drop(QUEUE.remove(txn, &key)?),
            }
            at.after = Some(key);
        }
        if at.done && !only_lost {
            TARGET.remove(txn, &target_key(id, target))?;
            lock(&self.session.kept).targets.remove(&id);
        }
        Ok(())
    }
}

/// What is queued is what the keys of `queue-1` say: a damaged row waits again, at the end, and the
/// order is written anew. Says how many were damaged.
pub(super) fn mend_queue(txn: &WriteTransaction, next_seq: &mut u64) -> Result<u64, Fault> {
    let mut rows = Vec::new();
    for entry in QUEUE.open_in(txn)?.range::<&[u8]>(..)? {
        let (key, value) = entry?;
        let row = QUEUE.unseal(key.value(), value.value()).and_then(Row::from_bytes).ok();
        *next_seq = row.map_or(0, |row| row.seq + 1).max(*next_seq);
        rows.push((key.value().to_vec(), row));
    }
    QUEUE_SEQ.retain(txn, |_, _| false)?;
    let mut damaged = 0;
    // When it was accepted is not known any more: no later than the last of its target.
    let mut last_at_s = BTreeMap::<u32, u64>::new();
    for (key, row) in rows {
        let id_and_name = key.split_first_chunk();
        let parsed = id_and_name.map(|(id, name)| (u32::from_be_bytes(*id), what_of(name)));
        let Some((id, Ok(what))) = parsed else {
            QUEUE.remove(txn, &key)?;
            damaged += 1;
            continue;
        };
        let at_s = last_at_s.entry(id).or_default();
        let row = row.unwrap_or_else(|| {
            damaged += 1;
            Row::next(next_seq, 0, *at_s)
        });
        *at_s = row.queued_at_s.max(*at_s);
        QUEUE.insert(txn, &row_key(id, &what), &row.to_bytes())?;
        QUEUE_SEQ.insert(txn, &seq_key(id, row.seq), &name_of(&what))?;
    }
    Ok(damaged)
}
