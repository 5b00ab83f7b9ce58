//! narinfos: from memory, from the disk, from upstream; one question a key however many ask.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::ask::{self, Asked, Said};
use super::{Inner, Outcome, locked, prefetch, trust};
use crate::nix::{NarHash, NarName, StorePath, StorePathHash};
use crate::store::{HeldNar, Origin, StoredNarInfo};
use crate::upstream::Upstream;

/// In all, from the question to the answer: 0.1 s below the promise, for the way to the client.
const ANSWER_WAIT: Duration = Duration::from_millis(2400);

/// For the upstreams together. The deadline cuts the answer, not the question.
const UPSTREAM_WAIT: Duration = Duration::from_secs(2);

/// How long a question runs on, for the next client.
const QUESTION_WAIT: Duration = Duration::from_secs(15);

/// Questions under way at once, ours and those asked ahead. A client asks 25 at a time.
pub(super) const QUESTIONS_MAX: usize = 1024;

/// How a question ended.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// The narinfo as clients see it.
    Found(Bytes),
    /// Every upstream says that it has it not.
    Absent,
    /// An upstream could not be asked: nothing is known.
    Trouble,
}

/// Where a question stands: `None` while it runs.
pub(super) type Running = watch::Receiver<Option<Answer>>;

/// The latest question for a key. Earlier ones may run still, for whoever comes after their answer.
pub(super) struct Latest {
    running: Running,
    began: Instant,
}

impl Latest {
    /// Whether an answer may come in time still for one who asks now. What takes longer may be
    /// dead, and the upstream well again: that one asks anew.
    fn is_fresh(&self) -> bool {
        self.began.elapsed() < UPSTREAM_WAIT
    }
}

/// What is known without asking anybody.
pub(super) enum Local {
    /// It can be said at once.
    Ready(Bytes),
    /// The upstreams must be asked, maybe about this one, which they promised long ago.
    Ask(Option<Box<StoredNarInfo>>),
    /// It is absent, or the store cannot say.
    Absent,
}

/// The narinfo of this key for a client.
pub(super) async fn answer(inner: &Arc<Inner>, key: StorePathHash) -> Outcome<Bytes> {
    let began = Instant::now();
    let asked = match timeout_at(began + ANSWER_WAIT, local(inner, key)).await {
        Ok(Local::Ready(narinfo)) => return Outcome::Hit(narinfo),
        Ok(Local::Absent) | Err(_) => return Outcome::Absent,
        Ok(Local::Ask(stored)) => question(inner, key, stored),
    };
    let Some(mut running) = asked else { return Outcome::Absent };
    let deadline = (Instant::now() + UPSTREAM_WAIT).min(began + ANSWER_WAIT);
    match timeout_at(deadline, running.wait_for(Option::is_some)).await {
        Ok(Ok(answer)) => match &*answer {
            Some(Answer::Found(narinfo)) => Outcome::Miss(narinfo.clone()),
            Some(Answer::Absent | Answer::Trouble) | None => Outcome::Absent,
        },
        // An earlier question may have been answered meanwhile.
        Ok(Err(_)) | Err(_) => inner.memory.ready(key).map_or(Outcome::Absent, Outcome::Miss),
    }
}

/// Looks into memory and store.
pub(super) async fn local(inner: &Inner, key: StorePathHash) -> Local {
    if inner.is_degraded() {
        return Local::Absent;
    }
    if let Some(narinfo) = inner.memory.ready(key) {
        return Local::Ready(narinfo);
    }
    if inner.memory.absent.holds(&key) {
        return Local::Absent;
    }
    match inner.store.lookup(key).await {
        Ok(None) => Local::Ask(None),
        Ok(Some((stored, held))) => {
            // A narinfo whose NAR is not here is a promise that only upstream can keep.
            if held.is_none() && !inner.memory.confirmed.holds(&key) {
                return Local::Ask(Some(Box::new(stored)));
            }
            let narinfo = shown(inner, &stored, held.as_ref());
            inner.memory.make_ready(key, narinfo.clone());
            Local::Ready(narinfo)
        }
        Err(error) => {
            debug!(%key, error = &error as &dyn std::error::Error, "lookup failed");
            Local::Absent
        }
    }
}

