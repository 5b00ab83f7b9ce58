//! Many NARs brought in the background: some at once, behind whatever clients ask for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::closure::Member;
use super::fill::{self, Bringing, Phase};
use super::{Inner, Step, Why};
use crate::limit::Limit;
use crate::nix::NarName;

/// NARs that are brought at once, by all who have some brought: enough to keep a line busy and both
/// cores, few beside those of clients.
pub(super) const BROUGHT_MAX: usize = 4;

/// How often a NAR is tried that does not come.
const TRIES_MAX: u32 = 3;

/// How long after a failure it is tried again, longer each time.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// How long after a NAR was given up for clients it is begun again: they ask for more soon.
const MAKE_WAY: Duration = Duration::from_secs(2);

/// How often it is said how far it is.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Came {
    /// NARs that did not come.
    pub(super) lacks: Vec<(NarName, Why)>,
    /// Bytes that came over the line.
    pub(super) line_bytes: u64,
    /// NARs that came.
    pub(super) nars: usize,
}

/// Brings them all, and says how far it is. `goes_on` is asked after each: no more are begun when
/// it says no.
pub(super) async fn all(
    inner: &Arc<Inner>,
    wanted: &[Member],
    limit: Option<Arc<Limit>>,
    told: impl Fn(Step),
    goes_on: impl Fn() -> bool,
) -> Came {
    let line_bytes = wanted.iter().map(|it| it.line_bytes).sum();
    let mut waiting: VecDeque<&Member> = wanted.iter().collect();
    let mut came = Came::default();
    // Bytes of what is done, by what they were thought to be: so that the end is the end.
    let mut done_bytes = 0;
    let mut under_way: Vec<(NarName, u64, Arc<AtomicU64>)> = Vec::new();
    let mut running = FuturesUnordered::new();
    let mut ticks = interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while running.len() < BROUGHT_MAX
            && let Some(member) = waiting.pop_front()
        {
            let bringing = Bringing { limit: limit.clone(), came_bytes: Arc::default() };
            under_way.push((member.name, member.line_bytes, Arc::clone(&bringing.came_bytes)));
            running.push(one(inner, member.name, bringing));
        }
        tokio::select! {
            ended = running.next() => {
                let Some((name, ended)) = ended else { return came };
                let at = under_way.iter().position(|(other, _, _)| *other == name);
                if let Some((_, thought, bytes)) = at.map(|at| under_way.swap_remove(at)) {
                    done_bytes += thought;
                    came.line_bytes += bytes.load(Ordering::Relaxed);
                }
                match ended {
                    Ok(()) => came.nars += 1,
                    Err(why) => came.lacks.push((name, why)),
                }
                if !goes_on() {
                    waiting.clear();
                }
            }
            _ = ticks.tick() => {}
        }
        let now = |(_, thought, bytes): &(NarName, u64, Arc<AtomicU64>)| {
            bytes.load(Ordering::Relaxed).min(*thought)
        };
        let moving: u64 = under_way.iter().map(now).sum();
        told(Step {
            what: "fetching",
            bytes: Some((done_bytes + moving, line_bytes)),
            things: (came.nars + came.lacks.len(), Some(wanted.len())),
        });
    }
}

async fn one(inner: &Arc<Inner>, name: NarName, bringing: Bringing) -> (NarName, Result<(), Why>) {
    let Ok(_place) = inner.brought.acquire().await else { return (name, Err(Why::Trouble)) };
    let mut tried = 0;
    loop {
        while inner.permits.are_wanted() {
            sleep(MAKE_WAY).await;
        }
        bringing.came_bytes.store(0, Ordering::Relaxed);
        let ended = match fill::bring(inner, name, bringing.clone()) {
            Some(mut brought) => {
                let ended = brought.phase.wait_for(|phase| !phase.is_under_way()).await;
                ended.map_or(Phase::Failed, |phase| phase.clone())
            }
            None => Phase::GivenUp,
        };
        match ended {
            Phase::Held(_) => return (name, Ok(())),
            Phase::NoRoom => return (name, Err(Why::NoRoom)),
            Phase::GivenUp if inner.closing.is_cancelled() => return (name, Err(Why::Trouble)),
            Phase::GivenUp => sleep(MAKE_WAY).await,
            Phase::Failed | Phase::Unable | Phase::Starting | Phase::Growing(_) => {
                tried += 1;
                if tried >= TRIES_MAX {
                    return (name, Err(why(inner, name).await));
                }
                sleep(TRY_AGAIN * tried).await;
            }
        }
    }
}

/// A narinfo that was withdrawn says that its NAR is nowhere.
async fn why(inner: &Inner, name: NarName) -> Why {
    match inner.store.lookup(name.key).await {
        Ok(None) => Why::Absent,
        Ok(Some(_)) | Err(_) => Why::Trouble,
    }
}
