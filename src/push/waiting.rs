//! What waits for the push targets, for a backup: read as it is, changed by nobody.

use bytes::{Bytes, BytesMut};

use super::Push;
use crate::nix::{Compression, NarHash, NarInfo, StoreDir, StorePathHash, UploadName};
use crate::store::{Error, HeldNar, QueueRow, Store};

/// Bytes of a NAR that are read at once: some rows, below what an answer to a command may have.
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
    ) -> Result<Vec<QueueRow>, Error> {
        self.store.queue(target, after_seq, count_max).await
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

    /// A document that waits.
    pub async fn document(&self, name: &str) -> Result<Option<Bytes>, Error> {
        self.store.document(name).await
    }
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
