//! Pins, at the store's door: which there are, what they hold, and how one comes and goes. What is
//! called durable here has reached the medium when the call returns.

use std::sync::Arc;

use redb::ReadTransaction;
use tokio::sync::watch;

use super::accepts::PushOp;
use super::command::Act;
use super::layout::stream_takes;
use super::nar::entry_of;
use super::pin_care::{PinOp, paths_of_pin};
use super::pin_rows::{PinRecord, by_path, by_pin, by_pin_key, pin_keys, pinned_of};
use super::queue_rows;
use super::session::Session;
use super::small;
use super::tables::{Fault, PIN, PINNED};
use super::{Error, INDEX_WAIT, Origin, Queued, Store, lock, within};
use crate::nix::{NarHash, StorePath, StorePathHash};

/// Longest name of a pin: one byte says its length on the disk, and it stands in a table.
pub const PIN_NAME_LEN_MAX: usize = 64;

/// Other paths of a NAR that are looked at to see who else pins it.
const PATHS_MAX: usize = 64;

/// Names of pins that are said of one path.
const NAMES_MAX: usize = 8;

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Its number; another one each time the name is pinned again.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Whether it holds under its name. Before that its paths are being fetched.
    pub is_whole: bool,
    /// When it was given, in seconds since 1970 by this machine's clock.
    pub since_s: u64,
    /// What was asked to be pinned; its closure is.
    pub roots: Vec<StorePath>,
}

/// A path of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedPath {
    /// Its key.
    pub key: StorePathHash,
    /// Its NAR, when its narinfo is here.
    pub nar_hash: Option<NarHash>,
    /// What that takes in the store; `None`: it is missing.
    pub takes_bytes: Option<u64>,
    /// It is the first path of this pin with that NAR: so that one NAR counts once.
    pub is_first: bool,
    /// No other pin has that NAR.
    pub is_alone: bool,
    /// A target is still to have that NAR: it stays without the pin.
    pub is_waiting: bool,
}

/// A NAR that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// What it takes in the store.
    pub takes_bytes: u64,
    /// Whether it may not be evicted.
    pub is_kept: bool,
}

impl Store {
    /// All pins, those that are still being fetched too.
    pub async fn pins(&self) -> Result<Vec<Pin>, Error> {
        let session = self.shared.session()?;
        within(INDEX_WAIT, self.shared.on_index(&session, |session| pins(session))).await
    }

    /// Paths of a pin behind `after`, some hundreds of them; none when that was the last.
    pub async fn pinned_paths(
        &self,
        id: u32,
        after: Option<StorePathHash>,
    ) -> Result<Vec<PinnedPath>, Error> {
        let session = self.shared.session()?;
        let paths = move |session: &Arc<Session>| pinned_paths(session, id, after);
        within(INDEX_WAIT, self.shared.on_index(&session, paths)).await
    }

    /// Names of the pins that keep a NAR, some of them.
    pub async fn pins_of(&self, nar_hash: NarHash) -> Result<Vec<String>, Error> {
        let session = self.shared.session()?;
        let names = move |session: &Arc<Session>| names_of(session, nar_hash);
        within(INDEX_WAIT, self.shared.on_index(&session, names)).await
    }

    /// Which of these NARs are held, in their order.
    pub async fn holdings(&self, nar_hashes: Vec<NarHash>) -> Result<Vec<Option<Holding>>, Error> {
        let session = self.shared.session()?;
        let holdings = move |session: &Arc<Session>| {
            nar_hashes.iter().map(|nar_hash| holding(session, *nar_hash)).collect()
        };
        within(INDEX_WAIT, self.shared.on_index(&session, holdings)).await
    }

    /// Begins a pin, and forgets one of this name that never held. Says its number. Durable.
    pub async fn begin_pin(
        &self,
        name: &str,
        roots: Vec<StorePath>,
        now_s: u64,
    ) -> Result<u32, Error> {
        let name = name.to_owned();
        let record = PinRecord { name, is_whole: false, since_s: now_s, roots };
        let session = self.shared.session()?;
        let op = |reply| Act::Push(PushOp::Pin(PinOp::Begin { record, reply }));
        self.shared.ask(&session, op).await
    }

    /// Pins paths: neither they nor, held now or later, their NARs are evicted. Durable. False: the
    /// pin was forgotten meanwhile.
    pub async fn pin_paths(&self, id: u32, paths: Vec<StorePathHash>) -> Result<bool, Error> {
        self.on_pin(|reply| PinOp::Add { id, paths, reply }).await
    }

    /// Lets a pin hold under its name, and forgets what held under it before: both or neither.
    /// Durable. False: the pin was forgotten meanwhile.
    pub async fn hold_pin(&self, id: u32) -> Result<bool, Error> {
        self.on_pin(|reply| PinOp::Hold { id, reply }).await
    }

