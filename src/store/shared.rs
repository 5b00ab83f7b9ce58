//! What lives as long as the store's handle, and how callers ask its threads: those that read, and
//! the writer.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot, watch};

use super::backend::Meters;
use super::command::{Act, Command, Reply};
use super::history::Slate;
use super::kept::Kept;
use super::queue::{Popped, Queue};
use super::session::Session;
use super::tables::Fault;
use super::{Config, Disk, Error, Figures, State, lock, within};
use crate::metrics::Metrics;

/// Commands that wait for the writer; callers wait beyond that.
const COMMANDS_MAX: usize = 256;

/// Questions that wait for a reading thread; callers wait beyond that.
const JOBS_MAX: usize = 256;

/// Rows in memory that have not landed, of all fills: 8 MiB, twice a transaction, so that one can
/// be filled while the other lands.
const PENDING_ROWS_MAX: usize = 32;

/// How long a caller waits for the writer: longer than a card stalls for its own housekeeping,
/// shorter than a client waits for an answer.
pub(super) const WRITER_WAIT: Duration = Duration::from_mins(1);

/// Work for a reading thread.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// What lives as long as the store's handle, open or not.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) metrics: Metrics,
    pub(super) meters: Meters,
    pub(super) commands: Queue<Command>,
    pub(super) index_jobs: Queue<Job>,
    pub(super) row_jobs: Arc<Queue<Job>>,
    pub(super) pending_rows: Arc<Semaphore>,
    /// Segments that met an I/O error while they were written: they take no more rows as long as
    /// this process lives.
    pub(super) shunned: Mutex<BTreeSet<u32>>,
    /// True once the first attempt to open has ended.
    pub(super) first_opened: watch::Sender<bool>,
    /// Figures that others keep with the index.
    pub(super) history: Slate,
    /// What the writer is at.
    pub(super) pulse: Pulse,
    /// Goes up whenever a pinned NAR is found missing, or goes because it is damaged.
    pub(super) pins_hurt: watch::Sender<u64>,
    status: Mutex<Status>,
    /// What may not be evicted, in figures: the session's, and the last one's when there is none.
    pub(super) kept: Mutex<Arc<Mutex<Kept>>>,
}

/// Since when the writer has been at one and the same thing; nothing while it waits for the next.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Option<Instant>>);

impl Pulse {
    pub(super) fn works(&self) {
        *lock(&self.0) = Some(Instant::now());
    }

    pub(super) fn waits(&self) {
        *lock(&self.0) = None;
    }

    fn stands_for(&self) -> Duration {
        lock(&self.0).map_or(Duration::ZERO, |since| since.elapsed())
    }
}

enum Status {
    Open(Arc<Session>),
    Degraded { reason: Arc<str>, since: Instant },
    Closed,
}

impl Shared {
    pub(super) fn new(config: Config, disk: Arc<dyn Disk>, metrics: Metrics) -> Self {
        let reason = "the store is being opened".into();
        Self {
            config,
            disk,
            meters: Meters::new(metrics.clone()),
            metrics,
            commands: Queue::new(COMMANDS_MAX),
            index_jobs: Queue::new(JOBS_MAX),
            row_jobs: Arc::new(Queue::new(JOBS_MAX)),
            pending_rows: Arc::new(Semaphore::new(PENDING_ROWS_MAX)),
            shunned: Mutex::default(),
            first_opened: watch::Sender::new(false),
            history: Slate::default(),
            pulse: Pulse::default(),
            pins_hurt: watch::Sender::new(0),
            kept: Mutex::default(),
            status: Mutex::new(Status::Degraded { reason, since: Instant::now() }),
        }
    }

    pub(super) fn session(&self) -> Result<Arc<Session>, Error> {
        match &*lock(&self.status) {
            Status::Open(session) => Ok(session.clone()),
            Status::Degraded { reason, .. } => Err(Error::Degraded(reason.clone())),
            Status::Closed => Err(Error::Closing),
        }
    }

    /// What may not be evicted, or was last known not to be.
    pub(super) fn kept(&self) -> Arc<Mutex<Kept>> {
        lock(&self.kept).clone()
    }

    pub(super) fn state(&self) -> State {
        match &*lock(&self.status) {
            Status::Open(_) => State::Open,
            Status::Degraded { reason, since } => {
                State::Degraded { reason: reason.clone(), since: since.elapsed() }
            }
            Status::Closed => {
                State::Degraded { reason: "the store is closed".into(), since: Duration::ZERO }
            }
        }
    }

