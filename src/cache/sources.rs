//! Where a NAR can be had: what is remembered first, then each upstream's own word; one after the
//! other, each opened and looked at before it counts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::timeout;
use tracing::info;

use super::ask::Said;
use super::fill::Throttle;
use super::ingest::{Codec, SNIFF_LEN, sniff};
use super::{Inner, narinfo};
use crate::nix::{NarInfo, NarName};
use crate::store::StoredNarInfo;
use crate::upstream::{self, NarBody, Resume, Upstream};

/// For one upstream's narinfo while a client waits for the NAR.
const NARINFO_WAIT: Duration = Duration::from_secs(5);

/// Other paths with the same NAR whose narinfos are looked at.
const PATHS_MAX: usize = 4;

/// Paths whose promises of a NAR that is nowhere are confirmed anew.
const PROMISES_MAX: usize = 64;

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
    /// As they were when it began.
    upstreams: Arc<[Upstream]>,
    remembered: VecDeque<Source>,
    /// Upstreams that were asked for their narinfo anew.
    asked: usize,
    /// URLs that were tried already, with their upstream.
    tried: Vec<(Arc<str>, String)>,
    /// Whether the narinfo of the name's key is kept here.
    known: bool,
    /// Whether a source did not answer, or not with the file: then it may still have the NAR.
    in_trouble: bool,
    /// Whether an upstream has the path with another NAR.
    other_nar: bool,
    /// How fast it may come.
    pub(super) throttle: Option<Throttle>,
}

impl Sources {
    /// This one and no other. Where it fails, nothing is said of the NAR elsewhere.
    pub(super) fn only(inner: Arc<Inner>, name: NarName, source: Source) -> Self {
        Self {
            upstreams: Arc::new([]),
            inner,
            name,
            remembered: VecDeque::from([source]),
            asked: 0,
            tried: Vec::new(),
            known: true,
            in_trouble: true,
            other_nar: false,
            throttle: None,
        }
    }

    /// Collects what is remembered.
    pub(super) async fn new(inner: Arc<Inner>, name: NarName) -> Self {
        let mut sources = Self {
            upstreams: inner.upstreams(),
            inner,
            name,
            remembered: VecDeque::new(),
            asked: 0,
            tried: Vec::new(),
            known: false,
            in_trouble: false,
            other_nar: false,
            throttle: None,
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
        let upstream = self.upstreams.iter().find(|one| **one.url() == *stored.upstream);
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
            if self.tried.contains(&place) {
                continue;
            }
            if source.upstream.is_resting() || self.inner.memory.wrong.holds(&wrong) {
                self.in_trouble = true;
                continue;
            }
            self.tried.push(place);
            return Some(source);
        }
    }

    /// Asks the next upstream for its narinfo: `None` when all were asked, `Some(None)` when this
    /// one has not this NAR.
    async fn ask_next(&mut self) -> Option<Option<Source>> {
        let upstream = self.upstreams.get(self.asked)?.clone();
        self.asked += 1;
        let NarName { nar_hash, key } = self.name;
        let asking = narinfo::ask_one(&self.inner, &upstream, key, Some(nar_hash));
        let stored = match timeout(NARINFO_WAIT, Box::pin(asking)).await {
            Ok(Said::Found(stored)) => stored,
            Ok(Said::Other(_)) => {
                self.other_nar = true;
                return Some(None);
            }
            Ok(Said::Absent) => return Some(None),
            Ok(Said::Trouble) | Err(_) => {
                self.in_trouble = true;
                return Some(None);
            }
        };
        let narinfo = stored.narinfo.clone();
        if !self.known {
            self.known = true;
            narinfo::keep(&self.inner, stored, None).await;
        }
        Some(Some(Source { upstream, narinfo }))
    }

    /// Asks for the file and looks at its first bytes; `None` when it cannot be had there.
    pub(super) async fn open(&mut self, source: Source) -> Option<Opened> {
        let upstream = Arc::clone(source.upstream.url());
        let silence = self.inner.patience.silence;
        let why = match timeout(silence, open(source)).await {
            Ok(Ok(Some(opened))) => return Some(opened),
            Ok(Ok(None)) => {
                info!(%upstream, nar = %self.name, "the NAR file is missing");
                return None;
            }
            Ok(Err(unusable)) => unusable.to_string(),
            Err(_) => "nothing came in time".to_owned(),
        };
        info!(%upstream, nar = %self.name, why, "the NAR file could not be opened");
        self.in_trouble = true;
        None
    }

    /// A source answered, but the NAR did not come whole: it may still be there.
    pub(super) const fn failed(&mut self) {
        self.in_trouble = true;
    }

    /// There is no next place. Unless one that may have the NAR is in trouble, it is nowhere, and
    /// a promise that nobody can keep is not repeated: this path's is withdrawn, that of another
    /// path with the same NAR is confirmed first from now on.
    pub(super) async fn give_up(&self) {
        let Self { inner, name, .. } = self;
        if self.in_trouble {
            return;
        }
        info!(nar = %name, "the NAR is nowhere to be had");
        let others = inner.store.paths_of(name.nar_hash, PROMISES_MAX).await;
        for key in others.unwrap_or_default() {
            inner.memory.confirmed.forget(&key);
            inner.memory.forget_ready(key);
        }
        inner.path_goes(*name).await;
        narinfo::withdraw(inner, *name, !self.other_nar).await;
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

/// Why a file that is there is of no use this time. It is asked again by the next client: only
/// bytes that went through to the end and are not the NAR are remembered.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    #[error("it begins with no known codec")]
    NoCodec,
}

async fn open(source: Source) -> Result<Option<Opened>, Unusable> {
    let Some(mut body) = source.upstream.nar(&source.narinfo.url, None).await? else {
        return Ok(None);
    };
    let etag = body.etag().map(ToOwned::to_owned);
    let (head, ended) = read_head(&mut body).await?;
    let codec = sniff(source.narinfo.compression, &head).ok_or(Unusable::NoCodec)?;
    Ok(Some(Opened { source, codec, head, body: (!ended).then_some(body), etag }))
}

/// The first bytes, as many as are looked at, and whether they were all.
async fn read_head(body: &mut NarBody) -> Result<(Bytes, bool), upstream::Error> {
    let mut head = BytesMut::new();
    loop {
        match body.chunk().await? {
            // Mostly the first chunk is enough, and is passed on without a copy.
            Some(bytes) if head.is_empty() && bytes.len() >= SNIFF_LEN => {
                return Ok((bytes, false));
            }
            Some(bytes) => head.extend_from_slice(&bytes),
            None => return Ok((head.freeze(), true)),
        }
        if head.len() >= SNIFF_LEN {
            return Ok((head.freeze(), false));
        }
    }
}