    /// Forgets a pin that was begun. Durable.
    pub async fn drop_pin(&self, id: u32) -> Result<bool, Error> {
        self.on_pin(|reply| PinOp::Drop { id, reply }).await
    }

    /// Forgets all pins of a name. False: there is none. Durable.
    pub async fn unpin(&self, name: &str) -> Result<bool, Error> {
        let name = name.to_owned();
        self.on_pin(|reply| PinOp::Unpin { name, reply }).await
    }

    async fn on_pin(
        &self,
        op: impl FnOnce(super::command::Reply<bool>) -> PinOp,
    ) -> Result<bool, Error> {
        let session = self.shared.session()?;
        self.shared.ask(&session, |reply| Act::Push(PushOp::Pin(op(reply)))).await
    }

    /// Goes up whenever a pinned NAR is found missing or withdrawn.
    pub fn pins_hurt(&self) -> watch::Receiver<u64> {
        self.shared.pins_hurt.subscribe()
    }

    /// How many pins there are that hold.
    pub fn pin_count(&self) -> usize {
        let kept = self.shared.kept();
        let kept = lock(&kept);
        kept.pinned.alive.values().filter(|head| head.is_whole).count()
    }
}

fn pins(session: &Session) -> Result<Vec<Pin>, Fault> {
    let ids: Vec<u32> = lock(&session.kept).pinned.alive.keys().copied().collect();
    let mut pins = Vec::new();
    for id in ids {
        let record = session.index.read(|txn| {
            for key in pin_keys(id) {
                let record = PIN.get(txn, &key);
                let record =
                    record.and_then(|it| it.map(|it| PinRecord::from_bytes(&it)).transpose());
                if let Some(record) = session.sound(record)? {
                    return Ok(Some(record));
                }
            }
            Ok(None)
        })?;
        pins.extend(record.map(|record| {
            let PinRecord { name, is_whole, since_s, roots } = record;
            Pin { id, name, is_whole, since_s, roots }
        }));
    }
    Ok(pins)
}

fn pinned_paths(
    session: &Session,
    id: u32,
    after: Option<StorePathHash>,
) -> Result<Vec<PinnedPath>, Fault> {
    let mut from = after.map_or_else(|| by_pin(id), |after| by_pin_key(id, after));
    // Behind that one: no key is a longer one's beginning.
    from.extend(after.map(|_| 0));
    let (paths, damaged) = session.index.read(|txn| paths_of_pin(txn, id, &from))?;
    if damaged {
        session.sound::<()>(Err(Fault::Damaged(PINNED.name())))?;
    }
    let mut found = Vec::with_capacity(paths.len());
    for key in paths {
        let nar_hash = small::narinfo(session, key)?.map(|stored| stored.narinfo.nar_hash);
        let mut path = PinnedPath {
            key,
            nar_hash,
            takes_bytes: None,
            is_first: true,
            is_alone: true,
            is_waiting: false,
        };
        if let Some(nar_hash) = nar_hash {
            path.takes_bytes = holding(session, nar_hash)?.map(|holding| holding.takes_bytes);
            for other in small::paths(session, nar_hash, PATHS_MAX)? {
                let pins = session.index.read(|txn| pins_at(txn, other))?;
                path.is_first &= other >= key || !pins.contains(&id);
                path.is_waiting |= queue_rows::waits(session, &Queued::Path(other))?;
                let kept = lock(&session.kept);
                let is_alive = |pin: &u32| *pin != id && kept.pinned.alive.contains_key(pin);
                path.is_alone &= !pins.iter().any(is_alive);
            }
        }
        found.push(path);
    }
    Ok(found)
}

/// The pins of a path, forgotten ones too.
fn pins_at(txn: &ReadTransaction, path: StorePathHash) -> Result<Vec<u32>, Fault> {
    let prefix = by_path(path);
    let (rows, _) = PINNED.scan_sound(txn, &prefix, PATHS_MAX, |key| key.starts_with(&prefix))?;
    Ok(rows.iter().filter_map(|(key, _)| pinned_of(key)).map(|(_, id)| id).collect())
}

fn names_of(session: &Session, nar_hash: NarHash) -> Result<Vec<String>, Fault> {
    let mut names = Vec::new();
    for path in small::paths(session, nar_hash, PATHS_MAX)? {
        let pins = session.index.read(|txn| pins_at(txn, path))?;
        let kept = lock(&session.kept);
        let alive = pins.iter().filter_map(|id| kept.pinned.alive.get(id));
        names.extend(alive.map(|head| head.name.clone()));
    }
    names.sort_unstable();
    names.dedup();
    names.truncate(NAMES_MAX);
    Ok(names)
}

fn holding(session: &Session, nar_hash: NarHash) -> Result<Option<Holding>, Fault> {
    let entry = entry_of(session, nar_hash)?;
    Ok(entry.map(|entry| Holding {
        takes_bytes: stream_takes(entry.record.file_size),
        is_kept: entry.record.origin == Origin::Kept,
    }))
}