    pub(super) fn writer_stands_for(&self) -> Duration {
        match self.state() {
            State::Open => self.pulse.stands_for(),
            State::Degraded { .. } => Duration::ZERO,
        }
    }

    pub(super) fn figures(&self) -> Figures {
        let written_bytes = self.meters.written_bytes();
        match self.session() {
            Ok(session) => Figures { written_bytes, ..session.figures() },
            Err(_) => Figures { written_bytes, ..Figures::default() },
        }
    }

    pub(super) fn opened(&self, session: Arc<Session>) {
        let mut status = lock(&self.status);
        if !matches!(*status, Status::Closed) {
            *status = Status::Open(session);
        }
        drop(status);
        self.first_opened.send_replace(true);
    }

    /// From now on all calls fail with the reason; since when stays as it was.
    pub(super) fn degraded(&self, reason: Arc<str>) {
        let mut status = lock(&self.status);
        let since = match &*status {
            Status::Degraded { since, .. } => *since,
            Status::Open(_) => Instant::now(),
            Status::Closed => return,
        };
        *status = Status::Degraded { reason, since };
        drop(status);
        self.first_opened.send_replace(true);
    }

    pub(super) fn closed(&self) {
        *lock(&self.status) = Status::Closed;
        self.first_opened.send_replace(true);
    }

    /// Asks the index on one of its threads. What lies in a damaged row is absent.
    pub(super) async fn on_index<T: Default + Send + 'static>(
        &self,
        session: &Arc<Session>,
        act: impl FnOnce(&Arc<Session>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        session.touch();
        self.on_index_unseen(session, act).await
    }

    /// The same without keeping the store from its rest.
    pub(super) async fn on_index_unseen<T: Default + Send + 'static>(
        &self,
        session: &Arc<Session>,
        act: impl FnOnce(&Arc<Session>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let asked = session.clone();
        let job = move || {
            let was_hurt = asked.is_hurt();
            let answer = asked.sound(act(&asked));
            (answer, asked.is_hurt() && !was_hurt)
        };
        let (answer, hurt) = run(&self.index_jobs, job).await?;
        if hurt {
            // Once for all who meet such rows until it has looked.
            self.commands.push_now(Command::In(session.clone(), Act::Mend));
        }
        answer.map_err(|fault| self.lost(session, &fault))
    }

    /// Asks the writer and waits for its answer.
    pub(super) async fn ask<T>(
        &self,
        session: &Arc<Session>,
        act: impl FnOnce(Reply<T>) -> Act,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let command = Command::In(session.clone(), act(reply));
        within(WRITER_WAIT, async {
            self.commands.push(command).await.map_err(|_| Error::Closing)?;
            self.hear(answer).await
        })
        .await
    }

    /// What the writer says; nothing when it was lost in the middle of it.
    pub(super) async fn hear<T>(
        &self,
        answer: oneshot::Receiver<Result<T, Error>>,
    ) -> Result<T, Error> {
        match answer.await {
            Ok(answer) => answer,
            Err(_unsaid) => match self.session() {
                Ok(_) => Err(Error::Degraded("the disk failed in the middle of this".into())),
                Err(error) => Err(error),
            },
        }
    }

    /// The index failed somebody: the writer is told to give the session up.
    pub(super) fn lost(&self, session: &Arc<Session>, fault: &Fault) -> Error {
        if session.is_over() {
            return match self.session() {
                Ok(_) => Error::Degraded("the store was opened again".into()),
                Err(error) => error,
            };
        }
        let reason = sentence(fault);
        self.commands.push_now(Command::Lost { session: session.clone(), reason: reason.clone() });
        Error::Degraded(reason)
    }
}

/// The life of a reading thread. A job that panics costs its asker an answer and nobody else.
pub(super) fn work(jobs: &Queue<Job>) {
    while let Popped::Item(job) = jobs.pop(None) {
        drop(catch_unwind(AssertUnwindSafe(job)));
    }
}

/// Runs a job on a pool of threads and waits for what it says.
pub(super) async fn run<T: Send + 'static>(
    jobs: &Queue<Job>,
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let (reply, answer) = oneshot::channel();
    let job: Job = Box::new(move || {
        // Nobody reads for somebody who has left.
        if !reply.is_closed() {
            drop(reply.send(act()));
        }
    });
    jobs.push(job).await.map_err(|_| Error::Closing)?;
    answer.await.map_err(|_| Error::Closing)
}

/// A fault with its causes, as one sentence for people.
pub(super) fn sentence(fault: &Fault) -> Arc<str> {
    let mut text = fault.to_string();
    let mut cause = std::error::Error::source(fault);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.into()
}
