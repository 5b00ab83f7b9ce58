//! The scrub: every held NAR is read and decoded once in a while, because a card forgets without
//! saying so. What is not its NAR is withdrawn before anybody gets it, and fetched again from whoever
//! has it. What the store withdrew of its own accord is fetched again here too.
//!
//! When it reads is said by [`pace`], what it finds in one NAR by [`check`]; [`repair`] has what is gone
//! fetched again.

mod check;
mod pace;
mod repair;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use super::{Cache, Inner, fill, locked};
use crate::nix::NarHash;
use crate::store::{self, HeldNar, ScrubMark};
use check::Verdict;
use pace::{Haste, Pace};

pub use repair::{Unrepaired, WantedFor};

/// A round where nothing is configured to begin one: only what is withdrawn is looked after.
const NO_ROUND: Duration = Duration::from_hours(30 * 24);

/// How long a scrub that is asked for waits until the slow one has come to the end of its NAR.
const TURN_WAIT: Duration = Duration::from_mins(10);

/// How the scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubIs {
    /// It waits for its time.
    Idle,
    /// It reads.
    Running,
    /// It reads only when it is asked to.
    Off,
}

/// The scrub for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubState {
    /// How it is.
    pub is: ScrubIs,
    /// Bytes checked in this round.
    pub checked_bytes: u64,
    /// Bytes that there are.
    pub of_bytes: u64,
    /// When the last round ended, in seconds before now.
    pub last_done_s: Option<u64>,
    /// NARs that were found damaged, ever.
    pub found: u64,
    /// NARs that were withdrawn for their bytes and fetched again, ever.
    pub repaired: u64,
    /// NARs of which that has failed so far.
    pub unrepaired: Unrepaired,
}

/// How far a scrub has come that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubProgress {
    /// The index is read.
    Index,
    /// NARs are read.
    Nars {
        /// Bytes of NARs that are checked.
        done_bytes: u64,
        /// Bytes of all.
        of_bytes: u64,
        /// NARs that were found damaged so far.
        found: u64,
    },
    /// What was withdrawn is fetched again.
    Repairs {
        /// So many are tried.
        done: u64,
        /// Of so many.
        of: u64,
    },
}

/// What a scrub found that somebody asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubFound {
    /// It went on where another one that was asked for had been left.
    pub resumed: bool,
    /// NARs that were read.
    pub checked: u64,
    /// NARs that could not be looked at now.
    pub passed_over: u64,
    /// NARs found damaged, and withdrawn.
    pub found: u64,
    /// NARs that were fetched again, of all that had been withdrawn.
    pub repaired: u64,
    /// NARs that could not be.
    pub unrepaired: u64,
}

/// Why it was not begun, or not ended.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// Somebody else's is under way.
    #[error("a scrub is under way already: `snowberry status` shows how far it is")]
    UnderWay,
    /// The store cannot be read.
    #[error("the store cannot be read")]
    Store(#[from] store::Error),
}

/// What the rooms share of it.
pub(super) struct Scrub {
    every: Option<Duration>,
    started: Instant,
    pace: Mutex<Pace>,
    /// One reads at a time.
    turn: Semaphore,
    /// Somebody asked for a round: the slow one leaves its turn.
    is_asked: AtomicBool,
    pub(super) repairs: repair::Repairs,
}

impl Scrub {
    pub(super) fn new(every: Option<Duration>) -> Self {
        Self {
            every,
            started: Instant::now(),
            pace: Mutex::new(Pace::new(every.unwrap_or(NO_ROUND))),
            turn: Semaphore::new(1),
            is_asked: AtomicBool::new(false),
            repairs: repair::Repairs::default(),
        }
    }

    fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }
}

/// Somebody waits for a round, as long as this lives.
struct Asked<'a>(&'a AtomicBool);

