//! The disk: one index and segments of rows, all redb, all behind one async door. Knows nothing of
//! networks. Nothing outside this folder names redb.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::metrics::Metrics;
use crate::nix::{NarHash, StorePathHash};
use crate::units::ByteSize;

pub mod disk;

// What passes through the door.
mod nouns;

// The files, and what is in them.
mod backend;
mod tables;
mod records;
mod keys;
mod layout;
mod index;
mod segment;
// What is in memory.
mod queue;
mod command;
mod space;
mod shared;
mod session;
// NARs, read and being written.
mod nar;
mod fill;
mod filling;
mod room;
// The one writer.
mod open;
mod load;
mod life;
mod writer;
mod landing;
mod group;
mod small;
mod evict;
mod removal;
mod damage;
mod mend;
mod mending;
mod rest;
mod scrub;
// What is acknowledged, and waits to be carried on.
mod push;
mod accepts;
mod uploads;
mod queue_rows;
mod queue_care;
mod kept;
// What others keep with it.
mod history;
// What is pinned.
mod pins;
mod pin_rows;
mod pin_care;
mod pin_mend;
// What goes, and when it was used.
mod outs;
mod use_time;

pub use disk::Disk;
pub use filling::{Growing, NarWriter};
pub use history::History;
pub use index::FORMAT;
pub use nar::HeldNar;
pub use nouns::{Error, Figures, Finished, Origin, State, StoredNarInfo};
pub use outs::{Gone, Out, Outs};
pub use pins::{Holding, PIN_NAME_LEN_MAX, Pin, PinnedPath};
pub use push::{Acceptance, Alias, QueueRow, Queued, TargetQueue};
pub use room::Reservation;
pub use scrub::{IndexPlace, ScrubMark};

use command::{Act, Command, Reply};
use keys::SmallKey;
use session::{Session, Used};
use shared::{Shared, WRITER_WAIT};

/// Threads that read the index, and as many that read rows: while one waits for a slow card, the
/// other goes on; more would only move the waiting into the kernel.
const READ_THREADS: usize = 2;

/// How long a narinfo waits for the index.
const LOOKUP_WAIT: Duration = Duration::from_secs(1);

/// How long other questions wait for the index: a card may stall for tens of seconds, a client
/// gives up after some.
const INDEX_WAIT: Duration = Duration::from_secs(20);

/// How long closing waits for the disk; service managers kill after 90 s.
const CLOSE_WAIT: Duration = Duration::from_secs(20);

/// The `[store]` table of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The folder; default `<state-dir>/store`.
    pub path: Option<PathBuf>,
    /// Bytes that stored rows may take; default 90 % of what is free at first start, then fixed.
    pub budget: Option<ByteSize>,
    /// zstd level of what is stored, 1 to 19; default 3. Used by the cache's ingest.
    pub compression_level: Option<i32>,
    /// File in the state directory that remembers that a store was begun, and with which id: when
    /// it exists and the index is missing, the disk is missing. Not a key of the file.
    #[serde(skip)]
    pub marker: Option<PathBuf>,
    /// After so long without a question the files are closed; default 1 min. Not a key of the file.
    #[serde(skip)]
    pub rest_after: Option<Duration>,
    /// Keeps a store of an older format as it is, and does not open it: the program runs on trial,
    /// and the one before must find its store. Not a key of the file.
    #[serde(skip)]
    pub holds_format: bool,
}

