//! The one writer: a thread that owns all write transactions. What it does with rows is in
//! [`landing`](super::landing) and [`group`](super::group), what has to go in
//! [`evict`](super::evict) and [`removal`](super::removal), its life in [`life`](super::life).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redb::{Database, Durability, WriteTransaction};

use super::accepts::PushOp;
use super::command::{Act, Command};
use super::evict::Waiting;
use super::group::{Finishing, GROUP_AGE_MAX};
use super::landing::Landing;
use super::life::End;
use super::load::Totals;
use super::mend::Known;
use super::open::{FolderLock, Opened};
use super::queue::Popped;
use super::records::SegmentRecord;
use super::removal::Removal;
use super::session::{Entry, Session};
use super::shared::{Shared, sentence};
use super::small::IndexOp;
use super::tables::Fault;
use super::{Error, lock};

/// When nothing was asked for so long, what waits is made durable.
const QUIET: Duration = Duration::from_secs(2);

/// NARs that are finished in one go.
const FINISHING_MAX: usize = 64;

/// Changes of the index in one transaction without durability.
const OPS_MAX: usize = 256;

/// Whether a commit waits for the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durable {
    /// It does, and the file can be opened quickly after a crash: always both.
    Yes,
    /// The next durable commit of the file takes it along.
    No,
}

/// The only place where a write transaction begins.
#[allow(clippy::disallowed_methods, reason = "this is the writer")]
pub(super) fn write_txn(database: &Database, durable: Durable) -> Result<WriteTransaction, Fault> {
    let mut txn = database.begin_write()?;
    match durable {
        Durable::Yes => txn.set_quick_repair(true),
        Durable::No => txn.set_durability(Durability::None)?,
    }
    Ok(txn)
}

/// A segment as the writer knows it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SegmentState {
    /// What the index says, or will with its next transaction.
    pub(super) record: SegmentRecord,
    /// Bytes of rows that the index does not know.
    pub(super) unknown_bytes: u64,
    /// Bytes that the index counts and whose rows are gone.
    pub(super) gone_bytes: u64,
}

impl SegmentState {
    pub(super) fn bytes(&self) -> u64 {
        (self.record.count_bytes + self.unknown_bytes).saturating_sub(self.gone_bytes)
    }
}

