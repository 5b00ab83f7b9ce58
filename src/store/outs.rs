//! What would go next, and what goes because somebody says so.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

use super::command::{Act, Reply};
use super::keys::{id_of_key, nar_use_key};
use super::layout::stream_takes;
use super::records::{NarRecord, record};
use super::session::Session;
use super::small;
use super::tables::{Fault, NAR_USE};
use super::use_time::unused_since;
use super::{Error, INDEX_WAIT, Origin, Store, lock, within};
use crate::nix::{NarHash, StorePathHash};

/// Rows of the order of eviction that are read in one go.
const ROWS_A_SLICE: usize = 512;

/// Paths of a NAR that are said.
const PATHS_MAX: usize = 16;

/// A NAR that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    /// The NAR.
    pub nar_hash: NarHash,
    /// Its paths, some of them.
    pub paths: Vec<StorePathHash>,
    /// What it takes in the store.
    pub takes_bytes: u64,
    /// No upstream is known to have it.
    pub is_only_here: bool,
    /// When it was certainly not used any more, in seconds since 1970: at the latest an hour of use
    /// of the store later than it was used last. `None`: it was used since, or nobody knows.
    pub unused_since_s: Option<u64>,
}

/// Some of what goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outs {
    /// The NARs, in their order.
    pub nars: Vec<Out>,
    /// What is used without them, and without what went before and is still there: rows that somebody
    /// reads go later.
    pub left_bytes: u64,
}

/// How a NAR went that was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// It goes.
    Out(Out),
    /// It is not here.
    NotHere,
    /// It is pinned, or waits for something.
    Kept,
}

impl Store {
    /// What would go next, in its order, until `bytes` are free by that, at most `count_max`.
    /// Writes nothing.
    pub async fn next_out(&self, bytes: u64, count_max: usize) -> Result<Vec<Out>, Error> {
        let session = self.shared.session()?;
        let next = move |session: &Arc<Session>| next_out(session, bytes, count_max);
        within(INDEX_WAIT, self.shared.on_index(&session, next)).await
    }

    /// Lets some of what goes next go, so that at most `to_bytes` are used; none when no more are
    /// to go, or may. Their rows go behind this.
    pub async fn evict_to(&self, to_bytes: u64) -> Result<Outs, Error> {
        let session = self.shared.session()?;
        self.shared.ask(&session, |reply| Act::EvictTo { to_bytes, reply }).await
    }

    /// Lets one NAR go, unless it is kept. Who reads it is not disturbed.
    pub async fn evict_nar(&self, nar_hash: NarHash) -> Result<Gone, Error> {
        let session = self.shared.session()?;
        self.shared.ask(&session, |reply: Reply<Gone>| Act::EvictNar { nar_hash, reply }).await
    }
}

/// Says of a NAR what people want to know.
pub(super) fn out(session: &Session, record: &NarRecord, last_use: u64) -> Result<Out, Fault> {
    Ok(Out {
        nar_hash: record.nar_hash,
        paths: small::paths(session, record.nar_hash, PATHS_MAX)?,
        takes_bytes: stream_takes(record.file_size),
        is_only_here: record.origin != Origin::Upstream,
        unused_since_s: session.index.read(|txn| unused_since(txn, last_use))?,
    })
}

/// The order of eviction: that of the index, and in it those whose last use is not written yet.
struct Order<'a> {
    session: &'a Session,
    /// By their last use; with their records where the index has none yet.
    late: BTreeMap<u64, (u64, Option<NarRecord>)>,
    bytes: u64,
    count_max: usize,
    outs: Vec<Out>,
    taken_bytes: u64,
}

fn next_out(session: &Session, bytes: u64, count_max: usize) -> Result<Vec<Out>, Fault> {
    let mut late: BTreeMap<_, _> =
        session.unwritten_nars().into_iter().map(|(id, last_use)| (last_use, (id, None))).collect();
    for entry in lock(&session.overlay).nars.values() {
        late.retain(|_, (id, _)| *id != entry.id);
        let unwritten = session.unwritten_use(&super::session::Used::Nar(entry.id));
        let last_use = unwritten.unwrap_or(entry.record.last_use);
        late.insert(last_use, (entry.id, Some(entry.record.clone())));
    }
    let mut order = Order { session, late, bytes, count_max, outs: Vec::new(), taken_bytes: 0 };
    for origin in [Origin::Upstream, Origin::Ours] {
        order.all_of(origin)?;
    }
    Ok(order.outs)
}

impl Order<'_> {
    fn is_full(&self) -> bool {
        self.outs.len() >= self.count_max || self.taken_bytes >= self.bytes
    }

    fn all_of(&mut self, origin: Origin) -> Result<(), Fault> {
        let late: Vec<_> = self.late.iter().map(|(use_, (id, _))| (*use_, *id)).collect();
        let is_late: std::collections::HashSet<u64> = late.iter().map(|(_, id)| *id).collect();
        let mut late = late.into_iter().peekable();
        let mut from = nar_use_key(origin, 0, 0).to_vec();
        let kind = from.first().copied();
        loop {
            let (rows, damaged) = self.session.index.read(|txn| {
                NAR_USE.scan_sound(txn, &from, ROWS_A_SLICE, |key| key.first().copied() == kind)
            })?;
            let rows = self.session.sound_scan(NAR_USE, (rows, damaged));
            let Some((last, _)) = rows.last() else { break };
            from.clone_from(last);
            from.push(0);
            for (key, _) in &rows {
                if self.is_full() {
                    return Ok(());
                }
                let Some(id) = id_of_key(key).filter(|id| !is_late.contains(id)) else { continue };
                let last_use = use_of_key(key);
                self.late_before(origin, &mut late, last_use)?;
                self.take(origin, id, last_use)?;
            }
        }
        self.late_before(origin, &mut late, u64::MAX)
    }

    fn late_before(
        &mut self,
        origin: Origin,
        late: &mut Peekable<impl Iterator<Item = (u64, u64)>>,
        end: u64,
    ) -> Result<(), Fault> {
        while let Some((last_use, id)) = late.next_if(|(last_use, _)| *last_use < end) {
            self.take(origin, id, last_use)?;
        }
        Ok(())
    }

    fn take(&mut self, origin: Origin, id: u64, last_use: u64) -> Result<(), Fault> {
        if self.is_full() {
            return Ok(());
        }
        {
            let pins = lock(&self.session.pins);
            if pins.is_read(id) || pins.is_doomed(id) {
                return Ok(());
            }
        }
        let known = self.late.get(&last_use).filter(|(other, _)| *other == id);
        let record = match known.and_then(|(_, record)| record.clone()) {
            Some(record) => Some(record),
            None => self.session.sound(self.session.index.read(|txn| record(txn, id)))?,
        };
        let Some(record) = record.filter(|it| it.origin == origin && !it.doomed) else {
            return Ok(());
        };
        let out = out(self.session, &record, last_use)?;
        self.taken_bytes += out.takes_bytes;
        self.outs.push(out);
        Ok(())
    }
}

/// The use counter in a key of `nar-use-1`.
fn use_of_key(key: &[u8]) -> u64 {
    let counter = key.split_first().and_then(|(_, rest)| rest.first_chunk::<8>());
    counter.map_or(0, |counter| u64::from_be_bytes(*counter))
}