/// The narinfo as clients see it, with our signature where that is wanted and earned.
fn shown(inner: &Inner, stored: &StoredNarInfo, held: Option<&HeldNar>) -> Bytes {
    let mut shown = trust::for_clients(&stored.narinfo, held);
    if stored.origin == Origin::Upstream {
        let upstreams = inner.upstreams();
        let from = upstreams.iter().find(|upstream| **upstream.url() == *stored.upstream);
        let keys = from.and_then(Upstream::trusted_keys);
        inner.own().sign_fetched(&mut shown, keys, &inner.config.store_dir);
    }
    shown.print(&inner.config.store_dir).into()
}

/// Asks the upstreams, or joins those who just did; `None` when too many questions run. For a key
/// that nobody answers there is one question every two seconds, each for its time.
pub(super) fn question(
    inner: &Arc<Inner>,
    key: StorePathHash,
    stored: Option<Box<StoredNarInfo>>,
) -> Option<Running> {
    let mut questions = locked(&inner.questions);
    let latest = questions.get(&key);
    if let Some(latest) = latest.filter(|latest| latest.is_fresh()) {
        return Some(latest.running.clone());
    }
    // An answer is ready before its question leaves the list: who looked just too early for the one
    // and comes too late for the other finds it here.
    if let Some(narinfo) = inner.memory.ready(key) {
        return Some(watch::channel(Some(Answer::Found(narinfo))).1);
    }
    let place = Arc::clone(&inner.question_places).try_acquire_owned();
    let place = place.ok().filter(|_| !inner.closing.is_cancelled())?;
    let (told, running) = watch::channel(None);
    questions.insert(key, Latest { running: running.clone(), began: Instant::now() });
    drop(questions);
    let asking = Asking { inner: Arc::clone(inner), key, running: running.clone(), _place: place };
    inner.spawn(async move {
        let closing = asking.inner.closing.clone();
        let asked = timeout(QUESTION_WAIT, ask_all(&asking.inner, key, stored));
        let answer = match closing.run_until_cancelled(Box::pin(asked)).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) | None => Answer::Trouble,
        };
        // Out of the list first: who asks from now on finds the answer in memory.
        drop(asking);
        told.send_replace(Some(answer));
    });
    Some(running)
}

/// A question in the list, taken off it however it ends, unless a later one took its place.
struct Asking {
    inner: Arc<Inner>,
    key: StorePathHash,
    running: Running,
    _place: OwnedSemaphorePermit,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut questions = locked(&self.inner.questions);
        let latest = questions.get(&self.key);
        if latest.is_some_and(|latest| latest.running.same_channel(&self.running)) {
            questions.remove(&self.key);
        }
    }
}

async fn ask_all(
    inner: &Arc<Inner>,
    key: StorePathHash,
    stored: Option<Box<StoredNarInfo>>,
) -> Answer {
    let preferred = stored.as_ref().map(|stored| stored.narinfo.nar_hash);
    let upstreams = inner.upstreams();
    let Asked { found, other, trouble } = {
        let questions = in_order(&upstreams, stored.as_deref())
            .map(|upstream| -> BoxFuture<'_, Said<StoredNarInfo>> {
                Box::pin(ask_one(inner, upstream, key, preferred))
            })
            .collect::<Vec<_>>();
        ask::first(questions).await
    };
    match (found, other, trouble) {
        (Some(found), _, _) | (None, Some(found), false) => keep(inner, found, stored).await,
        // The one who promised the stored NAR is in trouble: its word stays, this one helps out.
        (None, Some(other), true) => Answer::Found(shown(inner, &other, None)),
        (None, None, true) => Answer::Trouble,
        (None, None, false) => absent(inner, key, stored).await,
    }
}

/// The upstreams in order of priority, but first the one that promised what is stored.
fn in_order<'a>(
    upstreams: &'a [Upstream],
    stored: Option<&StoredNarInfo>,
) -> impl Iterator<Item = &'a Upstream> {
    let promised = stored.map(|stored| stored.upstream.clone());
    let is_first = move |upstream: &&Upstream| Some(&**upstream.url()) == promised.as_deref();
    let is_other = is_first.clone();
    let others = upstreams.iter().filter(move |upstream| !is_other(upstream));
    upstreams.iter().filter(is_first).chain(others)
}

