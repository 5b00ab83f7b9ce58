//! What may not be evicted: NARs and narinfos that wait to be carried on or are pinned, and uploads
//! that wait for their narinfo. What it comes to is counted in memory.

use std::collections::{BTreeMap, HashMap};

use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use super::keys::{AliasKey, SmallKey, id_of_key, key_of_path, nar_use_key, path_key};
use super::pin_rows::Pinned;
use super::queue_rows::{self, Row, Target, target_of};
use super::records::{NarRecord, Small, number, origin_byte, record_in};
use super::removal::takes_of;
use super::tables::{Fault, NAR, NAR_HASH, NAR_USE, NARINFO, PATHS, SMALL_USE, TARGET, UNBOUND};
use super::uploads::Unbound;
use super::writer::Writer;
use super::{Origin, Queued, StoredNarInfo, TargetQueue, lock};
use crate::nix::{NarHash, StorePathHash};

/// In place of a use counter: it is not in `small-use-1`, so nothing takes it away.
pub(super) const NEVER_GOES: u64 = u64::MAX;

/// Where in `nar-use-1` those begin that eviction does not come to.
pub(super) const KEPT_FROM: [u8; 1] = [origin_byte(Origin::Kept)];

/// The figures of it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// By their ids.
    pub(super) targets: BTreeMap<u32, Target>,
    /// Lengths of the files that no narinfo names yet, also of those on their way to the index.
    pub(super) unbound: HashMap<AliasKey, u64>,
    /// Bytes that NARs take which may not be evicted, by the index.
    pub(super) bytes: u64,
    /// The same of uploads on their way to the index.
    pub(super) coming_bytes: u64,
    /// What is pinned.
    pub(super) pinned: Pinned,
    /// The two tables of the queue do not agree, or a row of them is damaged.
    pub(super) is_damaged: bool,
}

impl Kept {
    /// Counted anew when the store is opened.
    pub(super) fn load(txn: &ReadTransaction) -> Result<Self, Fault> {
        let mut kept = Self::default();
        for entry in TARGET.open_for_read(txn)?.range::<&[u8]>(..)? {
            let (key, value) = entry?;
            let url = TARGET.unseal(key.value(), value.value()).map(<[u8]>::to_vec);
            let url = url.map(String::from_utf8);
            match (target_of(key.value()), url) {
                (Some(id), Ok(Ok(url))) => drop(kept.targets.insert(id, Target::new(url))),
                (_, _) => kept.is_damaged = true,
            }
        }
        kept.is_damaged |= queue_rows::load(txn, &mut kept.targets)?;
        for entry in UNBOUND.open_for_read(txn)?.range::<&[u8]>(..)? {
            let (key, value) = entry?;
            let body = UNBOUND.unseal(key.value(), value.value());
            let unbound = body.and_then(|body| Unbound::from_row(key.value(), body));
            if let Ok(unbound) = unbound {
                kept.unbound.insert(unbound.key, unbound.file_size);
            }
        }
        kept.pinned = Pinned::load(txn)?;
        kept.is_damaged |= kept.pinned.is_damaged;
        Ok(kept)
    }

    /// Bytes of NARs that wait to be carried on, by the index: kept, and not only for being pinned.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.pinned.only_bytes)
    }

    /// Every target that has rows.
    pub(super) fn queues(&self) -> Vec<TargetQueue> {
        self.targets.values().filter(|target| !target.is_empty()).map(Target::figures).collect()
    }

    /// The id of a target that has or had rows.
    pub(super) fn target_id(&self, url: &str) -> Option<u32> {
        self.targets.iter().find(|(_, target)| target.url == url).map(|(id, _)| *id)
    }

    /// Nothing keeps anything.
    pub(super) fn is_nothing(&self) -> bool {
        self.has_no_rows() && self.unbound.is_empty() && self.pinned.is_nothing()
    }

    /// Nothing waits: what is kept is kept for being pinned.
    pub(super) fn has_nothing_waiting(&self) -> bool {
        self.has_no_rows() && self.unbound.is_empty()
    }

    /// No row waits, by the index.
    fn has_no_rows(&self) -> bool {
        self.targets.values().all(Target::is_empty)
    }
}

