//! Fills in flight, one for each NAR: the first client's question starts it, all follow it, and it
//! goes on without them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use super::ingest::Ingested;
use super::permits::{self, Permit};
use super::sources::{Source, Sources};
use super::stream::{Follower, NarStream};
use super::transfer::{self, Failure, Sink};
use super::{Inner, NarAnswer, locked, through};
use crate::limit::Limit;
use crate::nix::{NarInfo, NarName};
use crate::store::{self, Finished, Growing, HeldNar, NarWriter, Origin};

/// Fills in flight at once. Permits bound those that work; this bounds those that wait for one.
const FILLS_MAX: usize = 256;

/// How long a client waits for the first byte, whatever it is that it waits for (a place, memory,
/// one source after the other): Nix's own patience is 300 s, but a person's is not. 1 s below the
/// 30 s that we promise ourselves, for the way to the client.
const START_WAIT: Duration = Duration::from_secs(29);

/// How often one that is only brought looks for memory that nobody else wants: it has time.
const SPARE_LOOK: Duration = Duration::from_millis(200);

/// Sources that are tried for one fill before it is given up.
const ATTEMPTS_MAX: usize = 6;

/// Paths of a NAR whose ready narinfos are forgotten when it has become held.
pub(super) const PATHS_MAX: usize = 64;

/// Where a fill stands.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// Looking for a source, for room, for memory.
    Starting,
    /// The first bytes are there.
    Growing(Growing),
    /// Whole; it was small, or it was held all along.
    Held(HeldNar),
    /// There is no room to keep it: each client fetches for itself.
    NoRoom,
    /// It cannot be had now: who may have it was tried.
    Failed,
    /// It could not be tried to its end here: no memory, a disk that fails, the end of this cache.
    Unable,
    /// Nobody waited for it, and others waited for its memory.
    GivenUp,
}

impl Phase {
    /// Whether it will still change.
    pub(super) const fn is_under_way(&self) -> bool {
        matches!(self, Self::Starting | Self::Growing(_))
    }
}

/// A fill as those see it who follow it.
#[derive(Debug, Clone)]
pub(super) struct Fill {
    phase: watch::Receiver<Phase>,
    followers: Arc<AtomicUsize>,
    backers: Arc<AtomicUsize>,
}

/// A NAR that is brought in the background: it makes way for what clients ask.
pub(super) struct Brought {
    pub(super) phase: watch::Receiver<Phase>,
    _backer: Follower,
}

/// How it is brought.
#[derive(Clone, Default)]
pub(super) struct Bringing {
    /// No faster than this, while no client wants it.
    pub(super) limit: Option<Arc<Limit>>,
    /// Bytes that came of it.
    pub(super) came_bytes: Arc<AtomicU64>,
}

/// Brings this NAR, unless it is on its way already; `None` when too many are.
pub(super) fn bring(inner: &Arc<Inner>, name: NarName, bringing: Bringing) -> Option<Brought> {
    let fill = join(inner, name, None, Some(bringing))?;
    Some(Brought { phase: fill.phase, _backer: Follower::new(fill.backers) })
}

/// Follows the fill of this NAR, which begins now unless it runs already.
pub(super) async fn follow(inner: &Arc<Inner>, name: NarName) -> NarAnswer {
    let deadline = Instant::now() + START_WAIT;
    let Some(fill) = join(inner, name, None, None) else { return NarAnswer::Absent };
    let follower = Follower::new(fill.followers);
    let mut phase = fill.phase;
    let begun = timeout_at(deadline, phase.wait_for(|phase| !matches!(phase, Phase::Starting)));
    let begun = match begun.await {
        Ok(Ok(begun)) => begun.clone(),
        Ok(Err(_)) | Err(_) => return NarAnswer::Absent,
    };
    match begun {
        Phase::Growing(growing) => NarAnswer::Filling(NarStream::follow(growing, phase, follower)),
        Phase::Held(held) => NarAnswer::Filled(held),
        Phase::NoRoom => through::fetch(inner, name, deadline).await,
        Phase::Starting | Phase::Failed | Phase::Unable | Phase::GivenUp => NarAnswer::Absent,
    }
}

/// How a fill ended for who wants no bytes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    Held,
    NoRoom,
    /// Whoever may have it was tried.
    Not,
    /// That could not be done here, or not now.
    Untried,
}

/// Waits for the fill of this NAR, which begins now unless it runs already; `only`: from this source
/// and no other, and somebody waits for it. Otherwise nobody does: where others want its memory it is
/// given up.
pub(super) async fn whole(inner: &Arc<Inner>, name: NarName, only: Option<Source>) -> Whole {
    let is_awaited = only.is_some();
    let Some(fill) = join(inner, name, only, None) else { return Whole::Untried };
    let Fill { mut phase, followers, .. } = fill;
    let _follower = is_awaited.then(|| Follower::new(followers));
    let ended = phase.wait_for(|phase| !phase.is_under_way()).await;
    match ended.as_deref() {
        Ok(Phase::Held(_)) => Whole::Held,
        Ok(Phase::NoRoom) => Whole::NoRoom,
        Ok(Phase::Failed) => Whole::Not,
        Ok(Phase::Starting | Phase::Growing(_) | Phase::Unable | Phase::GivenUp) | Err(_) => {
            Whole::Untried
        }
    }
}

