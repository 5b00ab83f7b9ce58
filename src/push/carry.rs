//! One thing, carried to one target: what is there already is left alone, a NAR goes before its
//! narinfo, and a path that somebody has otherwise is never overwritten.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tracing::{error, info, warn};

use super::Inner;
use super::bring::{self, Turns};
use super::others::Said;
use super::status::Desk;
use crate::nix::{Compression, NarInfo, StorePathHash};
use crate::store::{self, HeldNar, QueueRow, Queued, StoredNarInfo};
use crate::upstream::{self, Upstream};

/// How long the other upstreams are waited for: a row waits anyway, but not for ever for a cache
/// that is not the target.
const OTHERS_WAIT: Duration = Duration::from_secs(3);

/// A NAR that took longer than this to go up gives others time to put the same path: the target is
/// asked for its narinfo once more.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(20);

/// A narinfo's media type, as Nix sends it.
const NARINFO_TYPE: &str = "text/x-nix-narinfo";

/// How it ended, where it ended well enough to strike the row off or to leave it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// It is there now, and was not before; bytes that were sent.
    Put(u64),
    /// It was there.
    There,
    /// Another upstream has it.
    Elsewhere,
    /// The target has the path with another NAR.
    Differs,
    /// Another upstream has the path with another NAR: nothing is put, our signature is taken off.
    Withheld,
    /// Its row is no more.
    Gone,
    /// Its bytes are damaged, and the row says so now.
    Lost(&'static str),
}

/// Why it is to be tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The target's trouble, or the object's.
    #[error(transparent)]
    Target(#[from] upstream::Error),
    /// Ours.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It belongs to something that has not come yet.
    #[error("what it belongs to has not come yet")]
    Early,
}

impl Failed {
    /// The error and its causes on one line.
    pub(super) fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

/// What a carrier needs. Cheap to clone.
#[derive(Clone)]
pub(super) struct Carrier {
    pub(super) inner: Arc<Inner>,
    pub(super) target: Upstream,
    pub(super) desk: Arc<Desk>,
    pub(super) turns: Arc<Turns>,
}

/// What the target has of a path.
struct There {
    narinfo: NarInfo,
    /// The narinfo will be there for a while.
    lasts: bool,
    /// So will the NAR that it names.
    nar_lasts: bool,
}

impl Carrier {
    /// Carries the thing of this row, and strikes the row off.
    pub(super) async fn carry(&self, row: &QueueRow) -> Result<Carried, Failed> {
        let Self { inner, target, .. } = self;
        // What is waited for here may have been struck off or accepted again since it was read.
        let now = inner.store.queue_row(target.url(), row.what.clone()).await?;
        let Some(row) = now.filter(|row| !row.lost) else { return Ok(Carried::Gone) };
        let carried = match &row.what {
            Queued::Path(key) => Box::pin(self.path(*key)).await,
            Queued::Document(name) => Box::pin(self.document(name, &row)).await,
        };
        let carried = match carried {
            Err(Failed::Store(store::Error::Corrupt(_))) => Carried::Lost("its bytes are damaged"),
            carried => carried?,
        };
        if let Carried::Lost(why) = carried {
            error!(upstream = %target.url(), what = %name_of(&row.what), why, "queued object lost");
            inner.store.mark_lost(target.url(), row.what).await?;
        } else {
            bring::cache_info(self).await;
            inner.store.strike(target.url(), row.what, row.seq).await?;
        }
        Ok(carried)
    }

    async fn path(&self, key: StorePathHash) -> Result<Carried, Failed> {
        let Self { inner, desk, .. } = self;
        let Some((stored, held)) = inner.store.lookup(key).await? else {
            return Ok(Carried::Lost("its narinfo is not here"));
        };
        desk.names(&Queued::Path(key), stored.narinfo.store_path.base_name());
        let there = self.there(key).await?;
        if let Some(ended) = self.ends_with(&stored.narinfo, there.as_ref()) {
            return Ok(ended);
        }
        let stored = match self.ask_others(stored).await? {
            Ok(stored) => stored,
            Err(ended) => return Ok(ended),
        };
        if let Some(there) = there.filter(|there| there.nar_lasts) {
            let sent = self.put_narinfo(there.narinfo, &stored.narinfo).await?;
            return Ok(Carried::Put(sent));
        }
        let Some(held) = held else { return Ok(Carried::Lost("its NAR is not here")) };
        let began = Instant::now();
        let sent = bring::nar(self, &held).await?;
        let narinfo = in_bucket(&stored.narinfo, &held);
        if began.elapsed() > ASKED_AGAIN_AFTER {
            let there = self.there(key).await?;
            if let Some(ended) = self.ends_with(&stored.narinfo, there.as_ref()) {
                return Ok(ended);
            }
        }
        Ok(Carried::Put(sent + self.put_narinfo(narinfo, &stored.narinfo).await?))
    }

    /// The target's own narinfo of this path; one that does not parse is none.
    async fn there(&self, key: StorePathHash) -> Result<Option<There>, Failed> {
        let Some(text) = self.target.narinfo(key).await? else { return Ok(None) };
        let narinfo = match NarInfo::parse(&text, &self.inner.config.store_dir) {
            Ok(narinfo) if narinfo.store_path.hash() == key => narinfo,
            Ok(_) | Err(_) => {
                warn!(upstream = %self.target.url(), %key, "target's narinfo is not valid");
                return Ok(None);
            }
        };
        let lasts = self.lasts(&format!("{key}.narinfo"), None).await?;
        // A NAR elsewhere (an absolute URL, say) is not the target's to promise.
        let its_own = is_plain(&narinfo.url);
        let nar_lasts = its_own && self.lasts(&narinfo.url, narinfo.file_size).await?;
        Ok(Some(There { narinfo, lasts, nar_lasts }))
    }

