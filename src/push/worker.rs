//! Carries a target's queue up, for as long as it takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::bring::{self, Turns};
use super::carry::{Carried, Carrier, Failed, name_of};
use super::order::{AHEAD, Order, Step};
use super::state::{Pace, Trouble};
use super::status::TargetState;
use super::{Inner, Push, now_s, sweep};
use crate::store::{self, QueueRow};
use crate::upstream::{self, Setback};

/// Rows that are read from the index at once.
const PAGE_LEN: usize = 128;

/// How often a worker that has nothing to do looks, in memory, whether that is still so: a store
/// that was lost and opened again may have rows that were struck off already.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How long what is under way may take when the daemon ends: small things get there, a big NAR
/// begins again.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// How long the bucket may take then to forget the parts of a big NAR: with the wait before, less
/// than the daemon gives the push side.
const ABORT_WAIT: Duration = Duration::from_millis(1500);

/// By which the workers are told something.
#[derive(Default)]
pub(super) struct Workers {
    retries: watch::Sender<u64>,
    changes: watch::Sender<u64>,
}

impl Workers {
    /// There are other targets.
    pub(super) fn change(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Inner {
    /// Rows that are parked, at all targets.
    pub(super) fn parked(&self) -> u64 {
        self.upstreams().desks.iter().map(|desk| desk.shown().parked).sum()
    }
}

/// One worker for each target, and the sweep of unbound uploads, until `stop`.
pub(super) async fn run(inner: &Arc<Inner>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    tasks.spawn(sweep::uploads(inner.clone(), stop.clone()));
    tasks.spawn(sweep::figures(inner.clone(), stop.clone()));
    let mut changes = inner.workers.changes.subscribe();
    while !stop.is_cancelled() {
        changes.mark_unchanged();
        let replaced = stop.child_token();
        let mut workers = of_all(inner, &replaced);
        tokio::select! {
            () = stop.cancelled() => {}
            _ = changes.changed() => replaced.cancel(),
        }
        while workers.join_next().await.is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

fn of_all(inner: &Arc<Inner>, stop: &CancellationToken) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    let upstreams = inner.upstreams();
    for (target, desk) in upstreams.targets.iter().zip(&upstreams.desks) {
        let carrier = Carrier {
            inner: inner.clone(),
            target: target.clone(),
            desk: desk.clone(),
            turns: Arc::new(Turns::default()),
        };
        workers.spawn(keep_working(carrier, stop.clone()));
    }
    workers
}

/// A worker that breaks down must not leave its queue for ever: another one begins, with a rest.
async fn keep_working(carrier: Carrier, stop: CancellationToken) {
    let mut worker = Worker::new(carrier.clone());
    loop {
        let mut one = JoinSet::new();
        one.spawn(worker.work(stop.clone()));
        let Some(Err(panic)) = one.join_next().await else { return };
        if stop.is_cancelled() {
            return;
        }
        error!(error = &panic as &dyn std::error::Error, "worker of a push target broke down");
        worker = Worker::new(carrier.clone());
        worker.in_trouble(Duration::ZERO, Trouble::Passing, "the worker broke down".to_owned());
    }
}

impl Push {
    /// Every worker tries at once, whatever its back-off says, and parked rows are tried again.
    pub fn retry(&self) {
        self.inner.workers.retries.send_modify(|count| *count += 1);
    }
}

/// What went up since the queue was last empty.
#[derive(Debug)]
struct Trip {
    began: Instant,
    objects: u64,
    bytes: u64,
}

/// How a carrier's task ends.
type Ended = Result<(Id, Result<Carried, Failed>), JoinError>;

/// One target's worker.
struct Worker {
    carrier: Carrier,
    started: Instant,
    order: Order,
    pace: Pace,
    /// The queue was read up to here.
    cursor: u64,
    /// There was nothing behind that.
    at_end: bool,
    carries: JoinSet<Result<Carried, Failed>>,
    under_way: HashMap<Id, (QueueRow, Duration)>,
    trip: Option<Trip>,
}

impl Worker {
    fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            started: Instant::now(),
            order: Order::default(),
            pace: Pace::default(),
            cursor: 0,
            at_end: false,
            carries: JoinSet::new(),
            under_way: HashMap::new(),
            trip: None,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn url(&self) -> &Arc<str> {
        self.carrier.target.url()
    }

    async fn work(mut self, stop: CancellationToken) {
        let mut queued = self.carrier.inner.queued.subscribe();
        let mut retries = self.carrier.inner.workers.retries.subscribe();
        loop {
            if stop.run_until_cancelled(self.begin_what_may()).await.is_none() {
                break;
            }
            self.sum_up();
            self.show();
            let wake = self.wake();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = self.carries.join_next_with_id() => self.ended(ended),
                Ok(()) = queued.changed() => self.at_end = false,
                Ok(()) = retries.changed() => self.retry(),
                () = tokio::time::sleep(wake) => self.look(),
            }
        }
        let rest = async { while self.carries.join_next().await.is_some() {} };
        drop(tokio::time::timeout(STOP_WAIT, rest).await);
        self.carries.shutdown().await;
        drop(tokio::time::timeout(ABORT_WAIT, self.carrier.target.abort_left()).await);
    }

    /// Begins as many as the target's pace allows.
    async fn begin_what_may(&mut self) {
        if self.order.unpark(self.now()) {
            self.read_anew();
        }
        while self.carries.len() < self.pace.places(self.now()) {
            match self.next().await {
                Ok(Some(row)) => self.begin(row),
                Ok(None) => return,
                Err(error) => {
                    let now = self.now();
                    return self.in_trouble(now, Trouble::Passing, Failed::from(error).chain());
                }
            }
        }
    }

    /// The next row that may go, reading on in the queue as far as it takes.
    async fn next(&mut self) -> Result<Option<QueueRow>, store::Error> {
        let inner = self.carrier.inner.clone();
        while self.order.len() < AHEAD && self.read_on().await? {}
        loop {
            match self.order.step(self.now()) {
                Step::Carry(row) => return Ok(Some(row)),
                Step::References(what) => {
                    let references = bring::references(&inner, &what).await?;
                    self.order.refers_to(&what, references);
                }
                Step::Row(what) => {
                    let row = inner.store.queue_row(self.url(), what.clone()).await?;
                    self.order.found(&what, row, self.now());
                }
                Step::Nothing => {
                    if !(self.order.has_room() && self.read_on().await?) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Takes in the next rows of the queue. No at its end.
    async fn read_on(&mut self) -> Result<bool, store::Error> {
        if self.at_end {
            return Ok(false);
        }
        let store = &self.carrier.inner.store;
        let rows = store.queue(self.url(), self.cursor, PAGE_LEN).await?;
        self.at_end = rows.len() < PAGE_LEN;
        for row in rows {
            self.cursor = self.cursor.max(row.seq);
            self.order.offer(row);
        }
        Ok(true)
    }

    fn begin(&mut self, row: QueueRow) {
        if self.trip.is_none() {
            let waiting = self.order.len();
            info!(upstream = %self.url(), waiting, "carrying what waits");
            self.trip = Some(Trip { began: Instant::now(), objects: 0, bytes: 0 });
        }
        self.carrier.desk.names(&row.what, name_of(&row.what));
        let (carrier, carried) = (self.carrier.clone(), row.clone());
        let task = self.carries.spawn(async move { Box::pin(carrier.carry(&carried)).await });
        self.under_way.insert(task.id(), (row, self.now()));
    }

    fn ended(&mut self, ended: Ended) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some((row, began)) = self.under_way.remove(&id) else { return };
        let name = self.carrier.desk.ends(&row.what).unwrap_or_default();
        match ended {
            Ok((_, Ok(carried))) => self.carried(&row, name, carried),
            Ok((_, Err(failed))) => self.failed(&row, began, &failed),
            Err(error) => {
                error!(what = %name_of(&row.what), error = &error as &dyn std::error::Error,
                    "carrying broke down");
                self.park(&row, began, "carrying it broke down".to_owned());
            }
        }
    }

    fn carried(&mut self, row: &QueueRow, name: String, carried: Carried) {
        let metrics = &self.carrier.inner.metrics;
        debug!(upstream = %self.url(), what = %name, how = ?carried, "carried");
        let sent = match carried {
            Carried::Put(bytes) => Some(bytes),
            Carried::There => Some(0),
            Carried::Differs | Carried::Withheld => {
                metrics.push_differs.inc();
                self.carrier.desk.differs(name);
                None
            }
            Carried::Elsewhere | Carried::Gone | Carried::Lost(_) => None,
        };
        if let Some(bytes) = sent {
            metrics.pushed.inc();
            metrics.pushed_bytes.inc_by(bytes);
            self.carrier.desk.pushed(bytes);
            if let Some(trip) = &mut self.trip {
                trip.objects += 1;
                trip.bytes += bytes;
            }
        }
        if matches!(carried, Carried::Lost(_)) {
            self.order.lost(&row.what, self.now());
        } else {
            self.order.done(&row.what);
        }
        self.is_well(matches!(carried, Carried::Put(_)));
    }

    fn failed(&mut self, row: &QueueRow, began: Duration, failed: &Failed) {
        self.carrier.inner.metrics.push_failed.inc();
        let mut said = failed.chain();
        debug!(upstream = %self.url(), what = %name_of(&row.what), said, "not carried");
        // That its reading side rests says less than what made it rest.
        if let Failed::Target(upstream::Error::Resting { .. }) = failed
            && let Some(before) = self.carrier.desk.shown().last_error()
        {
            said = before;
        }
        let setback = match failed {
            Failed::Target(error) => error.setback(),
            Failed::Store(_) => {
                self.order.waits_again(&row.what);
                return self.in_trouble(began, Trouble::Passing, said);
            }
            Failed::Early => {
                let waited = now_s().saturating_sub(row.queued_at_s);
                self.order.early(&row.what, Duration::from_secs(waited), self.now());
                return;
            }
        };
        match setback {
            Setback::Object => self.park(row, began, said),
            Setback::Clock => {
                self.order.waits_again(&row.what);
                self.in_trouble(began, Trouble::Passing, said);
            }
            Setback::Passing | Setback::Target | Setback::Source => {
                if self.order.failed(&row.what, self.pace.successes()) {
                    return self.park(row, began, said);
                }
                let how = match setback {
                    Setback::Target => Trouble::Refusing,
                    Setback::Passing | Setback::Clock | Setback::Object | Setback::Source => {
                        Trouble::Passing
                    }
                };
                self.in_trouble(began, how, said);
            }
        }
    }

    /// Sets a row aside that the target does not take.
    fn park(&mut self, row: &QueueRow, began: Duration, said: String) {
        warn!(upstream = %self.url(), what = %name_of(&row.what), said,
            "target does not take this, it is set aside for an hour");
        if self.order.park(&row.what, said.clone(), self.now()) {
            self.is_well(false);
        } else {
            self.order.failed(&row.what, self.pace.successes());
            self.in_trouble(began, Trouble::Refusing, said);
        }
    }

    fn is_well(&mut self, put: bool) {
        let was = self.pace.trouble();
        self.pace.succeeded(put);
        if was.is_some() && self.pace.trouble().is_none() {
            info!(upstream = %self.url(), "target takes what it is given again");
            self.carrier.desk.trouble(None);
        }
    }

    fn in_trouble(&mut self, began: Duration, how: Trouble, said: String) {
        // No random number is no reason to fail: then all wait the longest.
        let chance = getrandom::u32().map_or(1.0, |n| f64::from(n) / f64::from(u32::MAX));
        let was = self.pace.trouble();
        self.pace.failed(began, self.now(), how, chance);
        if was != self.pace.trouble() {
            warn!(upstream = %self.url(), said, refuses = how == Trouble::Refusing,
                "nothing can be carried now, will try again");
        }
        // A connection that broke beside a refusal, as a refusal in the middle of a body may look
        // from here, says less than the refusal.
        if self.pace.trouble() == Some(how) {
            self.carrier.desk.trouble(Some(said));
        }
    }

    fn retry(&mut self) {
        self.order.retry();
        self.pace.retry(self.now());
        self.read_anew();
    }

    fn read_anew(&mut self) {
        self.cursor = 0;
        self.at_end = false;
    }

    /// Whether the store says that more waits than is known here.
    fn look(&mut self) {
        if self.order.len() > 0 || !self.at_end {
            return;
        }
        let queues = self.carrier.inner.store.queues();
        let waiting = queues.iter().find(|queue| *queue.target == **self.url());
        let known = u64::try_from(self.order.parked()).unwrap_or(u64::MAX);
        if waiting.is_some_and(|queue| queue.waiting > known) {
            self.read_anew();
        }
    }

    /// How long to sleep when nothing happens.
    fn wake(&self) -> Duration {
        let now = self.now();
        let due = self.pace.due(now).into_iter().chain(self.order.due()).min();
        due.map_or(LOOK_EVERY, |due| due.saturating_sub(now).min(LOOK_EVERY))
    }

    /// Says what went up, once nothing waits any more.
    fn sum_up(&mut self) {
        if self.order.len() > 0 || !self.at_end {
            return;
        }
        let Some(Trip { began, objects, bytes }) = self.trip.take() else { return };
        let (parked, took_s) = (self.order.parked(), began.elapsed().as_secs());
        info!(upstream = %self.url(), objects, bytes, took_s, parked, "carried what waited");
    }

    fn show(&self) {
        let now = self.now();
        let due = self.pace.due(now);
        let state = match self.pace.trouble() {
            Some(Trouble::Refusing) => TargetState::Stopped,
            _ if !self.carries.is_empty() => TargetState::Sending,
            Some(Trouble::Passing) => TargetState::Waiting,
            None if self.order.len() > 0 => TargetState::Waiting,
            None => TargetState::Idle,
        };
        let retry_at = due.map(|due| self.started + due);
        let parked = u64::try_from(self.order.parked()).unwrap_or(u64::MAX);
        let refused = self.order.refused().next();
        let refused = refused.map(|(what, said)| format!("{}: {said}", name_of(what)));
        self.carrier.desk.show(state, parked, refused, retry_at);
    }
}
