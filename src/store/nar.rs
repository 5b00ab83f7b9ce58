//! Held NARs: the stream from its rows, one short read transaction a row, on threads of our own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::command::{Act, Command};
use super::layout::{Row, row_at};
use super::records::{NarRecord, number, segment_of};
use super::session::{Entry, Pin, Session, Used};
use super::shared::{Shared, run, sentence};
use super::tables::{Fault, LISTING, NAR, NAR_HASH};
use super::{Error, lock};
use crate::nix::{FileHash, NarHash};

/// For so long a `Range` may belong to the bytes that were here before.
const CHANGED_FOR: Duration = Duration::from_hours(1);

/// The writer forgets a few times a second at most; a reading thread that meets that so often in a
/// row was asleep, and a NAR that is not found is fetched.
const FIND_TRIES_MAX: usize = 8;

/// A held NAR: whole on the disk (or whole and soon durable), kept from eviction while this lives.
#[derive(Clone, Debug)]
pub struct HeldNar {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    entry: Arc<Entry>,
    pin: Pin,
    /// Whether reading it counts: whoever only checks it neither uses it nor keeps the store awake.
    counts: bool,
}

impl HeldNar {
    /// `None` when it is going.
    pub(super) fn new(
        shared: &Arc<Shared>,
        session: &Arc<Session>,
        entry: Arc<Entry>,
    ) -> Option<Self> {
        let pin = Pin::new(shared, session, entry.id)?;
        session.used(Used::Nar(entry.id));
        Some(Self { inner: Arc::new(Inner { entry, pin, counts: true }) })
    }

    /// The same for who only checks it.
    pub(super) fn checked(
        shared: &Arc<Shared>,
        session: &Arc<Session>,
        entry: Arc<Entry>,
    ) -> Option<Self> {
        let pin = Pin::new(shared, session, entry.id)?;
        Some(Self { inner: Arc::new(Inner { entry, pin, counts: false }) })
    }

    /// The NAR of this hash, pinned. Asked on a reading thread, since what the index says holds
    /// only until the writer has removed it.
    pub(super) fn find(
        shared: &Arc<Shared>,
        session: &Arc<Session>,
        nar_hash: NarHash,
    ) -> Result<Option<Self>, Fault> {
        for _ in 0..FIND_TRIES_MAX {
            let before = lock(&session.pins).forgotten();
            let Some(entry) = entry_of(session, nar_hash)? else { return Ok(None) };
            let held = Self::new(shared, session, entry);
            if lock(&session.pins).forgotten() == before {
                return Ok(held);
            }
        }
        Ok(None)
    }

    fn record(&self) -> &NarRecord {
        &self.inner.entry.record
    }

    /// SHA-256 of the NAR.
    pub fn nar_hash(&self) -> NarHash {
        self.record().nar_hash
    }
    /// Bytes of the NAR.
    pub fn nar_size(&self) -> u64 {
        self.record().nar_size
    }
    /// SHA-256 of the stored zstd stream.
    pub fn file_hash(&self) -> FileHash {
        self.record().file_hash
    }
    /// Bytes of the stored zstd stream.
    pub fn file_size(&self) -> u64 {
        self.record().file_size
    }
    /// Whether this `NarHash` was held with another file hash before, and this one for less than
    /// an hour: a `Range` without `If-Range` must then be 404.
    pub fn changed_lately(&self) -> bool {
        self.record().changed && self.inner.entry.since.elapsed() < CHANGED_FOR
    }

    pub(super) fn id(&self) -> u64 {
        self.inner.entry.id
    }

    /// The stored bytes from `offset` to the end of their row; empty at the end. Nothing is copied.
    pub async fn read(&self, offset: u64) -> Result<Bytes, Error> {
        let record = self.record();
        let Some(row) = row_at(offset, record.file_size) else { return Ok(Bytes::new()) };
        let pin = &self.inner.pin;
        // No part has it: the record is damaged, and so is whatever segment one would name.
        let segment = segment_of(&record.parts, row.number).unwrap_or(u32::MAX);
        let place = Place { segment, id: self.inner.entry.id, row };
        if self.inner.counts {
            pin.session.touch();
        }
        let read = read_row(pin.shared(), &pin.session, place, offset).await;
        if lock(&pin.session.pins).is_wrong(place.id) {
            return Err(Error::Corrupt(record.nar_hash));
        }
        read.map_err(|error| {
            error.unwrap_or_else(|| damaged(pin.shared(), &pin.session, place, record.nar_hash))
        })
    }
}

