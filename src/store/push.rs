//! The push side of the disk: uploads that wait for their narinfo, what was acknowledged, and the
//! rows of the queue. What is called durable here has reached the medium when the call returns.

use bytes::Bytes;

use super::accepts::{PushOp, takes};
use super::command::{Act, Command};
use super::keys::SmallKey;
use super::queue_care::Forgetting;
use super::queue_rows;
use super::session::Used;
use super::shared::WRITER_WAIT;
use super::small::IndexOp;
use super::uploads::{self, alias_key};
use super::{Error, HeldNar, INDEX_WAIT, Store, StoredNarInfo, lock, within};
use crate::nix::{Compression, NarHash, StorePathHash, UploadName};

/// What an uploader's file was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// SHA-256 of the NAR in it.
    pub nar_hash: NarHash,
    /// Bytes of that NAR.
    pub nar_size: u64,
    /// How the file was packed, by its own bytes.
    pub compression: Compression,
    /// Bytes of the file.
    pub file_size: u64,
    /// When it came, in seconds since 1970 by this machine's clock.
    pub put_at_s: u64,
    /// Whether a narinfo names it. One that none names goes after a day.
    pub bound: bool,
}

/// What is queued.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queued {
    /// A path: its NAR and its narinfo.
    Path(StorePathHash),
    /// A document that was PUT, by its name.
    Document(String),
}

/// A row of a target's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRow {
    /// What is to be carried.
    pub what: Queued,
    /// Its place in the order of acceptance; a new one whenever it is accepted again.
    pub seq: u64,
    /// When it was accepted, in seconds since 1970 by this machine's clock.
    pub queued_at_s: u64,
    /// Bytes to be carried: the stored stream, or the document.
    pub len_bytes: u64,
    /// Whether its bytes turned out damaged: shown until a human has seen it.
    pub lost: bool,
}

/// What waits for one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetQueue {
    /// The target's URL without user data.
    pub target: String,
    /// Rows that wait, the lost ones left out.
    pub waiting: u64,
    /// Bytes of those.
    pub waiting_bytes: u64,
    /// When the oldest of those was accepted.
    pub oldest_at_s: Option<u64>,
    /// Rows that are lost.
    pub lost: u64,
}

/// A path that is to be acknowledged.
#[derive(Debug, Clone)]
pub struct Acceptance {
    /// Its narinfo, with our signature where it gets one.
    pub stored: StoredNarInfo,
    /// The NAR, held so that nothing takes it away before it is queued.
    pub nar: HeldNar,
    /// The uploader's file that the narinfo binds, when it came as one.
    pub upload: Option<UploadName>,
    /// The URLs of the targets that get a row.
    pub targets: Vec<String>,
}

impl Store {
    /// Keeps an uploader's file name as an alias of a held NAR, which is safe from eviction until
    /// a narinfo binds it or a day has passed. Visible at once, durable with the next group.
    pub async fn keep_upload(
        &self,
        name: UploadName,
        alias: Alias,
        nar: HeldNar,
    ) -> Result<(), Error> {
        let session = self.shared.session()?;
        let place = async { self.shared.commands.place().await.ok_or(Error::Closing) };
        let place = within(WRITER_WAIT, place).await?;
        let key = alias_key(name);
        // Under one lock, so that the order in the overlay is the order in the queue.
        let mut overlay = lock(&session.overlay);
        overlay.aliases.insert(key, alias);
        let mut kept = lock(&session.kept);
        kept.unbound.insert(key, alias.file_size);
        kept.coming_bytes += takes(&nar);
        drop(kept);
        let op = PushOp::Upload { key, alias, nar };
        place.push(Command::In(session.clone(), Act::Push(op)));
        Ok(())
    }

    /// The alias of this name.
    pub async fn alias(&self, name: UploadName) -> Result<Option<Alias>, Error> {
        let session = self.shared.session()?;
        let key = alias_key(name);
        let found = self.shared.on_index(&session, move |session| uploads::alias(session, &key));
        let found = within(INDEX_WAIT, found).await?;
        if found.is_some() {
            session.used(Used::Small(SmallKey::Alias(key)));
        }
        Ok(found)
    }

    /// Bytes of the files, as they came, and number of uploads that no narinfo binds yet.
    pub fn unbound_uploads(&self) -> (u64, u64) {
        let kept = self.shared.kept();
        let kept = lock(&kept);
        let count = u64::try_from(kept.unbound.len()).unwrap_or(u64::MAX);
        (kept.unbound.values().sum(), count)
    }

