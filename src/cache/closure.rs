//! The closure of some paths, by the references in their narinfos: those that are kept here, and
//! those of the upstreams.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

use super::narinfo::{self, Answer};
use super::{Errand, Inner, Lack, Why};
use crate::nix::{Compression, NarHash, NarInfo, NarName, StorePath, StorePathHash};

/// Paths of a closure: ten times those of a large desktop.
pub(super) const PATHS_MAX: usize = 200_000;

/// Questions at once: few enough to leave clients their places, and a folder its disk.
const QUESTIONS_MAX: usize = 16;

/// How often an upstream in trouble is asked for one path.
const TRIES_MAX: u32 = 3;

/// How long after a question that ended in trouble it is asked again, longer each time.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// NARs whose state is asked of the store in one go.
const HOLDINGS_MAX: usize = 512;

/// Lacking paths that are told; more are counted.
const LACKS_MAX: usize = 1000;

/// A NAR of the closure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) name: NarName,
    /// About what comes over the line for it.
    pub(super) line_bytes: u64,
    /// What it takes in the store, or about that while it is not held.
    pub(super) takes_bytes: u64,
    pub(super) is_held: bool,
    /// It may not be evicted already.
    pub(super) is_kept: bool,
}

/// A closure.
#[derive(Debug, Default)]
pub(super) struct Closure {
    pub(super) roots: Vec<StorePath>,
    pub(super) paths: Vec<StorePathHash>,
    /// Each NAR once.
    pub(super) nars: Vec<Member>,
    /// Paths that cannot be had, some of them, and how many they are.
    pub(super) lacks: Vec<Lack>,
    pub(super) lack_count: usize,
}

/// A path that is to be looked at, and the first that was seen to refer to it.
struct Step {
    key: StorePathHash,
    path: Option<StorePath>,
    referrer: Option<StorePath>,
}

/// Walks the closure; says how many paths are known now and then.
pub(super) async fn walk(
    inner: &Arc<Inner>,
    roots: &[StorePathHash],
    told: impl Fn(usize),
) -> Result<Closure, Errand> {
    let mut closure = Closure::default();
    let (mut seen, mut nars) = (HashSet::new(), HashSet::new());
    let mut waiting: VecDeque<Step> = VecDeque::new();
    for key in roots {
        if seen.insert(*key) {
            waiting.push_back(Step { key: *key, path: None, referrer: None });
        }
    }
    let mut asked = FuturesUnordered::new();
    loop {
        if seen.len() > PATHS_MAX {
            return Err(Errand::TooMany(PATHS_MAX));
        }
        while asked.len() < QUESTIONS_MAX
            && let Some(step) = waiting.pop_front()
        {
            asked.push(look(inner, step));
        }
        let Some((step, found)) = asked.next().await else { break };
        let narinfo = match found {
            Ok(narinfo) => narinfo,
            Err(why) => {
                closure.lack(&step, why);
                continue;
            }
        };
        if step.referrer.is_none() {
            closure.roots.push(narinfo.store_path.clone());
        }
        closure.paths.push(step.key);
        if nars.insert(narinfo.nar_hash) {
            closure.nars.push(member(&narinfo));
        }
        for reference in narinfo.references {
            let key = reference.hash();
            if seen.insert(key) {
                let referrer = Some(narinfo.store_path.clone());
                waiting.push_back(Step { key, path: Some(reference), referrer });
            }
        }
        told(closure.paths.len());
    }
    drop(asked);
    look_at_store(inner, &mut closure.nars).await?;
    Ok(closure)
}

impl Closure {
    fn lack(&mut self, step: &Step, why: Why) {
        self.lack_count += 1;
        if self.lacks.len() < LACKS_MAX {
            let name = |path: &StorePath| path.base_name().to_owned();
            let path = step.path.as_ref().map_or_else(|| step.key.to_string(), name);
            self.lacks.push(Lack { path, referrer: step.referrer.as_ref().map(name), why });
        }
    }
}

/// What of these is held.
pub(super) async fn look_at_store(inner: &Inner, nars: &mut [Member]) -> Result<(), Errand> {
    for members in nars.chunks_mut(HOLDINGS_MAX) {
        let hashes: Vec<NarHash> = members.iter().map(|it| it.name.nar_hash).collect();
        let holdings = inner.store.holdings(hashes).await?;
        for (member, holding) in members.iter_mut().zip(holdings) {
            let Some(holding) = holding else { continue };
            member.is_held = true;
            member.is_kept = holding.is_kept;
            member.takes_bytes = holding.takes_bytes;
        }
    }
    Ok(())
}

fn member(narinfo: &NarInfo) -> Member {
    let name = NarName { nar_hash: narinfo.nar_hash, key: narinfo.store_path.hash() };
    // What zstd makes of a NAR is seldom more than half as much again as what xz does, and about
    // half of the NAR.
    let takes_bytes = match (narinfo.file_size, narinfo.compression) {
        (Some(size), Compression::Zstd) => size,
        (Some(size), Compression::None) => size / 2,
        (
            Some(size),
            Compression::Xz | Compression::Bzip2 | Compression::Gzip | Compression::Br,
        ) => size.saturating_add(size / 2).min(narinfo.nar_size),
        (None, _) => narinfo.nar_size / 2,
    };
    let line_bytes = narinfo.file_size.unwrap_or(narinfo.nar_size);
    Member { name, line_bytes, takes_bytes, is_held: false, is_kept: false }
}

async fn look(inner: &Arc<Inner>, step: Step) -> (Step, Result<NarInfo, Why>) {
    let found = find(inner, step.key).await;
    (step, found)
}

/// The narinfo of a path, from here or from an upstream, which is asked whatever was remembered of
/// its absence: somebody may just have put it there.
pub(super) async fn find(inner: &Arc<Inner>, key: StorePathHash) -> Result<NarInfo, Why> {
    for tried in 1..=TRIES_MAX {
        match inner.store.lookup(key).await {
            Ok(Some((stored, _))) => return Ok(stored.narinfo),
            Ok(None) => {}
            Err(_) => return Err(Why::Trouble),
        }
        if let Some(mut running) = narinfo::question(inner, key, None) {
            let answer = running.wait_for(Option::is_some).await.ok().and_then(|it| it.clone());
            match answer {
                Some(Answer::Found(text)) => {
                    // As its upstream said it: clients are shown our own codec.
                    if let Ok(Some(stored)) = inner.store.peek_narinfo(key).await {
                        return Ok(stored.narinfo);
                    }
                    let parsed = NarInfo::parse(&text, &inner.config.store_dir);
                    return parsed.map_err(|_| Why::Trouble);
                }
                Some(Answer::Absent) => return Err(Why::Absent),
                Some(Answer::Trouble) | None => {}
            }
        }
        if tried < TRIES_MAX {
            sleep(TRY_AGAIN * tried).await;
        }
    }
    Err(Why::Trouble)
}
