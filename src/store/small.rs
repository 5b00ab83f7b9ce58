//! narinfos and documents, and the uses of everything: changes of the index that go together, a
//! batch in one transaction without durability.

use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadableTable, WriteTransaction};

use super::command::Reply;
use super::kept::{NEVER_GOES, set_use};
use super::keys::{SmallKey, key_of_path, nar_use_key, path_key};
use super::records::{NarRecord, Small, small_last_use};
use super::session::{Session, Used};
use super::tables::{DOCUMENT, Fault, NAR, NAR_USE, NARINFO, PATHS, SMALL_USE};
use super::writer::{Durable, Writer};
use super::{Error, Origin, Queued, StoredNarInfo, lock};
use crate::nix::{NarHash, StorePathHash};

/// narinfos and documents may take this part of the budget.
const SMALL_PART: u64 = 20;

/// What a narinfo or a document takes beside its bytes: its keys in three tables, about.
const SMALL_OVERHEAD: u64 = 192;

/// A change of the index that needs no durability of its own.
pub(super) enum IndexOp {
    /// Keep or (`None`) forget a narinfo; it lies in the overlay until then.
    Narinfo { key: StorePathHash, stored: Arc<Option<StoredNarInfo>>, reply: Option<Reply<()>> },
    /// Keep a document.
    Document { name: String, body: Bytes, origin: Origin, reply: Reply<()> },
    /// A target has something that was queued for it.
    Strike { target: String, what: Queued, seq: u64, reply: Reply<()> },
}

impl IndexOp {
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Narinfo { reply: Some(reply), .. }
            | Self::Document { reply, .. }
            | Self::Strike { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Self::Narinfo { reply: None, .. } => {}
        }
    }
}

/// The narinfo of a key: memory is asked first, because one leaves it only after it is in the
/// index.
pub(super) fn narinfo(
    session: &Session,
    key: StorePathHash,
) -> Result<Option<StoredNarInfo>, Fault> {
    let overlaid = lock(&session.overlay).narinfos.get(&key).cloned();
    if let Some(stored) = overlaid {
        return Ok((*stored).clone());
    }
    Ok(narinfo_row(session, key)?.map(|small| small.value))
}

/// A narinfo's row in the index.
pub(super) fn narinfo_row(
    session: &Session,
    key: StorePathHash,
) -> Result<Option<Small<StoredNarInfo>>, Fault> {
    let body = session.sound(session.index.read(|txn| NARINFO.get(txn, key.as_bytes())))?;
    let small = body.map(|body| Small::<StoredNarInfo>::from_bytes(NARINFO, &body)).transpose();
    session.sound(small)
}

/// Keys of narinfos that name a NAR.
pub(super) fn paths(
    session: &Session,
    nar_hash: NarHash,
    count_max: usize,
) -> Result<Vec<StorePathHash>, Fault> {
    let from = path_key(nar_hash, StorePathHash::from_bytes([0; 20]));
    let mut keys: Vec<_> = {
        let overlay = lock(&session.overlay);
        let names = |stored: &StoredNarInfo| stored.narinfo.nar_hash == nar_hash;
        let here = overlay.narinfos.iter();
        here.filter(|(_, stored)| (***stored).as_ref().is_some_and(names))
            .map(|(key, _)| *key)
            .collect()
    };
    let rows = session.index.read(|txn| {
        PATHS.scan_sound(txn, &from, count_max, |key| key.starts_with(nar_hash.as_bytes()))
    })?;
    let rows = session.sound_scan(PATHS, rows);
    keys.extend(rows.iter().filter_map(|(key, _)| key_of_path(key)));
    keys.sort_unstable();
    keys.dedup();
    keys.truncate(count_max);
    Ok(keys)
}

/// A document by its name.
pub(super) fn document(session: &Session, name: &str) -> Result<Option<Bytes>, Fault> {
    let body = session.index.read(|txn| DOCUMENT.get(txn, name.as_bytes()))?;
    let small = body.map(|body| Small::<(Origin, Vec<u8>)>::from_bytes(DOCUMENT, &body));
    Ok(small.transpose()?.map(|small| small.value.1.into()))
}