/// The writer's state while the store is open.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) session: Arc<Session>,
    pub(super) totals: Totals,
    pub(super) segments: BTreeMap<u32, SegmentState>,
    /// Segments whose records the next index transaction has to write.
    pub(super) changed_segments: BTreeSet<u32>,
    /// The segment that takes rows.
    pub(super) current: Option<u32>,
    /// The one that took rows last.
    pub(super) last_current: Option<u32>,
    /// Segments whose files were read whole after trouble with writing.
    pub(super) readable: BTreeSet<u32>,
    /// How the index was written last since it was opened.
    pub(super) index_written: Option<Durable>,
    pub(super) closing: bool,
    /// Nothing could be evicted when it was last tried.
    pub(super) stuck_since: Option<Instant>,
    /// Rows are in the current segment that no durable commit covers.
    pub(super) segment_dirty: bool,
    pub(super) landing: Vec<Landing>,
    pub(super) landing_bytes: usize,
    pub(super) finishing: Vec<Finishing>,
    pub(super) ops: Vec<IndexOp>,
    /// What is written with the next group.
    pub(super) pushes: Vec<PushOp>,
    /// Since when somebody waits for that.
    pub(super) urgent_since: Option<Instant>,
    pub(super) group: Vec<Arc<Entry>>,
    /// Rows landed since the last group.
    pub(super) group_bytes: u64,
    /// Since when something waits for a durable commit.
    pub(super) waiting_since: Option<Instant>,
    pub(super) removals: VecDeque<Removal>,
    pub(super) room: VecDeque<Waiting>,
    /// Orphans of a crash: segment and the id from which on it may hold unknown rows.
    pub(super) searches: VecDeque<(u32, u64, u64)>,
    /// Damaged segments whose NARs have to go, and from which id on.
    pub(super) sweeps: VecDeque<(u32, u64)>,
    /// When the index was last mended.
    pub(super) mended: Option<Instant>,
    /// What the clock said when it was last noted, once that is known.
    pub(super) noted_s: Option<u64>,
    /// How far the counting of what is pinned has come.
    pub(super) pins_counted: Option<Vec<u8>>,
    /// What the index is known to say of itself.
    pub(super) known: Known,
    pub(super) last_ask: Instant,
    /// The folder is ours until all is closed.
    _folder_lock: FolderLock,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, opened: Opened) -> Self {
        Self {
            shared,
            session: opened.session,
            totals: opened.totals,
            changed_segments: BTreeSet::new(),
            current: None,
            last_current: opened.segments.last_key_value().map(|(last, _)| *last),
            readable: BTreeSet::new(),
            segments: opened.segments,
            index_written: None,
            closing: false,
            stuck_since: None,
            segment_dirty: false,
            landing: Vec::new(),
            landing_bytes: 0,
            finishing: Vec::new(),
            ops: Vec::new(),
            pushes: Vec::new(),
            urgent_since: None,
            group: Vec::new(),
            group_bytes: 0,
            waiting_since: None,
            removals: opened.removals.into(),
            room: VecDeque::new(),
            searches: opened.searches.into(),
            sweeps: opened.sweeps.into(),
            mended: None,
            noted_s: None,
            pins_counted: None,
            known: opened.known,
            last_ask: Instant::now(),
            _folder_lock: opened.folder_lock,
        }
    }

    pub(super) fn run(&mut self) -> Result<End, Fault> {
        loop {
            let patience = self.patience();
            self.shared.pulse.waits();
            let popped = self.shared.commands.pop(Some(patience));
            self.shared.pulse.works();
            match popped {
                Popped::Item(Command::Close) | Popped::Closed => {
                    // The end comes whatever the disk says to it.
                    if let Err(fault) = self.shut() {
                        tracing::error!(fault = %sentence(&fault), "store closed without its last");
                    }
                    return Ok(End::Closed);
                }
                Popped::Item(Command::Lost { session, reason }) => {
                    if Arc::ptr_eq(&session, &self.session) {
                        return Ok(End::Lost(reason));
                    }
                }
                Popped::Item(Command::In(session, act)) => {
                    if Arc::ptr_eq(&session, &self.session) {
                        self.last_ask = Instant::now();
                        self.take(act)?;
                    } else {
                        act.refuse(Error::Degraded("the store was opened again".into()));
                    }
                }
                // Nobody else joins those who wait for a commit.
                Popped::TimedOut if self.urgent_since.is_some() => self.commit_group()?,
                Popped::TimedOut => {
                    self.land()?;
                    self.apply_ops()?;
                    self.in_the_background()?;
                    self.rest()?;
                }
            }
            if self.group_is_due() {
                self.commit_group()?;
            }
        }
    }

    /// The index holds something that no durable commit covers.
    pub(super) fn is_index_dirty(&self) -> bool {
        self.index_written == Some(Durable::No)
    }

    /// How long the writer waits for a command before it does what can wait.
    fn patience(&self) -> Duration {
        let busy = !self.landing.is_empty()
            || !self.finishing.is_empty()
            || !self.ops.is_empty()
            || self.urgent_since.is_some()
            || self.has_background_work();
        self.session.busy.store(busy, Ordering::Release);
        if busy {
            return Duration::ZERO;
        }
        let Some(since) = self.waiting_since else { return self.until_rest() };
        // A fill that gets no bytes keeps the quiet from coming; its next word, or age, ends that.
        if lock(&self.session.fills).is_empty() {
            return QUIET.saturating_sub(self.last_ask.elapsed());
        }
        GROUP_AGE_MAX.saturating_sub(since.elapsed())
    }

    /// Things wait for a durable commit, and nothing was asked for a while.
    pub(super) fn is_quiet(&self) -> bool {
        self.last_ask.elapsed() >= QUIET && lock(&self.session.fills).is_empty()
    }

    fn take(&mut self, act: Act) -> Result<(), Fault> {
        match act {
            Act::Row { fill, row, value } => self.row(Landing { fill, row, value }),
            Act::Finish { fill, finished, reply } => {
                self.finishing.push(Finishing { fill, finished, reply });
                if self.finishing.len() >= FINISHING_MAX { self.land() } else { Ok(()) }
            }
            Act::Index(op) => {
                self.ops.push(op);
                if self.ops.len() >= OPS_MAX { self.apply_ops() } else { Ok(()) }
            }
            Act::Push(op) => {
                self.push(op);
                Ok(())
            }
            Act::Ids(reply) => {
                self.reserve_ids()?;
                drop(reply.send(Ok(())));
                Ok(())
            }
            Act::Room { bytes, reply } => {
                self.room.push_back(Waiting { bytes, reply });
                Ok(())
            }
            Act::Abandon(fill) => {
                self.land()?;
                self.orphan(&fill);
                Ok(())
            }
            Act::EvictTo { to_bytes, reply } => {
                let gone = self.evict_to(to_bytes)?;
                drop(reply.send(Ok(gone)));
                Ok(())
            }
            Act::EvictNar { nar_hash, reply } => {
                let gone = self.evict_nar(nar_hash)?;
                drop(reply.send(Ok(gone)));
                Ok(())
            }
            Act::Damaged { place, nar_hash } => self.damaged(place, nar_hash),
            Act::Withdraw { nar_hash, reply } => {
                self.withdraw(nar_hash)?;
                drop(reply.send(Ok(())));
                Ok(())
            }
            Act::Wrong { id, nar_hash, reply } => {
                self.wrong(id, nar_hash)?;
                drop(reply.send(Ok(())));
                Ok(())
            }
            Act::IsGone { id, reply } => {
                drop(reply.send(Ok(self.is_gone(id)?)));
                Ok(())
            }
            Act::Mend => self.mend_if_due(),
            Act::Unread => Ok(()),
            Act::Flush(reply) => {
                self.commit_group()?;
                drop(reply.send(Ok(())));
                Ok(())
            }
        }
    }

    /// Nobody waits for a writer that has ended.
    pub(super) fn refuse_all(&mut self, reason: &Arc<str>) {
        let error = || Error::Degraded(reason.clone());
        for finishing in self.finishing.drain(..) {
            drop(finishing.reply.send(Err(error())));
        }
        for op in self.ops.drain(..) {
            op.refuse(error());
        }
        for op in self.pushes.drain(..) {
            op.refuse(error());
        }
        for waiting in self.room.drain(..) {
            drop(waiting.reply.send(Err(error())));
        }
        self.landing.clear();
    }

    /// What is finished stays; the files are closed by the caller.
    fn shut(&mut self) -> Result<(), Fault> {
        self.closing = true;
        self.commit_group()
    }
}
