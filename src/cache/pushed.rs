//! What the write side needs of the cache: memory to unpack uploads, the judgement of upstreams'
//! narinfos, and that nothing is remembered that a push made untrue.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use super::ingest::{Codec, Form, NarLen, Pipe, Plan};
use super::permits::{self, Permit};
use super::{Cache, Inner, fill, trust};
use crate::nix::{NarHash, NarInfo, StorePathHash, TrustedKeys};
use crate::store::HeldNar;

/// An upload that is being unpacked. Its memory is given back when it is dropped.
pub(crate) struct Unpacking {
    /// In, out, and how it ends.
    pub(crate) pipe: Pipe,
    _permit: Permit,
}

impl Inner {
    /// A NAR has become held, and with it the paths that it is of, whatever NAR they had before.
    pub(super) async fn nar_came(&self, nar_hash: NarHash) {
        self.scrub.repairs.came(nar_hash);
        let paths = self.store.paths_of(nar_hash, fill::PATHS_MAX).await;
        for key in paths.unwrap_or_default() {
            self.scrub.repairs.path_came(key);
            self.memory.forget_ready(key);
        }
    }
}

impl Cache {
    /// Begins to unpack an upload, once there is memory for it; `None` when there was none for a
    /// minute, or it wants more than there can be.
    pub(crate) async fn unpack(&self, codec: Codec, nar_len: NarLen) -> Option<Unpacking> {
        let form = if codec.is_keepable() {
            Form::Kept
        } else {
            Form::Recompressed { level: self.inner.config.compression_level }
        };
        let cost = permits::cost_bytes(codec, form, nar_len.most());
        let permit = self.inner.permits.take_for_upload(cost).await?;
        let plan = Plan { codec, form, nar_len, sums_source: true };
        Some(Unpacking { pipe: self.inner.ingest.start(plan), _permit: permit })
    }

    /// A NAR has become held: what was said of its paths had no file hash, or another one.
    pub(crate) async fn nar_came(&self, nar_hash: NarHash) {
        self.inner.nar_came(nar_hash).await;
    }

    /// A path was accepted with a NAR that is here.
    pub(crate) fn path_came(&self, key: StorePathHash) {
        self.inner.scrub.repairs.path_came(key);
        self.path_changed(key);
    }

    /// A path was dropped since an upstream has it with another NAR: it is to be had from there.
    pub(crate) fn path_is_elsewhere(&self, key: StorePathHash) {
        self.inner.scrub.repairs.path_came(key);
    }

    /// A path's narinfo was written: it is not absent any more, and what was ready for it is old.
    pub(crate) fn path_changed(&self, key: StorePathHash) {
        self.inner.memory.absent.forget(&key);
        self.inner.memory.forget_ready(key);
    }

    /// Whether it is a key of this cache, the present one or a rotated one.
    pub(crate) fn is_own_key(&self, name: &str) -> bool {
        let own = super::locked(&self.inner.own).clone();
        own.trusted.keys().iter().any(|key| key.name() == name)
    }

    /// A document was accepted.
    pub(crate) fn document_came(&self, name: &str) {
        self.inner.memory.absent_documents.forget(&Arc::from(name));
    }

    /// An upstream's narinfo of this key, when it counts: by the upstream's keys (`None`: it is
    /// believed without) or by one of ours.
    pub(crate) fn judge(
        &self,
        text: &[u8],
        key: StorePathHash,
        keys: Option<&TrustedKeys>,
    ) -> Result<NarInfo, trust::Distrust> {
        let Self { inner } = self;
        trust::judge(text, key, keys, &inner.own().trusted, &inner.config.store_dir)
    }

    /// A narinfo as clients see it.
    pub(crate) fn shown(&self, narinfo: &NarInfo, held: Option<&HeldNar>) -> Bytes {
        trust::for_clients(narinfo, held).print(&self.inner.config.store_dir).into()
    }

    /// Runs behind the answers until it ends or the cache is closed. The caller bounds how many.
    pub(crate) fn behind(&self, work: impl Future<Output = ()> + Send + 'static) {
        let closing = self.inner.closing.clone();
        self.inner.spawn(async move {
            closing.run_until_cancelled(work).await;
        });
    }
}
