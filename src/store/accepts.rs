//! What is taken for good: uploads, accepted paths and documents, and what is said about the queue.
//! All of it is written in the transaction that makes its NARs durable, so that nothing is
//! acknowledged before its NAR is on the disk, and many share one commit.

use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::WriteTransaction;

use super::command::Reply;
use super::keys::{AliasKey, SmallKey};
use super::pin_care::{PinOp, PinSaid};
use super::queue_care::Forgetting;
use super::records::Small;
use super::tables::Fault;
use super::uploads::alias_key;
use super::writer::Writer;
use super::{Acceptance, Alias, Error, HeldNar, Origin, Queued, lock};
use crate::nix::NarHash;

/// So many are written in one transaction.
const PUSHES_MAX: usize = 256;

/// Somebody waits for a commit: so long others may join it while commands keep coming. A card takes
/// about as long for the commit itself.
const URGENT_MAX: Duration = Duration::from_millis(50);

/// What goes into the transaction of the next group.
pub(super) enum PushOp {
    /// An upload waits for its narinfo. Nobody waits for this one.
    Upload { key: AliasKey, alias: Alias, nar: HeldNar },
    /// A path is to be acknowledged.
    Accept { acceptance: Box<Acceptance>, now_s: u64, reply: Reply<()> },
    /// A document is to be acknowledged.
    Document { name: String, body: Bytes, targets: Vec<String>, now_s: u64, reply: Reply<()> },
    /// The bytes of something are damaged.
    Lost { target: String, what: Queued, reply: Reply<()> },
    /// The rows of a target, or only its lost ones, are to be forgotten.
    Forget { target: String, only_lost: bool, at: Forgetting, reply: Reply<u64> },
    /// Uploads that nobody bound are to be forgotten.
    Sweep { before_s: u64, reply: Reply<u64> },
    /// Something is to be done about a pin.
    Pin(PinOp),
}

/// What is said and done once the transaction is durable.
pub(super) enum Pushed {
    Told(Reply<()>, Result<(), Error>),
    Uploaded {
        key: AliasKey,
        alias: Alias,
        nar: HeldNar,
    },
    /// A slice of it: it may not be all.
    Forgot(PushOp),
    Swept {
        pathless: Vec<NarHash>,
        count: u64,
        reply: Reply<u64>,
    },
    Pin(PinSaid),
}

impl PushOp {
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Upload { .. } => {}
            Self::Pin(op) => op.refuse(error),
            Self::Accept { reply, .. }
            | Self::Document { reply, .. }
            | Self::Lost { reply, .. } => {
                drop(reply.send(Err(error)));
            }
            Self::Forget { reply, .. } | Self::Sweep { reply, .. } => drop(reply.send(Err(error))),
        }
    }

    /// Whether somebody waits until it is durable.
    fn is_urgent(&self) -> bool {
        !matches!(self, Self::Upload { .. })
    }

    /// The NAR that it needs.
    fn nar(&self) -> Option<&HeldNar> {
        match self {
            Self::Upload { nar, .. } => Some(nar),
            Self::Accept { acceptance, .. } => Some(&acceptance.nar),
            Self::Document { .. }
            | Self::Lost { .. }
            | Self::Forget { .. }
            | Self::Sweep { .. }
            | Self::Pin(_) => None,
        }
    }
}

/// What a NAR takes in its segments.
pub(super) fn takes(nar: &HeldNar) -> u64 {
    super::layout::stream_takes(nar.file_size())
}

impl Writer {
    /// Takes one for the next group.
    pub(super) fn push(&mut self, op: PushOp) {
        let now = Instant::now();
        self.waiting_since.get_or_insert(now);
        if op.is_urgent() {
            self.urgent_since.get_or_insert(now);
        }
        self.pushes.push(op);
    }

    /// Whether those who wait have waited long enough for others to join them.
    pub(super) fn pushes_are_due(&self) -> bool {
        self.pushes.len() >= PUSHES_MAX
            || self.urgent_since.is_some_and(|since| since.elapsed() >= URGENT_MAX)
    }

    /// Whether something that waits to be written needs this NAR.
    pub(super) fn is_wanted(&self, nar_hash: NarHash) -> bool {
        self.pushes.iter().filter_map(PushOp::nar).any(|nar| nar.nar_hash() == nar_hash)
            || lock(&self.session.overlay).aliases.values().any(|alias| alias.nar_hash == nar_hash)
    }

    /// Writes them, in the order in which they came.
    pub(super) fn pushes_in(
        &mut self,
        txn: &WriteTransaction,
        ops: Vec<PushOp>,
    ) -> Result<Vec<Pushed>, Fault> {
        ops.into_iter().map(|op| self.push_in(txn, op)).collect()
    }

