//! The push side of the disk: uploads that wait for their narinfo, what was acknowledged, and the
//! rows of the queue. What is called durable here has reached the medium when the call returns.

use bytes::Bytes;

use super::{Error, HeldNar, Store, StoredNarInfo};
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
        _name: UploadName,
        _alias: Alias,
        _nar: HeldNar,
    ) -> Result<(), Error> {
        todo!()
    }

    /// The alias of this name.
    pub async fn alias(&self, _name: UploadName) -> Result<Option<Alias>, Error> {
        todo!()
    }

    /// Bytes and number of uploads that no narinfo binds yet.
    pub fn unbound_uploads(&self) -> (u64, u64) {
        todo!()
    }

    /// Removes uploads that came before `before_s` and that no narinfo binds, and their NARs where
    /// no path has them. Says how many.
    pub async fn drop_unbound(&self, _before_s: u64) -> Result<u64, Error> {
        todo!()
    }

    /// Publishes a path and queues it, in one durable transaction: narinfo, alias and rows are all
    /// there after a power cut, or none is. A row that is there already gets a new `seq`. While a
    /// row of any target waits, neither the NAR nor the narinfo is evicted.
    pub async fn accept(&self, _acceptance: Acceptance, _now_s: u64) -> Result<(), Error> {
        todo!()
    }

    /// Keeps a document and queues it, in one durable transaction.
    pub async fn accept_document(
        &self,
        _name: &str,
        _body: Bytes,
        _targets: Vec<String>,
        _now_s: u64,
    ) -> Result<(), Error> {
        todo!()
    }

    /// Rows of a target in the order of `seq`, those behind `after_seq`, at most `count_max`.
    pub async fn queue(
        &self,
        _target: &str,
        _after_seq: u64,
        _count_max: usize,
    ) -> Result<Vec<QueueRow>, Error> {
        todo!()
    }

    /// The row of one thing at a target.
    pub async fn queue_row(&self, _target: &str, _what: Queued) -> Result<Option<QueueRow>, Error> {
        todo!()
    }

    /// The target has it: its row goes, unless it was accepted again meanwhile (another `seq`).
    /// The last row of a NAR lets it be evicted like what an upstream has. Durable with the next
    /// group: a row that comes back after a power cut finds its objects there.
    pub async fn strike(&self, _target: &str, _what: Queued, _seq: u64) -> Result<(), Error> {
        todo!()
    }

    /// Marks a row as lost: its bytes are damaged. Durable.
    pub async fn mark_lost(&self, _target: &str, _what: Queued) -> Result<(), Error> {
        todo!()
    }

    /// Forgets the rows of a target, or only its lost ones. Says how many. Durable.
    pub async fn forget_target(&self, _target: &str, _only_lost: bool) -> Result<u64, Error> {
        todo!()
    }

    /// Every target that has rows, configured or not. From memory: never waits for the disk.
    pub fn queues(&self) -> Vec<TargetQueue> {
        todo!()
    }

    /// Bytes of NARs that may not be evicted: queued, or uploaded and not bound yet.
    pub fn kept_back_bytes(&self) -> u64 {
        todo!()
    }
}