/// Where a row lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) id: u64,
    pub(super) row: Row,
}

/// The bytes of a row from `offset` of its stream on. `Err(None)`: they are not what was written,
/// or their segment cannot be read; that is this NAR's trouble alone.
pub(super) async fn read_row(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    place: Place,
    offset: u64,
) -> Result<Bytes, Option<Error>> {
    let Place { segment, id, row } = place;
    let asked = session.clone();
    let job = move || {
        if asked.is_over() {
            return Err(Fault::Refused("the store was opened again".into()));
        }
        let read = asked.segments.read_row(segment, id, row.number);
        read.or_else(|fault| match fault {
            Fault::Damaged(_) | Fault::Missing(_) => Err(fault),
            // A handle that met an error once refuses everything: a fresh one decides.
            Fault::Redb(_) | Fault::Io { .. } | Fault::Panicked | Fault::Refused(_) => {
                asked.segments.forget_reader(segment);
                asked.segments.read_row(segment, id, row.number)
            }
        })
    };
    let mut bytes = match run(&shared.row_jobs, job).await? {
        Ok(bytes) => bytes,
        Err(fault) if session.is_over() => return Err(Some(shared.lost(session, &fault))),
        Err(fault) => {
            tracing::warn!(segment, id, row = row.number, fault = %sentence(&fault), "row lost");
            return Err(None);
        }
    };
    let skip = usize::try_from(offset.saturating_sub(row.start)).unwrap_or(usize::MAX);
    if u64::try_from(bytes.len()) != Ok(row.body) || skip >= bytes.len() {
        return Err(None);
    }
    Ok(bytes.split_off(skip))
}

/// The writer finds out behind the answer what is lost: the NAR, its segment, or the disk.
pub(super) fn damaged(
    shared: &Shared,
    session: &Arc<Session>,
    place: Place,
    nar_hash: NarHash,
) -> Error {
    shared.commands.push_now(Command::In(session.clone(), Act::Damaged { place, nar_hash }));
    Error::Corrupt(nar_hash)
}

/// The held NAR of this hash: memory is asked first, because a group leaves it only after it is in
/// the index.
pub(super) fn entry_of(session: &Session, nar_hash: NarHash) -> Result<Option<Arc<Entry>>, Fault> {
    if let Some(entry) = lock(&session.overlay).nars.get(&nar_hash) {
        return Ok(Some(entry.clone()));
    }
    let found = session.index.read(|txn| {
        let Some(id) = NAR_HASH.get(txn, nar_hash.as_bytes())? else { return Ok(None) };
        let id = number(NAR_HASH, &id)?;
        let Some(record) = NAR.get(txn, &id.to_be_bytes())? else { return Ok(None) };
        let record = NarRecord::from_bytes(NAR, &record)?;
        if record.doomed {
            return Ok(None);
        }
        let since = lock(&session.changed).get(&id).copied().unwrap_or(session.opened);
        Ok(Some(Arc::new(Entry { id, record, since, listing: None })))
    });
    session.sound(found)
}

/// The `.ls` of a held NAR.
pub(super) fn listing(session: &Session, nar_hash: NarHash) -> Result<Option<Bytes>, Fault> {
    let overlaid = lock(&session.overlay).nars.get(&nar_hash).map(|entry| entry.listing.clone());
    if let Some(listing) = overlaid {
        return Ok(listing);
    }
    session.index.read(|txn| {
        let Some(id) = NAR_HASH.get(txn, nar_hash.as_bytes())? else { return Ok(None) };
        let id = number(NAR_HASH, &id)?;
        Ok(LISTING.get(txn, &id.to_be_bytes())?.map(Bytes::from))
    })
}
