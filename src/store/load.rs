//! What an index says of itself, read before the store is open; mended first where that is damaged.

use std::collections::BTreeMap;

use redb::ReadTransaction;

use super::disk::Space as DiskSpace;
use super::index::{
    FORMAT_BEFORE_PUSH, Index, META_BUDGET, META_FORMAT, META_NEXT_ID, META_STORE_ID, META_TOTALS,
    StoreId,
};
use super::kept::Kept;
use super::keys::id_of_key;
use super::mend::{Known, mend};
use super::records::{SegmentRecord, number, record};
use super::removal::Removal;
use super::scrub::ScrubMark;
use super::segment::number_of;
use super::shared::Shared;
use super::space::default_budget;
use super::tables::{DOOMED, Fault, META, SEGMENT};
use super::writer::{Durable, SegmentState, write_txn};

/// The figures that are kept with the index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) narinfos: u64,
    pub(super) nars: u64,
    /// Bytes of narinfos and documents.
    pub(super) small_bytes: u64,
    /// Where the order of use goes on.
    pub(super) use_counter: u64,
    /// Bytes of NARs that may not be evicted.
    pub(super) kept_bytes: u64,
    /// Where the order of acceptance goes on.
    pub(super) next_seq: u64,
}

impl Totals {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let before_push = [self.narinfos, self.nars, self.small_bytes, self.use_counter];
        let numbers = before_push.into_iter().chain([self.kept_bytes, self.next_seq]);
        numbers.flat_map(u64::to_be_bytes).collect()
    }

    pub(super) fn from_bytes(body: &[u8]) -> Result<Self, Fault> {
        let (numbers, rest) = body.as_chunks::<8>();
        // The first format had four.
        if !matches!((numbers.len(), rest), (4 | 6, [])) {
            return Err(Fault::Damaged(META.name()));
        }
        let mut numbers = numbers.iter().map(|number| u64::from_be_bytes(*number));
        let mut next = || numbers.next().unwrap_or(0);
        Ok(Self {
            narinfos: next(),
            nars: next(),
            small_bytes: next(),
            use_counter: next(),
            kept_bytes: next(),
            next_seq: next(),
        })
    }
}

/// What an index says of itself.
pub(super) struct Loaded {
    pub(super) store_id: Option<StoreId>,
    pub(super) budget: Option<u64>,
    pub(super) next_id: Option<u64>,
    /// Rows are damaged.
    pub(super) hurt: bool,
    pub(super) totals: Totals,
    pub(super) segments: BTreeMap<u32, SegmentState>,
    pub(super) doomed: Vec<Removal>,
    pub(super) kept: Kept,
    pub(super) scrub: ScrubMark,
}

/// What an index says of itself that is opened. `None`, and `hurt`: rows are damaged.
pub(super) fn load(txn: &ReadTransaction) -> Result<Loaded, Fault> {
    let (meta, mut hurt) = META.scan_sound(txn, &[], usize::MAX, |_| true)?;
    let meta: BTreeMap<_, _> = meta.into_iter().collect();
    let body = |name: &[u8]| meta.get(name).map(Vec::as_slice);
    let number = |name: &[u8]| body(name).and_then(|body| number(META, body).ok());
    let mut segments = BTreeMap::new();
    let (rows, damaged) = SEGMENT.scan_sound(txn, &[], usize::MAX, |_| true)?;
    hurt |= damaged;
    for (key, body) in rows {
        let number = key.as_slice().try_into().ok().map(u32::from_be_bytes);
        match (number, SegmentRecord::from_bytes(SEGMENT, &body)) {
            (Some(number), Ok(record)) => {
                segments.insert(number, SegmentState { record, ..SegmentState::default() });
            }
            (_, _) => hurt = true,
        }
    }
    let mut doomed = Vec::new();
    let (rows, damaged) = DOOMED.scan_sound(txn, &[], usize::MAX, |_| true)?;
    hurt |= damaged;
    for (key, _) in rows {
        let Some(id) = id_of_key(&key) else { continue };
        match record(txn, id) {
            Ok(record) => doomed.extend(record.map(|record| Removal::known(id, &record))),
            Err(Fault::Damaged(_)) => hurt = true,
            Err(fault) => return Err(fault),
        }
    }
    let totals = body(META_TOTALS).map(Totals::from_bytes).transpose();
    let has_push_tables = number(META_FORMAT).is_some_and(|format| format > FORMAT_BEFORE_PUSH);
    let mut kept = if has_push_tables { Kept::load(txn)? } else { Kept::default() };
    kept.bytes = totals.as_ref().ok().copied().flatten().unwrap_or_default().kept_bytes;
    hurt |= kept.is_damaged;
    let loaded = Loaded {
        store_id: body(META_STORE_ID).and_then(|body| body.try_into().ok()),
        budget: number(META_BUDGET),
        next_id: number(META_NEXT_ID),
        hurt: hurt || totals.is_err(),
        totals: totals.ok().flatten().unwrap_or_default(),
        segments,
        doomed,
        kept,
        scrub: ScrubMark::load(txn),
    };
    let has_all = loaded.store_id.is_some() && loaded.budget.is_some() && loaded.next_id.is_some();
    Ok(Loaded { hurt: loaded.hurt || !has_all, ..loaded })
}

/// An index that is hurt where it has to be read first is mended before anything is served.
pub(super) fn mended(
    shared: &Shared,
    index: &Index,
    names: &[String],
    marked: Option<StoreId>,
    hurt: &Loaded,
) -> Result<Loaded, Fault> {
    let space = shared.disk.space().map_err(Fault::io("ask for free space"))?;
    let mut segments: BTreeMap<_, _> =
        hurt.segments.iter().map(|(number, state)| (*number, state.record)).collect();
    let occupied: u64 = segments.values().map(|record| record.peak_bytes).sum();
    let space = DiskSpace { free_bytes: space.free_bytes.saturating_add(occupied), ..space };
    let known = Known {
        store_id: hurt.store_id.or(marked).map_or_else(new_store_id, Ok)?,
        budget: hurt.budget.unwrap_or_else(|| first_budget(shared, space)),
        next_id: hurt.next_id,
    };
    let files: Vec<_> = names.iter().filter_map(|name| number_of(name)).collect();
    let found = index.with(|database| {
        let txn = write_txn(database, Durable::Yes)?;
        let found = mend(&txn, &known, &mut segments, &files)?;
        txn.commit()?;
        Ok(found)
    })?;
    shared.metrics.corrupt.inc_by(found.rows);
    tracing::warn!(rows = found.rows, "index is mended");
    let loaded = index.read(load)?;
    if loaded.hurt { Err(Fault::Damaged(META.name())) } else { Ok(loaded) }
}

pub(super) fn new_store_id() -> Result<StoreId, Fault> {
    let mut store_id = StoreId::default();
    getrandom::fill(&mut store_id)
        .map_err(|error| Fault::Refused(format!("no random numbers: {error}").into()))?;
    Ok(store_id)
}

pub(super) fn first_budget(shared: &Shared, space: DiskSpace) -> u64 {
    shared.config.budget.map_or_else(|| default_budget(space), |size| size.0)
}