/// A guard on a mutex whose holder may have panicked: what it guards is changed in single steps,
/// so it is whole all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The door. A cheap clone of a handle; never fails to exist, though the disk behind it may.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Store {
    /// Starts the store's threads; opening goes on behind and is tried again with back-off for as
    /// long as it fails ([`Store::state`]). `disk` is [`disk::Folder`] but in tests of faults.
    pub fn start(config: Config, disk: Arc<dyn Disk>, metrics: Metrics) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(config, disk, metrics));
        let mut threads = Vec::new();
        let writer = shared.clone();
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        threads.push(named("store-writer").spawn(move || life::run(&writer))?);
        for _ in 0..READ_THREADS {
            let (index, rows) = (shared.clone(), shared.clone());
            threads.push(named("store-index").spawn(move || shared::work(&index.index_jobs))?);
            threads.push(named("store-rows").spawn(move || shared::work(&rows.row_jobs))?);
        }
        Ok(Self { shared, threads: Arc::new(Mutex::new(threads)) })
    }

    /// Waits until the first attempt to open has ended (either way).
    pub async fn first_opened(&self) -> State {
        let mut opened = self.shared.first_opened.subscribe();
        // The sender lives in `shared`, so waiting ends with the attempt.
        drop(opened.wait_for(|opened| *opened).await);
        self.state()
    }

    /// Open or degraded.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// For how long the writer has been at one and the same thing, which is mostly the disk; zero
    /// while it waits for work, and while the store is degraded: nobody waits for it then.
    pub fn writer_stands_for(&self) -> Duration {
        self.shared.writer_stands_for()
    }

    /// The store's figures.
    pub fn figures(&self) -> Figures {
        self.shared.figures()
    }

    /// Keeps these figures with the index from now on, and hands out what it has of them.
    pub fn keep_history(&self, history: Arc<dyn History>) {
        self.shared.history.keep(history);
    }

    /// Makes durable what waits, closes the files, joins the threads. A disk that does not answer
    /// is left after 20 s.
    pub async fn close(&self) {
        self.shared.commands.push_now(Command::Close);
        let closed = tokio::time::timeout(CLOSE_WAIT, self.shared.commands.until_closed()).await;
        if closed.is_err() {
            tracing::warn!("disk does not answer, closing the store without it");
            self.shared.closed();
            self.shared.index_jobs.close();
            self.shared.row_jobs.close();
            return;
        }
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // The reading threads end after the job they are at, which a dead disk may delay.
            if thread.is_finished() || thread.thread().name() == Some("store-writer") {
                drop(thread.join());
            }
        }
    }

    /// Makes durable all that is finished so far.
    pub async fn flush(&self) -> Result<(), Error> {
        let session = self.shared.session()?;
        self.shared.ask(&session, Act::Flush).await
    }

    /// The narinfo kept for this key, within 1.0 s (`Error::Slow`), and the NAR when it is held.
    pub async fn lookup(
        &self,
        key: StorePathHash,
    ) -> Result<Option<(StoredNarInfo, Option<HeldNar>)>, Error> {
        let session = self.shared.session()?;
        let shared = self.shared.clone();
        let found = self.shared.on_index(&session, move |session| {
            let Some(stored) = small::narinfo(session, key)? else { return Ok(None) };
            let held = HeldNar::find(&shared, session, stored.narinfo.nar_hash)?;
            Ok(Some((stored, held)))
        });
        let found = within(LOOKUP_WAIT, found).await?;
        if found.is_some() {
            session.used(Used::Small(SmallKey::Narinfo(key)));
        }
        Ok(found)
    }

    /// The narinfo kept for this key, without counting as a use of it.
    pub async fn peek_narinfo(&self, key: StorePathHash) -> Result<Option<StoredNarInfo>, Error> {
        let session = self.shared.session()?;
        let found = self.shared.on_index(&session, move |session| small::narinfo(session, key));
        within(INDEX_WAIT, found).await
    }

    /// Keeps a narinfo (replaces the one of that key). Not durable by itself; visible at once.
    pub async fn keep_narinfo(&self, stored: StoredNarInfo) -> Result<(), Error> {
        let key = stored.narinfo.store_path.hash();
        self.change_narinfo(key, Some(stored), None).await
    }

    /// Forgets a narinfo: its NAR can be had nowhere. The NAR's rows go when no other path has it.
    pub async fn withdraw_narinfo(&self, key: StorePathHash) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.change_narinfo(key, None, Some(reply)).await?;
        within(WRITER_WAIT, self.shared.hear(answer)).await
    }

    async fn change_narinfo(
        &self,
        key: StorePathHash,
        stored: Option<StoredNarInfo>,
        reply: Option<Reply<()>>,
    ) -> Result<(), Error> {
        let session = self.shared.session()?;
        let place = async { self.shared.commands.place().await.ok_or(Error::Closing) };
        let place = within(WRITER_WAIT, place).await?;
        let stored = Arc::new(stored);
        let op = small::IndexOp::Narinfo { key, stored: stored.clone(), reply };
        // Under one lock, so that the order in the overlay is the order in the queue.
        let mut overlay = lock(&session.overlay);
        overlay.narinfos.insert(key, stored);
        place.push(Command::In(session.clone(), Act::Index(op)));
        Ok(())
    }

    /// Any keys of kept narinfos that name this NAR, at most `count_max`.
    pub async fn paths_of(
        &self,
        nar_hash: NarHash,
        count_max: usize,
    ) -> Result<Vec<StorePathHash>, Error> {
        let session = self.shared.session()?;
        let paths = self
            .shared
            .on_index(&session, move |session| small::paths(session, nar_hash, count_max));
        within(INDEX_WAIT, paths).await
    }

    /// The NAR, when it is held. The handle keeps it from eviction while it lives.
    pub async fn nar(&self, nar_hash: NarHash) -> Result<Option<HeldNar>, Error> {
        let session = self.shared.session()?;
        let shared = self.shared.clone();
        let find = move |session: &Arc<Session>| HeldNar::find(&shared, session, nar_hash);
        within(INDEX_WAIT, self.shared.on_index(&session, find)).await
    }

    /// Withdraws a NAR whose bytes are not what they should be.
    pub async fn withdraw_nar(&self, nar_hash: NarHash) -> Result<(), Error> {
        let session = self.shared.session()?;
        self.shared.ask(&session, |reply| Act::Withdraw { nar_hash, reply }).await
    }

    /// The `.ls` document of a held NAR.
    pub async fn listing(&self, nar_hash: NarHash) -> Result<Option<Bytes>, Error> {
        let session = self.shared.session()?;
        let listing =
            self.shared.on_index(&session, move |session| nar::listing(session, nar_hash));
        within(INDEX_WAIT, listing).await
    }

    /// Room for a fill; evicts to make it. What is not used is given back when it is dropped.
    pub async fn reserve(&self, len_bytes: u64) -> Result<Reservation, Error> {
        let session = self.shared.session()?;
        let left_bytes = layout::stream_takes(len_bytes);
        room::set_aside(&self.shared, &session, left_bytes).await?;
        Ok(Reservation { shared: self.shared.clone(), session, left_bytes })
    }

    /// Begins to write a NAR's zstd stream.
    pub async fn begin(&self, reservation: Reservation) -> Result<NarWriter, Error> {
        let session = reservation.session.clone();
        let fill = loop {
            if let Some(fill) = session.new_fill() {
                break fill;
            }
            self.shared.ask(&session, Act::Ids).await?;
        };
        NarWriter::new(self.shared.clone(), fill, reservation)
    }

    /// A small document by name (`log/...`, `realisations/...`).
    pub async fn document(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let session = self.shared.session()?;
        let asked = name.to_owned();
        let found = self.shared.on_index(&session, move |session| small::document(session, &asked));
        let found = within(INDEX_WAIT, found).await?;
        if found.is_some() {
            session.used(Used::Small(SmallKey::Document(name.to_owned())));
        }
        Ok(found)
    }

    /// Keeps a small document.
    pub async fn keep_document(
        &self,
        name: &str,
        body: Bytes,
        origin: Origin,
    ) -> Result<(), Error> {
        let session = self.shared.session()?;
        let name = name.to_owned();
        let op = |reply| Act::Index(small::IndexOp::Document { name, body, origin, reply });
        self.shared.ask(&session, op).await
    }
}

/// A bound for what asks the index.
async fn within<T>(
    wait: Duration,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(wait, answer).await.map_err(|_| Error::Slow(wait))?
}

#[cfg(test)]
mod tests;