    /// Removes uploads that came before `before_s` and that no narinfo binds, and their NARs where
    /// no path has them. Says how many.
    pub async fn drop_unbound(&self, before_s: u64) -> Result<u64, Error> {
        let session = self.shared.session()?;
        let sweep = |reply| Act::Push(PushOp::Sweep { before_s, reply });
        self.shared.ask(&session, sweep).await
    }

    /// Publishes a path and queues it, in one durable transaction: narinfo, alias and rows are all
    /// there after a power cut, or none is. A row that is there already gets a new `seq`. While a
    /// row of any target waits, neither the NAR nor the narinfo is evicted; without rows the NAR is
    /// of the narinfo's origin. [`Error::Corrupt`] when the NAR was withdrawn meanwhile.
    pub async fn accept(&self, acceptance: Acceptance, now_s: u64) -> Result<(), Error> {
        let session = self.shared.session()?;
        let acceptance = Box::new(acceptance);
        let accept = |reply| Act::Push(PushOp::Accept { acceptance, now_s, reply });
        self.shared.ask(&session, accept).await
    }

    /// Keeps a document and queues it, in one durable transaction.
    pub async fn accept_document(
        &self,
        name: &str,
        body: Bytes,
        targets: Vec<String>,
        now_s: u64,
    ) -> Result<(), Error> {
        let session = self.shared.session()?;
        let name = name.to_owned();
        let accept = |reply| Act::Push(PushOp::Document { name, body, targets, now_s, reply });
        self.shared.ask(&session, accept).await
    }

    /// Rows of a target in the order of `seq`, those behind `after_seq`, at most `count_max`. The
    /// first `seq` is 1.
    pub async fn queue(
        &self,
        target: &str,
        after_seq: u64,
        count_max: usize,
    ) -> Result<Vec<QueueRow>, Error> {
        let session = self.shared.session()?;
        let target = target.to_owned();
        let rows = self.shared.on_index(&session, move |session| {
            queue_rows::rows(session, &target, after_seq, count_max)
        });
        within(INDEX_WAIT, rows).await
    }

    /// The row of one thing at a target.
    pub async fn queue_row(&self, target: &str, what: Queued) -> Result<Option<QueueRow>, Error> {
        let session = self.shared.session()?;
        let target = target.to_owned();
        let row =
            self.shared.on_index(&session, move |session| queue_rows::row(session, &target, what));
        within(INDEX_WAIT, row).await
    }

    /// The target has it: its row goes, unless it was accepted again meanwhile (another `seq`).
    /// The last row of a NAR lets it be evicted like what an upstream has. Durable with the next
    /// group: a row that comes back after a power cut finds its objects there.
    pub async fn strike(&self, target: &str, what: Queued, seq: u64) -> Result<(), Error> {
        let session = self.shared.session()?;
        let target = target.to_owned();
        let strike = |reply| Act::Index(IndexOp::Strike { target, what, seq, reply });
        self.shared.ask(&session, strike).await
    }

    /// Marks a row as lost: its bytes are damaged. Durable. It waits no more; accepted again, it
    /// does.
    pub async fn mark_lost(&self, target: &str, what: Queued) -> Result<(), Error> {
        let session = self.shared.session()?;
        let target = target.to_owned();
        let lost = |reply| Act::Push(PushOp::Lost { target, what, reply });
        self.shared.ask(&session, lost).await
    }

    /// Forgets the rows of a target, or only its lost ones. Says how many. Durable.
    pub async fn forget_target(&self, target: &str, only_lost: bool) -> Result<u64, Error> {
        let session = self.shared.session()?;
        let (target, at) = (target.to_owned(), Forgetting::default());
        let forget = |reply| Act::Push(PushOp::Forget { target, only_lost, at, reply });
        self.shared.ask(&session, forget).await
    }

    /// Every target that has rows, configured or not. From memory: never waits for the disk. What
    /// was last known while the store is degraded.
    pub fn queues(&self) -> Vec<TargetQueue> {
        lock(&self.shared.kept()).queues()
    }

    /// Bytes of NARs that may not be evicted: queued, pinned, or uploaded and not bound yet.
    pub fn kept_back_bytes(&self) -> u64 {
        let kept = self.shared.kept();
        let kept = lock(&kept);
        kept.bytes + kept.coming_bytes
    }

    /// Those of them that wait: queued, or uploaded and not bound yet.
    pub fn waiting_bytes(&self) -> u64 {
        let kept = self.shared.kept();
        let kept = lock(&kept);
        kept.waiting_bytes() + kept.coming_bytes
    }
}