impl Writer {
    /// Whether something waits at any target.
    pub(super) fn is_queued(&self, txn: &WriteTransaction, what: &Queued) -> Result<bool, Fault> {
        let ids: Vec<u32> = {
            let kept = lock(&self.session.kept);
            let busy = kept.targets.iter().filter(|(_, target)| !target.is_empty());
            busy.map(|(id, _)| *id).collect()
        };
        for id in ids {
            match Row::of(txn, id, what) {
                Ok(Some(row)) if !row.lost => return Ok(true),
                Ok(_) => {}
                // Its key says that it waits.
                Err(Fault::Damaged(table)) => {
                    self.session.sound::<()>(Err(Fault::Damaged(table)))?;
                    return Ok(true);
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(false)
    }

    /// Whether a queued narinfo would go, or name another NAR: what was acknowledged stays. So does
    /// what is pinned, while its NAR is held: without it the narinfo is a promise like any other.
    pub(super) fn is_promised(
        &self,
        txn: &WriteTransaction,
        key: StorePathHash,
        stored: Option<&StoredNarInfo>,
    ) -> Result<bool, Fault> {
        let is_queued = self.is_queued(txn, &Queued::Path(key))?;
        if !is_queued && !self.is_pinned(txn, key)? {
            return Ok(false);
        }
        let Some(now) = nar_of(txn, key)? else { return Ok(false) };
        let changes = stored.is_none_or(|stored| stored.narinfo.nar_hash != now);
        Ok(changes && (is_queued || self.held_in(txn, now)?.is_some()))
    }

    /// The use counter of a narinfo or a document that is written now.
    pub(super) fn use_now(&self, txn: &WriteTransaction, key: &SmallKey) -> Result<u64, Fault> {
        let queued = match key {
            SmallKey::Narinfo(key) => Queued::Path(*key),
            SmallKey::Document(name) => Queued::Document(name.clone()),
            SmallKey::Alias(_) => return Ok(self.session.tick()),
        };
        let is_pinned = match &queued {
            Queued::Path(key) => self.is_pinned(txn, *key)?,
            Queued::Document(_) => false,
        };
        let stays = is_pinned || self.is_queued(txn, &queued)?;
        Ok(if stays { NEVER_GOES } else { self.session.tick() })
    }

    /// Whether a path of this NAR is queued or pinned, or an upload of it waits for its narinfo.
    pub(super) fn keeps(&self, txn: &WriteTransaction, nar_hash: NarHash) -> Result<bool, Fault> {
        Ok(self.waits(txn, nar_hash)? || !self.pinned_paths(txn, nar_hash)?.is_empty())
    }

    /// Whether a path of this NAR is queued, or an upload of it waits for its narinfo.
    fn waits(&self, txn: &WriteTransaction, nar_hash: NarHash) -> Result<bool, Fault> {
        if Unbound::is_any_of(txn, nar_hash)? {
            return Ok(true);
        }
        if lock(&self.session.kept).has_no_rows() {
            return Ok(false);
        }
        let from = path_key(nar_hash, StorePathHash::from_bytes([0; 20]));
        let paths = PATHS.open_in(txn)?;
        for entry in paths.range::<&[u8]>(from.as_slice()..)? {
            let (key, _) = entry?;
            if !key.value().starts_with(nar_hash.as_bytes()) {
                break;
            }
            let Some(path) = key_of_path(key.value()) else { continue };
            if self.is_queued(txn, &Queued::Path(path))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A NAR is kept while something keeps it; one that was and is not any more becomes
    /// `no_longer`.
    pub(super) fn settle(
        &mut self,
        txn: &WriteTransaction,
        nar_hash: NarHash,
        no_longer: Origin,
    ) -> Result<(), Fault> {
        self.settle_as(txn, nar_hash, |was| match was {
            Origin::Kept => no_longer,
            Origin::Upstream | Origin::Ours => was,
        })
    }

    /// The same; what it is while nothing keeps it is said by what it was.
    pub(super) fn settle_as(
        &mut self,
        txn: &WriteTransaction,
        nar_hash: NarHash,
        becomes: impl FnOnce(Origin) -> Origin,
    ) -> Result<(), Fault> {
        let Some((id, record)) = self.held_in(txn, nar_hash)? else { return Ok(()) };
        let (was, waits) = (record.origin, self.waits(txn, nar_hash)?);
        let pinned = self.pinned_paths(txn, nar_hash)?;
        let free = becomes(was);
        // A NAR that is kept already is of the origin that was noted, unless a target has it now.
        if was != Origin::Kept || free == Origin::Upstream {
            self.note_becomes(txn, &pinned, free)?;
        }
        self.count_pinned(id, &record, (!pinned.is_empty(), waits));
        let kept = waits || !pinned.is_empty();
        self.set_origin(txn, id, record, if kept { Origin::Kept } else { free })
    }

    /// Gives a NAR another place in the order of eviction.
    pub(super) fn set_origin(
        &mut self,
        txn: &WriteTransaction,
        id: u64,
        record: NarRecord,
        origin: Origin,
    ) -> Result<(), Fault> {
        if record.origin == origin {
            return Ok(());
        }
        self.count_kept(&record, origin);
        NAR_USE.remove(txn, &nar_use_key(record.origin, record.last_use, id))?;
        NAR_USE.insert(txn, &nar_use_key(origin, record.last_use, id), &[])?;
        NAR.insert(txn, &id.to_be_bytes(), &NarRecord { origin, ..record }.to_bytes())
    }

    /// Counts what a NAR takes when it becomes one that may not be evicted, or ceases to be one.
    fn count_kept(&mut self, record: &NarRecord, origin: Origin) {
        let takes: u64 = takes_of(&record.parts, record.file_size).values().sum();
        if origin == Origin::Kept {
            self.totals.kept_bytes += takes;
        } else if record.origin == Origin::Kept {
            self.totals.kept_bytes = self.totals.kept_bytes.saturating_sub(takes);
        }
    }

    /// A NAR goes, whatever it was.
    pub(super) fn uncount_kept(&mut self, id: u64, record: &NarRecord) {
        self.count_kept(record, Origin::Upstream);
        self.count_pinned(id, record, (false, false));
    }

    /// Something may have lost its last row: it goes back into the order of use, its NAR becomes
    /// `to`.
    pub(super) fn release(
        &mut self,
        txn: &WriteTransaction,
        what: &Queued,
        to: Origin,
    ) -> Result<(), Fault> {
        if self.is_queued(txn, what)? {
            return Ok(());
        }
        if let Queued::Path(key) = what
            && let Some(nar_hash) = nar_of(txn, *key)?
        {
            self.settle(txn, nar_hash, to)?;
        }
        let key = SmallKey::from(what);
        let last_use = self.use_now(txn, &key)?;
        self.session.sound(set_use(txn, &key, last_use))?;
        self.release_strays(txn)
    }

    /// Where nothing is queued or pinned and no upload waits, nothing is kept: damage may have left
    /// some.
    pub(super) fn release_strays(&mut self, txn: &WriteTransaction) -> Result<(), Fault> {
        let keeps_some = {
            let kept = lock(&self.session.kept);
            !kept.has_no_rows() || !kept.pinned.is_nothing()
        };
        if self.totals.kept_bytes == 0 || keeps_some {
            return Ok(());
        }
        if UNBOUND.open_in(txn)?.range::<&[u8]>(..)?.next().is_some() {
            return Ok(());
        }
        loop {
            let first = {
                let table = NAR_USE.open_in(txn)?;
                let first = table.range::<&[u8]>(KEPT_FROM.as_slice()..)?.next().transpose()?;
                first.map(|(key, _)| key.value().to_vec())
            };
            let Some(first) = first else { break };
            let id = id_of_key(&first).unwrap_or_default();
            let record = self.session.sound(record_in(txn, id))?;
            if let Some(record) = record.filter(|record| record.origin == Origin::Kept) {
                self.set_origin(txn, id, record, Origin::Ours)?;
            }
            NAR_USE.remove(txn, &first)?;
        }
        self.totals.kept_bytes = 0;
        Ok(())
    }

    /// The held NAR of a hash as a write transaction sees it.
    pub(super) fn held_in(
        &self,
        txn: &WriteTransaction,
        nar_hash: NarHash,
    ) -> Result<Option<(u64, NarRecord)>, Fault> {
        let id = NAR_HASH.get_in(txn, nar_hash.as_bytes());
        let id = id.and_then(|id| id.map(|id| number(NAR_HASH, &id)).transpose());
        let Some(id) = self.session.sound(id)? else { return Ok(None) };
        let record = self.session.sound(record_in(txn, id))?;
        Ok(record.filter(|record| !record.doomed).map(|record| (id, record)))
    }
}

/// The NAR that a kept narinfo names.
pub(super) fn nar_of(txn: &WriteTransaction, key: StorePathHash) -> Result<Option<NarHash>, Fault> {
    match NARINFO.get_in(txn, key.as_bytes()) {
        Ok(body) => {
            let small = body.map(|body| Small::<StoredNarInfo>::from_bytes(NARINFO, &body));
            Ok(small.and_then(Result::ok).map(|small| small.value.narinfo.nar_hash))
        }
        Err(Fault::Damaged(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Puts a narinfo, a document or an alias elsewhere in the order of use, or out of it.
pub(super) fn set_use(txn: &WriteTransaction, key: &SmallKey, last_use: u64) -> Result<(), Fault> {
    let table = key.table();
    let Some(mut body) = table.get_in(txn, key.key())? else { return Ok(()) };
    let Some(head) = body.first_chunk_mut::<8>() else { return Ok(()) };
    let before = u64::from_be_bytes(*head);
    *head = last_use.to_be_bytes();
    SMALL_USE.remove(txn, &key.use_key(before))?;
    if last_use != NEVER_GOES {
        SMALL_USE.insert(txn, &key.use_key(last_use), &[])?;
    }
    table.insert(txn, key.key(), &body)
}