impl Writer {
    /// Applies what was queued, in one transaction.
    pub(super) fn apply_ops(&mut self) -> Result<(), Fault> {
        if self.ops.is_empty() {
            return Ok(());
        }
        let ops = std::mem::take(&mut self.ops);
        let mut pathless = Vec::new();
        self.commit_index(Durable::No, |writer, txn| {
            for op in &ops {
                match op {
                    IndexOp::Narinfo { key, stored, .. } => {
                        let stored = (**stored).as_ref();
                        if !writer.is_promised(txn, *key, stored)? {
                            pathless.extend(writer.narinfo_in(txn, *key, stored)?);
                        }
                    }
                    IndexOp::Strike { target, what, seq, .. } => {
                        writer.strike_in(txn, target, what, *seq)?;
                    }
                    IndexOp::Document { name, body, origin, .. } => {
                        let key = SmallKey::Document(name.clone());
                        let last_use = writer.use_now(txn, &key)?;
                        let small = Small { last_use, value: (*origin, body.to_vec()) };
                        writer.small_in(txn, &key, Some((last_use, small.to_bytes())))?;
                    }
                }
            }
            writer.bound_small(txn)
        })?;
        for op in ops {
            self.applied(op);
        }
        for nar_hash in pathless {
            if self.is_wanted(nar_hash) {
                continue;
            }
            self.withdraw(nar_hash)?;
        }
        Ok(())
    }

    fn applied(&self, op: IndexOp) {
        match op {
            IndexOp::Narinfo { key, stored, reply } => {
                let mut overlay = lock(&self.session.overlay);
                // A later one of the same key stays until its turn.
                if overlay.narinfos.get(&key).is_some_and(|there| Arc::ptr_eq(there, &stored)) {
                    overlay.narinfos.remove(&key);
                }
                drop(overlay);
                if let Some(reply) = reply {
                    drop(reply.send(Ok(())));
                }
            }
            IndexOp::Document { reply, .. } | IndexOp::Strike { reply, .. } => {
                drop(reply.send(Ok(())));
            }
        }
    }

    /// Keeps or forgets a narinfo. Says which NAR has lost its last path by that.
    pub(super) fn narinfo_in(
        &mut self,
        txn: &WriteTransaction,
        key: StorePathHash,
        stored: Option<&StoredNarInfo>,
    ) -> Result<Option<NarHash>, Fault> {
        let small_key = SmallKey::Narinfo(key);
        // A damaged one is replaced like any other; its path stays behind and is harmless.
        let before = match NARINFO.get_in(txn, key.as_bytes()) {
            Ok(body) => {
                body.and_then(|body| Small::<StoredNarInfo>::from_bytes(NARINFO, &body).ok())
            }
            Err(Fault::Damaged(_)) => None,
            Err(fault) => return Err(fault),
        };
        let before = before.map(|before| before.value.narinfo.nar_hash);
        let now = stored.map(|stored| stored.narinfo.nar_hash);
        if let Some(before) = before.filter(|before| Some(*before) != now) {
            PATHS.remove(txn, &path_key(before, key))?;
            self.settle(txn, before, Origin::Ours)?;
        }
        let value = match stored {
            Some(stored) => {
                PATHS.insert(txn, &path_key(stored.narinfo.nar_hash, key), &[])?;
                let last_use = self.use_now(txn, &small_key)?;
                Some((last_use, Small { last_use, value: stored.clone() }.to_bytes()))
            }
            None => None,
        };
        self.small_in(txn, &small_key, value)?;
        // Another NAR of a pinned path may be here for another path.
        if let Some(now) = now.filter(|now| Some(*now) != before)
            && self.is_pinned(txn, key)?
        {
            self.settle(txn, now, Origin::Ours)?;
        }
        let Some(before) = before.filter(|_| stored.is_none()) else { return Ok(None) };
        let goes = !has_path(txn, before)? && !self.keeps(txn, before)?;
        Ok(goes.then_some(before))
    }