    async fn lasts(&self, name: &str, len: Option<u64>) -> Result<bool, Failed> {
        let head = self.target.head(name).await?;
        Ok(head.is_some_and(|head| {
            len.is_none_or(|len| len == head.len) && bring::lasts(&head, SystemTime::now())
        }))
    }

    /// Whether what the target has ends it: all of it is there, or something else is.
    fn ends_with(&self, ours: &NarInfo, there: Option<&There>) -> Option<Carried> {
        let there = there?;
        let store_dir = &self.inner.config.store_dir;
        if there.narinfo.fingerprint(store_dir) != ours.fingerprint(store_dir) {
            warn!(upstream = %self.target.url(), path = %ours.store_path.base_name(),
                "target has this path with another NAR, ours is not put");
            return Some(Carried::Differs);
        }
        let signed = ours.signatures.iter().all(|sig| there.narinfo.signatures.contains(sig));
        (signed && there.lasts && there.nar_lasts).then_some(Carried::There)
    }

    /// What the other upstreams say now; they may not have answered when the path was accepted.
    async fn ask_others(
        &self,
        mut stored: StoredNarInfo,
    ) -> Result<Result<StoredNarInfo, Carried>, Failed> {
        let Self { inner, .. } = self;
        if inner.upstreams().others.is_empty() {
            return Ok(Ok(stored));
        }
        let key = stored.narinfo.store_path.hash();
        match inner.others_say(key, stored.narinfo.nar_hash, OTHERS_WAIT).await {
            Said::Absent | Said::Unknown => Ok(Ok(stored)),
            Said::Same(signatures) => {
                if add(&mut stored.narinfo, &signatures) {
                    inner.store.keep_narinfo(stored.clone()).await?;
                    inner.cache.path_changed(key);
                }
                Ok(if inner.config.everything { Ok(stored) } else { Err(Carried::Elsewhere) })
            }
            Said::Differs => {
                info!(path = %stored.narinfo.store_path.base_name(),
                    "another upstream has this path with another NAR, our signature is taken off");
                let signatures = &mut stored.narinfo.signatures;
                let before = signatures.len();
                signatures.retain(|signature| !inner.cache.is_own_key(signature.key_name()));
                if signatures.len() < before {
                    inner.store.keep_narinfo(stored).await?;
                    inner.cache.path_changed(key);
                }
                Ok(Err(Carried::Withheld))
            }
        }
    }

    /// Writes a narinfo with its own signatures and ours. Says how many bytes.
    async fn put_narinfo(&self, mut narinfo: NarInfo, ours: &NarInfo) -> Result<u64, Failed> {
        add(&mut narinfo, &ours.signatures);
        let name = format!("{}.narinfo", narinfo.store_path.hash());
        let text = narinfo.print(&self.inner.config.store_dir);
        Ok(self.put_small(&name, NARINFO_TYPE, text.into()).await?)
    }

    async fn put_small(
        &self,
        name: &str,
        media_type: &'static str,
        body: Bytes,
    ) -> Result<u64, upstream::Error> {
        let len = body.len();
        self.inner.limit.wait(len).await;
        self.target.put_small(name, media_type, body).await?;
        Ok(u64::try_from(len).unwrap_or(u64::MAX))
    }

    async fn document(&self, name: &str, row: &QueueRow) -> Result<Carried, Failed> {
        let Self { inner, target, desk, .. } = self;
        desk.names(&row.what, name.to_owned());
        let Some(body) = inner.store.document(name).await? else {
            return Ok(Carried::Lost("it is not here"));
        };
        let body = bring::document(inner, name, body, row.queued_at_s).await?;
        let len = u64::try_from(body.len()).unwrap_or(u64::MAX);
        if self.lasts(name, Some(len)).await?
            && target.document(name, upstream::DOCUMENT_LEN_MAX).await?.as_ref() == Some(&body)
        {
            return Ok(Carried::There);
        }
        Ok(Carried::Put(self.put_small(name, bring::media_type(name), body).await?))
    }
}

/// The narinfo as the bucket gets it.
fn in_bucket(ours: &NarInfo, held: &HeldNar) -> NarInfo {
    NarInfo {
        url: bring::nar_key(held),
        compression: Compression::Zstd,
        file_hash: Some(held.file_hash()),
        file_size: Some(held.file_size()),
        ..ours.clone()
    }
}

/// Whether it is the URL of a file beside the narinfo, as every client that puts writes it.
fn is_plain(url: &str) -> bool {
    let file = url.strip_prefix("nar/");
    file.is_some_and(|file| {
        !file.starts_with('.')
            && file.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
    })
}

/// Adds the signatures that are not there yet. Says whether there were any.
fn add(narinfo: &mut NarInfo, signatures: &[crate::nix::Signature]) -> bool {
    let before = narinfo.signatures.len();
    for signature in signatures {
        if !narinfo.signatures.contains(signature) {
            narinfo.signatures.push(signature.clone());
        }
    }
    narinfo.signatures.sort_unstable();
    narinfo.signatures.len() > before
}

/// For people.
pub(super) fn name_of(what: &Queued) -> String {
    match what {
        Queued::Path(key) => key.to_string(),
        Queued::Document(name) => name.clone(),
    }
}