/// Asks one upstream and judges what it says.
pub(super) async fn ask_one(
    inner: &Inner,
    upstream: &Upstream,
    key: StorePathHash,
    preferred: Option<NarHash>,
) -> Said<StoredNarInfo> {
    if upstream.is_resting() {
        return Said::Trouble;
    }
    let text = match upstream.narinfo(key).await {
        Ok(Some(text)) => text,
        Ok(None) => return Said::Absent,
        Err(error) => {
            debug!(upstream = %upstream.url(), %key, error = &error as &dyn std::error::Error,
                "narinfo could not be fetched");
            return Said::Trouble;
        }
    };
    let keys = upstream.trusted_keys();
    match trust::judge(&text, key, keys, &inner.own().trusted, &inner.config.store_dir) {
        Ok(narinfo) => {
            let unwanted = preferred.is_some_and(|wanted| wanted != narinfo.nar_hash);
            let upstream = upstream.url().to_string();
            let stored = StoredNarInfo { narinfo, upstream, origin: Origin::Upstream };
            if unwanted { Said::Other(stored) } else { Said::Found(stored) }
        }
        Err(error) => {
            warn!(upstream = %upstream.url(), %key, error = &error as &dyn std::error::Error,
                "narinfo refused");
            Said::Trouble
        }
    }
}

/// Keeps what an upstream said and makes it ready; its references come next.
pub(super) async fn keep(
    inner: &Arc<Inner>,
    said: StoredNarInfo,
    stored: Option<Box<StoredNarInfo>>,
) -> Answer {
    let key = said.narinfo.store_path.hash();
    let nar_hash = said.narinfo.nar_hash;
    // What was pushed here stays ours, whoever has it too.
    let ours = stored.as_ref().is_some_and(|stored| stored.origin == Origin::Ours);
    if !ours
        && stored.as_deref() != Some(&said)
        && let Err(error) = inner.store.keep_narinfo(said.clone()).await
    {
        warn!(%key, error = &error as &dyn std::error::Error, "narinfo could not be kept");
    }
    inner.memory.absent.forget(&key);
    inner.memory.confirmed.note(key, ());
    if let Some(file_hash) = said.narinfo.file_hash {
        inner.memory.file_names.note(file_hash, NarName { nar_hash, key });
    }
    let held = inner.store.nar(nar_hash).await.ok().flatten();
    if held.is_some() {
        inner.scrub.repairs.path_came(key);
    }
    let narinfo = shown(inner, &said, held.as_ref());
    inner.memory.make_ready(key, narinfo.clone());
    prefetch::ahead(inner, key, said.narinfo.references.iter().map(StorePath::hash));
    Answer::Found(narinfo)
}

/// Nobody has it: remembered for a moment, and what was promised is withdrawn, unless its NAR has
/// come here meanwhile.
async fn absent(inner: &Inner, key: StorePathHash, stored: Option<Box<StoredNarInfo>>) -> Answer {
    // A later question found it: this one's word is old.
    if inner.memory.confirmed.holds(&key) {
        return Answer::Trouble;
    }
    if stored.is_some() {
        match inner.store.lookup(key).await {
            Ok(Some((stored, Some(held)))) => {
                return Answer::Found(shown(inner, &stored, Some(&held)));
            }
            Ok(Some((_, None))) => {
                if let Err(error) = inner.store.withdraw_narinfo(key).await {
                    warn!(%key, error = &error as &dyn std::error::Error,
                        "narinfo could not be withdrawn");
                    return Answer::Trouble;
                }
            }
            Ok(None) => {}
            Err(_) => return Answer::Trouble,
        }
    }
    inner.memory.absent.note(key, ());
    Answer::Absent
}

/// Withdraws the narinfo of a NAR that is nowhere to be had. `is_absent`: no upstream has the path
/// with another NAR, so a narinfo that is left there is no promise either, for a moment.
pub(super) async fn withdraw(inner: &Inner, name: NarName, is_absent: bool) {
    match inner.store.lookup(name.key).await {
        Ok(Some((stored, None))) if stored.narinfo.nar_hash == name.nar_hash => {
            if let Err(error) = inner.store.withdraw_narinfo(name.key).await {
                warn!(key = %name.key, error = &error as &dyn std::error::Error,
                    "narinfo could not be withdrawn");
                return;
            }
        }
        // The NAR came here meanwhile, or another one is promised, or nothing is.
        Ok(Some(_) | None) | Err(_) => return,
    }
    if is_absent {
        inner.memory.absent.note(name.key, ());
    }
    inner.memory.confirmed.forget(&name.key);
    inner.memory.forget_ready(name.key);
}