    fn push_in(&mut self, txn: &WriteTransaction, op: PushOp) -> Result<Pushed, Fault> {
        match op {
            PushOp::Upload { key, alias, nar } => {
                self.upload_in(txn, key, alias)?;
                Ok(Pushed::Uploaded { key, alias, nar })
            }
            PushOp::Accept { acceptance, now_s, reply } => {
                let accepted = self.accept_in(txn, &acceptance, now_s)?;
                Ok(Pushed::Told(reply, accepted))
            }
            PushOp::Document { name, body, targets, now_s, reply } => {
                self.document_in(txn, &name, &body, (&targets, now_s))?;
                Ok(Pushed::Told(reply, Ok(())))
            }
            PushOp::Lost { target, what, reply } => {
                self.lose_in(txn, &target, &what)?;
                Ok(Pushed::Told(reply, Ok(())))
            }
            PushOp::Forget { target, only_lost, mut at, reply } => {
                self.forget_in(txn, &target, only_lost, &mut at)?;
                Ok(Pushed::Forgot(PushOp::Forget { target, only_lost, at, reply }))
            }
            PushOp::Pin(op) => Ok(Pushed::Pin(self.pin_in(txn, op)?)),
            PushOp::Sweep { before_s, reply } => {
                let (count, pathless) = self.sweep_in(txn, before_s)?;
                Ok(Pushed::Swept { pathless, count, reply })
            }
        }
    }

    /// Rows first: by them it is known that the narinfo and the NAR may not go.
    fn accept_in(
        &mut self,
        txn: &WriteTransaction,
        acceptance: &Acceptance,
        now_s: u64,
    ) -> Result<Result<(), Error>, Fault> {
        let Acceptance { stored, nar, upload, targets } = acceptance;
        let nar_hash = stored.narinfo.nar_hash;
        // It was damaged, and withdrawn meanwhile.
        if nar.nar_hash() != nar_hash || self.held_in(txn, nar_hash)?.is_none() {
            return Ok(Err(Error::Corrupt(nar_hash)));
        }
        let key = stored.narinfo.store_path.hash();
        for target in targets {
            self.queue_in(txn, target, &Queued::Path(key), (nar.file_size(), now_s))?;
        }
        self.narinfo_in(txn, key, Some(stored))?;
        if let Some(name) = upload {
            self.bind_in(txn, alias_key(*name), nar_hash)?;
        }
        let origin = stored.origin.min(Origin::Ours);
        self.settle_as(txn, nar_hash, |_| origin)?;
        Ok(Ok(()))
    }

    fn document_in(
        &mut self,
        txn: &WriteTransaction,
        name: &str,
        body: &Bytes,
        (targets, now_s): (&[String], u64),
    ) -> Result<(), Fault> {
        let len_bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        for target in targets {
            let what = Queued::Document(name.to_owned());
            self.queue_in(txn, target, &what, (len_bytes, now_s))?;
        }
        let key = SmallKey::Document(name.to_owned());
        let last_use = self.use_now(txn, &key)?;
        let small = Small { last_use, value: (Origin::Ours, body.to_vec()) };
        self.small_in(txn, &key, Some((last_use, small.to_bytes())))
    }

    /// All of it is durable: whoever waits is told.
    pub(super) fn pushed(&mut self, pushed: Vec<Pushed>) -> Result<(), Fault> {
        for pushed in pushed {
            match pushed {
                Pushed::Told(reply, result) => drop(reply.send(result)),
                Pushed::Pin(said) => said.tell(),
                Pushed::Uploaded { key, alias, nar } => {
                    let mut overlay = lock(&self.session.overlay);
                    // A later one of the same name stays until its turn.
                    if overlay.aliases.get(&key) == Some(&alias) {
                        overlay.aliases.remove(&key);
                    }
                    drop(overlay);
                    let mut kept = lock(&self.session.kept);
                    kept.coming_bytes = kept.coming_bytes.saturating_sub(takes(&nar));
                }
                Pushed::Forgot(PushOp::Forget { at, reply, .. }) if at.done => {
                    drop(reply.send(Ok(at.count)));
                }
                Pushed::Forgot(op) => self.push(op),
                Pushed::Swept { pathless, count, reply } => {
                    self.drop_unread(&pathless)?;
                    drop(reply.send(Ok(count)));
                }
            }
        }
        Ok(())
    }

    /// NARs that no path has go, but for those that somebody reads: they go by eviction.
    fn drop_unread(&mut self, nar_hashes: &[NarHash]) -> Result<(), Fault> {
        let mut chosen = Vec::new();
        for nar_hash in nar_hashes.iter().filter(|nar_hash| !self.is_wanted(**nar_hash)) {
            let found = super::evict::held_in(&self.session.index, *nar_hash);
            let found = self.session.sound(found)?;
            if let Some((id, record)) = found
                && lock(&self.session.pins).doom_unread(id)
            {
                chosen.push((id, record));
            }
        }
        if chosen.is_empty() { Ok(()) } else { self.doom(&chosen) }
    }
}
