//! Where a NAR can be had: what is remembered first, then each upstream's own word; one after the
//! other, each opened and looked at before it counts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::timeout;
use tracing::{debug, info};

use super::ask::Said;
use super::ingest::{Codec, SNIFF_LEN, sniff};
use super::{Inner, narinfo};
use crate::nix::{NarInfo, NarName};
use crate::store::StoredNarInfo;
use crate::upstream::{NarBody, Resume, Upstream};

/// For one upstream's narinfo while a client waits for the NAR.
const NARINFO_WAIT: Duration = Duration::from_secs(5);

/// Other paths with the same NAR whose narinfos are looked at.
const PATHS_MAX: usize = 4;

/// One place where the NAR is said to be.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) upstream: Upstream,
    pub(super) narinfo: NarInfo,
}

/// A source that answered.
pub(super) struct Opened {
    pub(super) source: Source,
    pub(super) codec: Codec,
    /// The first bytes, which were looked at.
    pub(super) head: Bytes,
    /// The rest; `None` when the head was all.
    pub(super) body: Option<NarBody>,
    pub(super) etag: Option<String>,
}

/// The sources of one NAR.
pub(super) struct Sources {
    pub(super) inner: Arc<Inner>,
    pub(super) name: NarName,
    remembered: VecDeque<Source>,
    /// Upstreams that were asked for their narinfo anew.
    asked: usize,
    /// URLs that were tried already, with their upstream.
    tried: Vec<(Arc<str>, String)>,
    /// Whether the narinfo of the name's key is kept here.
    known: bool,
}

impl Sources {
    /// Collects what is remembered.
    pub(super) async fn new(inner: Arc<Inner>, name: NarName) -> Self {
        let mut sources = Self {
            inner,
            name,
            remembered: VecDeque::new(),
            asked: 0,
            tried: Vec::new(),
            known: false,
        };
        if let Ok(Some((stored, _))) = sources.inner.store.lookup(name.key).await {
            sources.known = true;
            sources.remember(stored);
        }
        let others = sources.inner.store.paths_of(name.nar_hash, PATHS_MAX).await;
        for key in others.unwrap_or_default() {
            if key != name.key
                && let Ok(Some((stored, _))) = sources.inner.store.lookup(key).await
            {
                sources.remember(stored);
            }
        }
        sources
    }

    fn remember(&mut self, stored: StoredNarInfo) {
        let upstream = self.inner.upstreams.iter().find(|one| **one.url() == *stored.upstream);
        if let Some(upstream) = upstream
            && stored.narinfo.nar_hash == self.name.nar_hash
        {
            let source = Source { upstream: upstream.clone(), narinfo: stored.narinfo };
            self.remembered.push_back(source);
        }
    }

    /// Puts a source back: it may be tried once more.
    pub(super) fn again(&mut self, source: Source) {
        let url = &source.narinfo.url;
        self.tried.retain(|(upstream, tried)| upstream != source.upstream.url() || tried != url);
        self.remembered.push_front(source);
    }

    /// The next place to try.
    pub(super) async fn next(&mut self) -> Option<Source> {
        loop {
            let source = match self.remembered.pop_front() {
                Some(source) => source,
                None => match self.ask_next().await? {
                    Some(source) => source,
                    None => continue,
                },
            };
            let place = (Arc::clone(source.upstream.url()), source.narinfo.url.clone());
            let wrong = (Arc::clone(source.upstream.url()), self.name.nar_hash);
            if source.upstream.is_resting()
                || self.tried.contains(&place)
                || self.inner.memory.wrong.holds(&wrong)
            {
                continue;
            }
            self.tried.push(place);
            return Some(source);
        }
    }

    /// Asks the next upstream for its narinfo: `None` when all were asked, `Some(None)` when this
    /// one has not this NAR.
    async fn ask_next(&mut self) -> Option<Option<Source>> {
        let upstream = self.inner.upstreams.get(self.asked)?.clone();
        self.asked += 1;
        let NarName { nar_hash, key } = self.name;
        let asking = narinfo::ask_one(&self.inner, &upstream, key, Some(nar_hash));
        let Ok(Said::Found(stored)) = timeout(NARINFO_WAIT, Box::pin(asking)).await else {
            return Some(None);
        };
        let narinfo = stored.narinfo.clone();
        if !self.known {
            self.known = true;
            narinfo::keep(&self.inner, stored, None).await;
        }
        Some(Some(Source { upstream, narinfo }))
    }

    /// Asks for the file and looks at its first bytes; `None` when it cannot be had there.
    pub(super) async fn open(&self, source: Source) -> Option<Opened> {
        let url = &source.narinfo.url;
        let silence = self.inner.patience.silence;
        let mut body = match timeout(silence, source.upstream.nar(url, None)).await {
            Ok(Ok(Some(body))) => body,
            Ok(Ok(None)) => {
                info!(upstream = %source.upstream.url(), url, "NAR is missing");
                return None;
            }
            Ok(Err(error)) => {
                debug!(upstream = %source.upstream.url(), url,
                    error = &error as &dyn std::error::Error, "NAR could not be fetched");
                return None;
            }
            Err(_) => return None,
        };
        let etag = body.etag().map(ToOwned::to_owned);
        let (head, ended) = read_head(&mut body, silence).await?;
        let Some(codec) = sniff(source.narinfo.compression, &head) else {
            info!(upstream = %source.upstream.url(), url, "the NAR file begins with no known codec");
            let wrong = (Arc::clone(source.upstream.url()), self.name.nar_hash);
            self.inner.memory.wrong.note(wrong, ());
            return None;
        };
        Some(Opened { source, codec, head, body: (!ended).then_some(body), etag })
    }

    /// Goes on where a transfer stopped.
    pub(super) async fn resume(
        &self,
        source: &Source,
        offset: u64,
        etag: Option<String>,
    ) -> Option<NarBody> {
        let resume = Resume { offset, etag };
        let asked = source.upstream.nar(&source.narinfo.url, Some(resume));
        timeout(self.inner.patience.silence, asked).await.ok()?.ok()?
    }
}

/// The first bytes, as many as are looked at, and whether they were all.
async fn read_head(body: &mut NarBody, silence: Duration) -> Option<(Bytes, bool)> {
    let mut head = BytesMut::new();
    loop {
        match timeout(silence, body.chunk()).await {
            // Mostly the first chunk is enough, and is passed on without a copy.
            Ok(Ok(Some(bytes))) if head.is_empty() && bytes.len() >= SNIFF_LEN => {
                return Some((bytes, false));
            }
            Ok(Ok(Some(bytes))) => head.extend_from_slice(&bytes),
            Ok(Ok(None)) => return Some((head.freeze(), true)),
            Ok(Err(_)) | Err(_) => return None,
        }
        if head.len() >= SNIFF_LEN {
            return Some((head.freeze(), false));
        }
    }
}