impl<'a> Asked<'a> {
    fn new(is_asked: &'a AtomicBool) -> Option<Self> {
        (!is_asked.swap(true, Ordering::AcqRel)).then_some(Self(is_asked))
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Cache {
    /// Scrubs by itself from now on, until the cache is closed.
    pub fn keep_scrubbing(&self) {
        let (inner, closing) = (Arc::clone(&self.inner), self.inner.closing.clone());
        self.inner.spawn(async move {
            closing.run_until_cancelled(Box::pin(keep(&inner))).await;
        });
    }

    /// Reads everything now. Dropped before its end, it is gone on with by the next that asks, and
    /// otherwise in the course of time. `repairs`: fetches what was found damaged again before it ends;
    /// otherwise that is done behind.
    pub async fn scrub(
        &self,
        repairs: bool,
        tell: impl Fn(ScrubProgress) + Send + Sync,
    ) -> Result<ScrubFound, ScrubError> {
        let Self { inner } = self;
        let scrub = &inner.scrub;
        let _asked = Asked::new(&scrub.is_asked).ok_or(ScrubError::UnderWay)?;
        let turn = timeout(TURN_WAIT, scrub.turn.acquire()).await;
        let _turn = turn.ok().and_then(Result::ok).ok_or(ScrubError::UnderWay)?;
        // What came a moment ago is read too.
        inner.store.flush().await?;
        let mut found = ScrubFound::default();
        inner.store.change_scrub_mark(|mark| {
            found.resumed = mark.asked && mark.next_id > 0;
            if !found.resumed {
                (mark.next_id, mark.checked_bytes) = (0, 0);
            }
            mark.asked = true;
        });
        if !found.resumed {
            tell(ScrubProgress::Index);
            inner.check_index(Haste::Asked).await?;
        }
        let of_bytes = inner.store.figures().used_bytes;
        loop {
            let mark = inner.mark()?;
            let (done_bytes, of_bytes) = (mark.checked_bytes, of_bytes.max(mark.checked_bytes));
            tell(ScrubProgress::Nars { done_bytes, of_bytes, found: found.found });
            match Box::pin(inner.check_next(mark, Haste::Asked)).await? {
                Some(Verdict::Right) => found.checked += 1,
                Some(Verdict::Torn | Verdict::Wrong(_)) => {
                    found.checked += 1;
                    found.found += 1;
                }
                Some(Verdict::Unknown) => found.passed_over += 1,
                None => break,
            }
        }
        if repairs {
            let told = |done, of| tell(ScrubProgress::Repairs { done, of });
            (found.repaired, found.unrepaired) = Box::pin(inner.repair_all(&told)).await;
        }
        Ok(found)
    }

    /// How the scrub is.
    pub fn scrub_state(&self) -> ScrubState {
        let scrub = &self.inner.scrub;
        let mark = self.inner.store.scrub_mark().unwrap_or_default();
        let is = match scrub.every {
            _ if scrub.turn.available_permits() == 0 => ScrubIs::Running,
            Some(_) => ScrubIs::Idle,
            None => ScrubIs::Off,
        };
        ScrubState {
            is,
            checked_bytes: mark.checked_bytes,
            of_bytes: self.inner.store.figures().used_bytes.max(mark.checked_bytes),
            last_done_s: (mark.done_at_s > 0).then(|| now_s().saturating_sub(mark.done_at_s)),
            found: mark.found,
            repaired: mark.repaired,
            unrepaired: scrub.repairs.unrepaired(),
        }
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The life of the slow scrub.
async fn keep(inner: &Arc<Inner>) {
    let mut has_begun = false;
    loop {
        let look = locked(&inner.scrub.pace).look();
        sleep(look).await;
        let Some(mark) = inner.store.scrub_mark() else { continue };
        if !has_begun {
            locked(&inner.scrub.pace).begin(inner.scrub.started.elapsed(), mark.ahead_bytes);
            has_begun = true;
        }
        Box::pin(inner.repair_all(&|_, _| {})).await;
        if inner.scrub.every.is_some()
            && let Err(error) = Box::pin(inner.turn()).await
        {
            debug!(error = &error as &dyn std::error::Error, "scrub goes on later");
        }
    }
}

impl Inner {
    fn mark(&self) -> Result<ScrubMark, store::Error> {
        let degraded = || store::Error::Degraded("it is not open".into());
        self.store.scrub_mark().ok_or_else(degraded)
    }

    /// Reads as much as is due.
    async fn turn(&self) -> Result<(), store::Error> {
        let Ok(turn) = self.scrub.turn.try_acquire() else { return Ok(()) };
        let _turn: SemaphorePermit<'_> = turn;
        while self.is_due() {
            let mark = self.mark()?;
            if mark.next_id == 0 {
                self.check_index(Haste::Slow).await?;
            }
            if Box::pin(self.check_next(mark, Haste::Slow)).await?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn is_due(&self) -> bool {
        if self.scrub.is_asked() {
            return false;
        }
        let (now, quiet_for) = (self.scrub.started.elapsed(), self.store.quiet_for());
        let of_bytes = self.store.figures().used_bytes;
        locked(&self.scrub.pace).is_due(now, of_bytes, quiet_for)
    }

    /// Checks the NAR that comes next, and notes how far it is. `None`: the round is done.
    async fn check_next(
        &self,
        mark: ScrubMark,
        haste: Haste,
    ) -> Result<Option<Verdict>, store::Error> {
        let Some((id, held)) = self.store.next_nar(mark.next_id).await? else {
            self.store.change_scrub_mark(|mark| {
                (mark.next_id, mark.checked_bytes, mark.asked) = (0, 0, false);
                mark.done_at_s = now_s();
            });
            info!(found = mark.found, repaired = mark.repaired, "scrub has read everything");
            return Ok(None);
        };
        let verdict = check::check(self, &held, haste).await?;
        let found = match &verdict {
            Verdict::Right => 0,
            Verdict::Torn => 1,
            Verdict::Wrong(why) => {
                error!(nar = %held.nar_hash().to_nix32(), why, "scrub found another NAR");
                self.store.withdraw_wrong(&held).await?;
                1
            }
            Verdict::Unknown => {
                warn!(nar = %held.nar_hash().to_nix32(), "scrub could not look at a NAR");
                0
            }
        };
        if found > 0 {
            self.forget(held.nar_hash()).await;
        }
        self.note(id, &held, found);
        Ok(Some(verdict))
    }

    fn note(&self, id: u64, held: &HeldNar, found: u64) {
        let takes = held.takes_bytes();
        let mut pace = locked(&self.scrub.pace);
        pace.spend(takes);
        let ahead_bytes = pace.ahead_bytes();
        drop(pace);
        self.store.change_scrub_mark(|mark| {
            mark.next_id = id + 1;
            mark.checked_bytes += takes;
            mark.ahead_bytes = ahead_bytes;
            mark.found += found;
        });
    }

    /// What was ready to be said of its paths named a file that is not here any more.
    async fn forget(&self, nar_hash: NarHash) {
        let paths = self.store.paths_of(nar_hash, fill::PATHS_MAX).await;
        for key in paths.unwrap_or_default() {
            self.memory.forget_ready(key);
        }
    }

    /// Reads the rows of the index; the store mends what is damaged.
    async fn check_index(&self, haste: Haste) -> Result<(), store::Error> {
        let mut place = None;
        loop {
            let began = Instant::now();
            place = self.store.check_index(place).await?;
            if place.is_none() {
                return Ok(());
            }
            sleep(haste.rest(began.elapsed(), self.store.quiet_for())).await;
        }
    }
}

#[cfg(test)]
impl Scrub {
    pub(super) fn waiting_repairs(&self) -> usize {
        self.repairs.waiting()
    }
}
