//! What waits for the push targets, for a backup: read as it is, changed by nobody.

use bytes::{Bytes, BytesMut};

use super::Push;
use crate::nix::{Compression, NarHash, NarInfo, StoreDir, StorePathHash, UploadName};
use crate::store::{Error, HeldNar, QueueRow, Queued, Store};

/// Bytes of a NAR or a document that are read at once: some rows, below what an answer to a command may have.
const PIECE_LEN: usize = 512 * 1024;

/// A path that waits.
#[derive(Debug, Clone)]
pub struct WaitingPath {
    /// Its narinfo, as whoever pushes it again would write it: it names the stored file.
    pub narinfo: String,
    /// Its NAR.
    pub nar_hash: NarHash,
    /// The stored file's name below `nar/`.
    pub file_name: String,
    /// Bytes of the stored file.
    pub file_size: u64,
}

/// A row of a target's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRow {
    /// Its place in the order of acceptance.
    pub seq: u64,
    /// What waits.
    pub what: WaitingFor,
    /// Whether its bytes turned out damaged.
    pub lost: bool,
}

/// What waits for a target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WaitingFor {
    /// A path: its NAR and its narinfo.
    Path(StorePathHash),
    /// A document that was PUT, by its name.
    Document(String),
}

/// Reads it. Cheap to clone.
#[derive(Clone)]
pub struct Waiting {
    store: Store,
    store_dir: StoreDir,
}

impl Push {
    /// What waits here.
    pub fn waiting(&self) -> Waiting {
        let store_dir = self.inner.config.store_dir.clone();
        Waiting { store: self.inner.store.clone(), store_dir }
    }
}

impl Waiting {
    /// The targets that have rows, configured or not.
    pub fn targets(&self) -> Vec<String> {
        self.store.queues().into_iter().map(|queue| queue.target).collect()
    }

    /// Rows of a target behind `after_seq`, at most `count_max`.
    pub async fn rows(
        &self,
        target: &str,
        after_seq: u64,
        count_max: usize,
    ) -> Result<Vec<WaitingRow>, Error> {
        let rows = self.store.queue(target, after_seq, count_max).await?;
        Ok(rows.into_iter().map(row).collect())
    }

    /// `None`: it is not held any more.
    pub async fn path(&self, key: StorePathHash) -> Result<Option<WaitingPath>, Error> {
        let Some((stored, Some(held))) = self.store.lookup(key).await? else { return Ok(None) };
        let name = UploadName { file_hash: held.file_hash(), ending: Compression::Zstd };
        let narinfo = NarInfo {
            url: format!("nar/{name}"),
            compression: Compression::Zstd,
            file_hash: Some(held.file_hash()),
            file_size: Some(held.file_size()),
            ..stored.narinfo
        };
        Ok(Some(WaitingPath {
            narinfo: narinfo.print(&self.store_dir),
            nar_hash: held.nar_hash(),
            file_name: name.to_string(),
            file_size: held.file_size(),
        }))
    }

    /// The stored file's next bytes from `offset`; empty at its end, `None` when it is not held any
    /// more.
    pub async fn piece(&self, nar_hash: NarHash, offset: u64) -> Result<Option<Bytes>, Error> {
        match self.store.nar(nar_hash).await? {
            Some(held) => read(&held, offset).await.map(Some),
            None => Ok(None),
        }
    }

    /// The next bytes from `offset` of a document that waits; empty at its end.
    pub async fn document(&self, name: &str, offset: usize) -> Result<Option<Bytes>, Error> {
        let whole = self.store.document(name).await?;
        Ok(whole.map(|whole| {
            let from = offset.min(whole.len());
            whole.slice(from..from.saturating_add(PIECE_LEN).min(whole.len()))
        }))
    }
}

fn row(row: QueueRow) -> WaitingRow {
    let what = match row.what {
        Queued::Path(key) => WaitingFor::Path(key),
        Queued::Document(name) => WaitingFor::Document(name),
    };
    WaitingRow { seq: row.seq, what, lost: row.lost }
}

async fn read(held: &HeldNar, mut offset: u64) -> Result<Bytes, Error> {
    let mut piece = BytesMut::new();
    while piece.len() < PIECE_LEN {
        let row = held.read(offset).await?;
        if row.is_empty() {
            break;
        }
        offset += u64::try_from(row.len()).unwrap_or(u64::MAX);
        piece.extend_from_slice(&row);
    }
    Ok(piece.freeze())
}