    /// Puts or removes a narinfo or a document, with its place in the order of use.
    pub(super) fn small_in(
        &mut self,
        txn: &WriteTransaction,
        key: &SmallKey,
        value: Option<(u64, Vec<u8>)>,
    ) -> Result<(), Fault> {
        let table = key.table();
        let is_narinfo = u64::from(matches!(key, SmallKey::Narinfo(_)));
        let before = match table.get_in(txn, key.key()) {
            Err(Fault::Damaged(_)) => Some(Vec::new()),
            other => other?,
        };
        if let Some(before) = before {
            self.totals.small_bytes =
                self.totals.small_bytes.saturating_sub(small_takes(before.len()));
            self.totals.narinfos = self.totals.narinfos.saturating_sub(is_narinfo);
            if let Ok(last_use) = small_last_use(table, &before) {
                SMALL_USE.remove(txn, &key.use_key(last_use))?;
            }
        }
        let Some((last_use, body)) = value else {
            table.remove(txn, key.key())?;
            return Ok(());
        };
        self.totals.small_bytes += small_takes(body.len());
        self.totals.narinfos += is_narinfo;
        if last_use != NEVER_GOES {
            SMALL_USE.insert(txn, &key.use_key(last_use), &[])?;
        }
        table.insert(txn, key.key(), &body)
    }

    /// The least recently used go when all take more than their part of the budget.
    pub(super) fn bound_small(&mut self, txn: &WriteTransaction) -> Result<(), Fault> {
        let bound = self.session.space.budget_bytes() / SMALL_PART;
        while self.totals.small_bytes > bound {
            let oldest = SMALL_USE.open_in(txn)?.first()?.map(|(key, value)| {
                let sealed = SMALL_USE.unseal(key.value(), value.value());
                let small = sealed.and_then(|_| SmallKey::from_use_key(SMALL_USE, key.value()));
                (key.value().to_vec(), small.map(Some))
            });
            let Some((oldest, key)) = oldest else { return Ok(()) };
            match self.session.sound(key)? {
                Some(SmallKey::Narinfo(narinfo)) => drop(self.narinfo_in(txn, narinfo, None)?),
                Some(key @ (SmallKey::Document(_) | SmallKey::Alias(_))) => {
                    self.small_in(txn, &key, None)?;
                }
                None => {}
            }
            // Where use and row disagree after damage, this ends all the same.
            SMALL_USE.remove(txn, &oldest)?;
        }
        Ok(())
    }

    /// Writes down what was used since the last time.
    pub(super) fn write_uses(&mut self, txn: &WriteTransaction) -> Result<(), Fault> {
        for (used, last_use) in self.session.take_uses() {
            let written = match used {
                Used::Nar(id) => nar_used(txn, id, last_use),
                Used::Small(key) => small_used(txn, &key, last_use),
            };
            self.session.sound(written)?;
        }
        Ok(())
    }
}

/// What a narinfo or a document with so long a body counts.
pub(super) fn small_takes(body_len: usize) -> u64 {
    u64::try_from(body_len).unwrap_or(0) + SMALL_OVERHEAD
}

pub(super) fn has_path(txn: &WriteTransaction, nar_hash: NarHash) -> Result<bool, Fault> {
    let from = path_key(nar_hash, StorePathHash::from_bytes([0; 20]));
    let table = PATHS.open_in(txn)?;
    let first = table.range::<&[u8]>(from.as_slice()..)?.next().transpose()?;
    let same = |key: &[u8]| key.starts_with(nar_hash.as_bytes()) && key_of_path(key).is_some();
    Ok(first.is_some_and(|(key, _)| same(key.value())))
}

fn nar_used(txn: &WriteTransaction, id: u64, last_use: u64) -> Result<(), Fault> {
    let key = id.to_be_bytes();
    let Some(body) = NAR.get_in(txn, &key)? else { return Ok(()) };
    let record = NarRecord::from_bytes(NAR, &body)?;
    if record.doomed || record.last_use >= last_use {
        return Ok(());
    }
    NAR_USE.remove(txn, &nar_use_key(record.origin, record.last_use, id))?;
    NAR_USE.insert(txn, &nar_use_key(record.origin, last_use, id), &[])?;
    NAR.insert(txn, &key, &NarRecord { last_use, ..record }.to_bytes())
}

fn small_used(txn: &WriteTransaction, key: &SmallKey, last_use: u64) -> Result<(), Fault> {
    let table = key.table();
    let Some(body) = table.get_in(txn, key.key())? else { return Ok(()) };
    if small_last_use(table, &body)? >= last_use {
        return Ok(());
    }
    set_use(txn, key, last_use)
}