/// The fill of this NAR; `None` when too many are in flight.
fn join(
    inner: &Arc<Inner>,
    name: NarName,
    only: Option<Source>,
    bringing: Option<Bringing>,
) -> Option<Fill> {
    let mut fills = locked(&inner.fills);
    if let Some(fill) = fills.get(&name.nar_hash) {
        return Some(fill.clone());
    }
    if fills.len() >= FILLS_MAX || inner.closing.is_cancelled() {
        return None;
    }
    let (told, phase) = watch::channel(Phase::Starting);
    let (followers, backers) = <(Arc<_>, Arc<_>)>::default();
    let fill = Fill { phase, followers: Arc::clone(&followers), backers: Arc::clone(&backers) };
    fills.insert(name.nar_hash, fill.clone());
    drop(fills);
    let inner_of_it = Arc::clone(inner);
    let filling = Filling { inner: inner_of_it, name, only, told, followers, backers, bringing };
    inner.spawn(async move {
        let closing = filling.inner.closing.clone();
        let ended = closing.run_until_cancelled(Box::pin(filling.run())).await;
        let ended = ended.unwrap_or(Phase::Unable);
        if matches!(ended, Phase::Failed | Phase::Unable) {
            filling.inner.metrics.fills_failed.inc();
        }
        filling.leave(ended);
    });
    Some(fill)
}

/// A fill as its task sees it; taken off the list however it ends.
struct Filling {
    inner: Arc<Inner>,
    name: NarName,
    only: Option<Source>,
    told: watch::Sender<Phase>,
    followers: Arc<AtomicUsize>,
    backers: Arc<AtomicUsize>,
    /// How it is brought, when it was begun in the background.
    bringing: Option<Bringing>,
}

impl Filling {
    /// Whether it is only brought: no client waits for it.
    fn is_in_background(&self) -> bool {
        self.backers.load(Ordering::Relaxed) > 0 && self.followers.load(Ordering::Relaxed) == 0
    }

    /// Memory to unpack it. In the background only what nobody else wants, however long that takes.
    async fn permit(&self, cost_bytes: u64) -> Option<Permit> {
        let permits = &self.inner.permits;
        while self.is_in_background() && permits.could_ever(cost_bytes) {
            if let Some(permit) = permits.take_spare(cost_bytes) {
                return Some(permit);
            }
            sleep(SPARE_LOOK).await;
        }
        permits.take(cost_bytes).await
    }

    /// Says how it ended. Those who follow the rows learn it from the store.
    fn leave(self, ended: Phase) {
        let told = self.told.clone();
        // Off the list first: who comes from now on finds the NAR in the store, or tries anew.
        drop(self);
        told.send_replace(ended);
    }

    /// Tries one source after the other until the NAR is whole.
    async fn run(&self) -> Phase {
        let Self { inner, name, .. } = self;
        if let Ok(Some(held)) = inner.store.nar(name.nar_hash).await {
            return Phase::Held(held);
        }
        if inner.memory.no_room.holds(&name.nar_hash) {
            return Phase::NoRoom;
        }
        let mut sources = match &self.only {
            Some(source) => Sources::only(Arc::clone(inner), *name, source.clone()),
            None => Sources::new(Arc::clone(inner), *name).await,
        };
        sources.throttle = self
            .bringing
            .clone()
            .map(|bringing| Throttle { bringing, followers: Arc::clone(&self.followers) });
        for _ in 0..ATTEMPTS_MAX {
            let Some(source) = sources.next().await else {
                sources.give_up().await;
                return Phase::Failed;
            };
            match Box::pin(self.attempt(&mut sources, source)).await {
                Attempt::Next => {}
                Attempt::Over(phase) => return phase,
            }
        }
        Phase::Failed
    }

    async fn attempt(&self, sources: &mut Sources, source: Source) -> Attempt {
        let Self { inner, name, .. } = self;
        let reservation = match inner.store.reserve(reserve_bytes(&source.narinfo)).await {
            Ok(reservation) => reservation,
            Err(store::Error::NoRoom { .. }) => return Attempt::Over(Phase::NoRoom),
            Err(error) => return self.store_failed(&error),
        };
        let Some(opened) = sources.open(source.clone()).await else { return Attempt::Next };
        let form = transfer::form_of(inner, *name, &opened);
        let cost = permits::cost_bytes(opened.codec, form, opened.source.narinfo.nar_size);
        let Some(permit) = self.permit(cost).await else {
            info!(nar = %name, cost, "no memory to unpack a NAR");
            return Attempt::Over(Phase::Unable);
        };
        let writer = match inner.store.begin(reservation).await {
            Ok(writer) => writer,
            Err(error) => return self.store_failed(&error),
        };
        let mut keeping = Keeping { filling: self, writer, grows: false };
        let moved = Box::pin(transfer::run(opened, sources, permit, &mut keeping));
        let failure = match moved.await {
            Ok(ingested) => return keeping.finish(ingested).await,
            Err(failure) => failure,
        };
        debug!(nar = %name, ?failure, "fill failed");
        self.failed(failure, keeping.grows, sources, source)
    }

