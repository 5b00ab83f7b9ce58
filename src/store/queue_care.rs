//! The queue as a whole: a target that is forgotten, and rows that were damaged.

use std::collections::BTreeMap;

use redb::{ReadableTable, WriteTransaction};

use super::keys::SmallKey;
use super::queue_rows::{Row, seq_key, target_keys, target_of, what_of};
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
            self.drop_target(txn, id)?;
        }
        Ok(())
    }

    /// A target without rows is forgotten, and what damage left of its order. One for which
    /// something was accepted meanwhile stays.
    fn drop_target(&self, txn: &WriteTransaction, id: u32) -> Result<(), Fault> {
        let mut kept = lock(&self.session.kept);
        if kept.targets.get(&id).is_none_or(|target| !target.is_empty()) {
            return Ok(());
        }
        kept.targets.remove(&id);
        drop(kept);
        for key in target_keys(id) {
            TARGET.remove(txn, &key)?;
        }
        let order: Vec<Vec<u8>> = {
            let table = QUEUE_SEQ.open_in(txn)?;
            let rows = table.range::<&[u8]>(id.to_be_bytes().as_slice()..)?;
            let keys = rows.map(|row| row.map(|(key, _)| key.value().to_vec()));
            let own = |key: &Result<Vec<u8>, redb::StorageError>| {
                key.as_ref().map_or(true, |key| key.starts_with(&id.to_be_bytes()))
            };
            keys.take_while(own).collect::<Result<_, _>>()?
        };
        for key in order {
            QUEUE_SEQ.remove(txn, &key)?;
        }
        Ok(())
    }
}

/// Rows of the queue that are to be written anew.
struct Salvage {
    rows: BTreeMap<(u32, Vec<u8>), Row>,
    /// When rows of a target were accepted, last.
    last_at_s: BTreeMap<u32, u64>,
    damaged: u64,
}

impl Salvage {
    /// What is damaged in one of the tables is whole in the other: a row waits again, in its place,
    /// unless it is there already.
    fn add(&mut self, target: u32, name: &[u8], seq: u64) {
        let queued_at_s = self.last_at_s.get(&target).copied().unwrap_or(0);
        let row = Row { seq, queued_at_s, len_bytes: 0, lost: false };
        self.rows.entry((target, name.to_vec())).or_insert_with(|| {
            self.damaged += 1;
            row
        });
    }
}

/// The queue is written anew from what is sound in its two tables. A row that is damaged in both is
/// taken at its key's word when the index has something of that name. Says how many were damaged.
pub(super) fn mend_queue(txn: &WriteTransaction, next_seq: &mut u64) -> Result<u64, Fault> {
    let mut salvage = Salvage { rows: BTreeMap::new(), last_at_s: BTreeMap::new(), damaged: 0 };
    let mut doubtful = Vec::new();
    for entry in QUEUE.open_in(txn)?.range::<&[u8]>(..)? {
        let (key, value) = entry?;
        let Some((id, name)) = key.value().split_first_chunk() else { continue };
        let id = u32::from_be_bytes(*id);
        match QUEUE.unseal(key.value(), value.value()).and_then(Row::from_bytes) {
            Ok(row) => {
                *next_seq = (row.seq + 1).max(*next_seq);
                let last = salvage.last_at_s.entry(id).or_default();
                *last = row.queued_at_s.max(*last);
                salvage.rows.insert((id, name.to_vec()), row);
            }
            Err(_) => doubtful.push((id, name.to_vec())),
        }
    }
    for entry in QUEUE_SEQ.open_in(txn)?.range::<&[u8]>(..)? {
        let (key, value) = entry?;
        let Ok(name) = QUEUE_SEQ.unseal(key.value(), value.value()) else { continue };
        let (Some((id, seq)), Ok(_)) = (key.value().split_first_chunk(), what_of(name)) else {
            continue;
        };
        let seq = seq.first_chunk().map_or(0, |seq| u64::from_be_bytes(*seq));
        *next_seq = (seq + 1).max(*next_seq);
        salvage.add(u32::from_be_bytes(*id), name, seq);
    }
    for (id, name) in doubtful {
        let Ok(what) = what_of(&name) else { continue };
        let small = SmallKey::from(&what);
        if small.table().get_in(txn, small.key())?.is_some() {
            let seq = (*next_seq).max(1);
            *next_seq = seq + 1;
            salvage.add(id, &name, seq);
        }
    }
    QUEUE.retain(txn, |_, _| false)?;
    QUEUE_SEQ.retain(txn, |_, _| false)?;
    for ((id, name), row) in salvage.rows {
        QUEUE.insert(txn, &[id.to_be_bytes().as_slice(), &name].concat(), &row.to_bytes())?;
        QUEUE_SEQ.insert(txn, &seq_key(id, row.seq), &name)?;
    }
    mend_targets(txn)?;
    Ok(salvage.damaged)
}

/// Of the two rows of a target, one is sound.
fn mend_targets(txn: &WriteTransaction) -> Result<(), Fault> {
    let mut targets = BTreeMap::new();
    for entry in TARGET.open_in(txn)?.range::<&[u8]>(..)? {
        let (key, value) = entry?;
        if let (Some(id), Ok(url)) =
            (target_of(key.value()), TARGET.unseal(key.value(), value.value()))
        {
            targets.insert(id, url.to_vec());
        }
    }
    TARGET.retain(txn, |_, _| false)?;
    for (id, url) in targets {
        for key in target_keys(id) {
            TARGET.insert(txn, &key, &url)?;
        }
    }
    Ok(())
}