    /// What to do after a failure. Followers that have bytes are cut by the store, since the
    /// writer is gone; those that have none yet can still have the NAR from elsewhere.
    fn failed(
        &self,
        failure: Failure,
        grows: bool,
        sources: &mut Sources,
        source: Source,
    ) -> Attempt {
        let memory = &self.inner.memory;
        sources.failed();
        match failure {
            Failure::NoRoom => memory.no_room.note(self.name.nar_hash, ()),
            Failure::Unkeepable => {
                memory.unkeepable.note(self.name.nar_hash, ());
                sources.again(source);
            }
            Failure::Cut | Failure::Wrong | Failure::Untaken | Failure::GivenUp => {}
        }
        match failure {
            Failure::GivenUp => Attempt::Over(Phase::GivenUp),
            Failure::NoRoom if !grows => Attempt::Over(Phase::NoRoom),
            Failure::NoRoom | Failure::Untaken => Attempt::Over(Phase::Unable),
            _ if grows => Attempt::Over(Phase::Failed),
            Failure::Cut | Failure::Wrong | Failure::Unkeepable => Attempt::Next,
        }
    }

    fn store_failed(&self, error: &store::Error) -> Attempt {
        warn!(nar = %self.name, error = error as &dyn std::error::Error, "fill could not be kept");
        Attempt::Over(Phase::Unable)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let mut fills = locked(&self.inner.fills);
        fills.remove(&self.name.nar_hash);
    }
}

/// How an attempt ended.
enum Attempt {
    /// Another source may have it.
    Next,
    /// No other is tried.
    Over(Phase),
}

/// Holds a transfer to the pace at which it is brought, as long as no client waits for it.
pub(super) struct Throttle {
    bringing: Bringing,
    followers: Arc<AtomicUsize>,
}

impl Throttle {
    /// Returns when these bytes, which came, may be passed on.
    pub(super) async fn pass(&self, len_bytes: usize) {
        let len = u64::try_from(len_bytes).unwrap_or(u64::MAX);
        self.bringing.came_bytes.fetch_add(len, Ordering::Relaxed);
        let Some(limit) = &self.bringing.limit else { return };
        let mut left = len;
        while left > 0 && self.followers.load(Ordering::Relaxed) == 0 {
            let piece = left.min(limit.piece_len_max());
            limit.wait(usize::try_from(piece).unwrap_or(usize::MAX)).await;
            left -= piece;
        }
    }
}

/// The store as a sink.
struct Keeping<'a> {
    filling: &'a Filling,
    writer: NarWriter,
    /// Whether followers have bytes.
    grows: bool,
}

impl Keeping<'_> {
    /// The tail and the end: only now may followers see the NAR whole.
    async fn finish(mut self, ingested: Ingested) -> Attempt {
        let Ingested { nar_hash, nar_size, file_hash, listing, tail, .. } = ingested;
        let Filling { inner, name, .. } = self.filling;
        match self.writer.append(tail).await {
            Ok(()) => {}
            Err(store::Error::NoRoom { .. }) if !self.grows => return Attempt::Over(Phase::NoRoom),
            Err(error) => return self.filling.store_failed(&error),
        }
        let origin = Origin::Upstream;
        let finished = Finished { nar_hash, nar_size, file_hash, origin, listing };
        let held = match self.writer.finish(finished).await {
            Ok(held) => held,
            Err(error) => return self.filling.store_failed(&error),
        };
        // What was said of these paths before had no file hash, or another one.
        inner.memory.forget_ready(name.key);
        inner.scrub.repairs.path_came(name.key);
        inner.nar_came(nar_hash).await;
        Attempt::Over(Phase::Held(held))
    }
}

impl Sink for Keeping<'_> {
    async fn put(&mut self, bytes: Bytes) -> Result<(), Failure> {
        self.writer.append(bytes).await.map_err(|error| {
            info!(error = &error as &dyn std::error::Error, "a NAR could not be written");
            match error {
                store::Error::NoRoom { .. } => Failure::NoRoom,
                store::Error::Degraded(_)
                | store::Error::Corrupt(_)
                | store::Error::Slow(_)
                | store::Error::Abandoned
                | store::Error::Closing => Failure::Untaken,
            }
        })?;
        if !self.grows {
            self.grows = true;
            self.filling.told.send_replace(Phase::Growing(self.writer.follow()));
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        self.filling.followers.load(Ordering::Relaxed) > 0
            || !self.filling.inner.permits.are_wanted()
    }
}

/// Room to set aside: what zstd makes of a NAR is at most a little more than the NAR, and seldom
/// more than twice what another codec made of it. The writer grows it where that was too little.
fn reserve_bytes(narinfo: &NarInfo) -> u64 {
    narinfo.file_size.map_or(narinfo.nar_size, |size| size.saturating_mul(2).min(narinfo.nar_size))
}
