//! What was withdrawn for its bytes is fetched again, whoever found it: a client, the scrub, or a segment
//! that failed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::cache::{Inner, fill, locked};
use crate::nix::{NarHash, NarName, StorePathHash};

/// NARs that wait to be fetched again, besides those that the store still has the names of.
const REPAIRS_MAX: usize = 4096;

/// How often one is tried: with a look an hour, two days of an upstream that is away. Clients that ask
/// for it have it fetched whatever this says.
const REPAIR_TRIES_MAX: u32 = 48;

/// NARs that could not be fetched again and are remembered, for people: as many as are tried.
const UNREPAIRED_MAX: usize = REPAIRS_MAX;

/// Of those, names that are told: of what is nowhere, and of what may still be had.
const NAMED_MAX: usize = 8;

/// NARs that are to be fetched again.
#[derive(Debug, Default)]
pub(in super::super) struct Repairs {
    /// In the order in which they are tried.
    due: Mutex<VecDeque<Repair>>,
    failed: Mutex<Failed>,
}

/// What could not be fetched again and is not here by other ways, since this cache was started.
type Failed = HashMap<NarHash, Lost>;

/// What was withdrawn for its bytes and could not be had again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unrepaired {
    /// So many NARs.
    pub count: u64,
    /// Of those, so many that every upstream says it has not.
    pub nowhere: u64,
    /// Names of some: first what is nowhere, and of both first what is known for longest.
    pub named: Vec<(String, WantedFor)>,
}

/// For how long a path has been wanted, and whether somebody may still have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedFor {
    /// Since the first look for it.
    pub since: Duration,
    /// Every upstream says that it has it not; otherwise it is promised still.
    pub is_nowhere: bool,
}

/// A path whose NAR is gone.
#[derive(Debug, Clone)]
struct Path {
    key: StorePathHash,
    name: String,
}

#[derive(Debug, Clone)]
struct Lost {
    path: Path,
    since: Instant,
    is_nowhere: bool,
}

/// A NAR that is to be fetched again.
#[derive(Debug, Clone)]
struct Repair {
    nar_hash: NarHash,
    tries: u32,
    /// Known since it was first looked for.
    path: Option<Path>,
}

impl Repair {
    const fn is_last(&self) -> bool {
        self.tries + 1 >= REPAIR_TRIES_MAX
    }
}

/// How fetching again ended.
enum Repaired {
    Held,
    /// Nobody has it, or nobody asks for it.
    Nowhere,
    /// It is to be tried again.
    NotNow(Option<Path>),
}

impl Inner {
    /// Tries to fetch again all that was withdrawn: how many came, and how many did not.
    pub(super) async fn repair_all(
        self: &Arc<Self>,
        tell: &(impl Fn(u64, u64) + Sync),
    ) -> (u64, u64) {
        let waiting = self.take_withdrawn();
        let of = u64::try_from(waiting).unwrap_or(u64::MAX);
        let (mut came, mut failed) = (0, 0);
        for done in 0..of {
            tell(done, of);
            // Left where it is until it is done: whoever waits for this may leave.
            let Some(repair) = locked(&self.scrub.repairs.due).front().cloned() else { break };
            let ended = Box::pin(self.repair(&repair)).await;
            let mut repairs = locked(&self.scrub.repairs.due);
            let is_there = repairs.front().is_some_and(|it| it.nar_hash == repair.nar_hash);
            if is_there {
                repairs.pop_front();
            }
            match ended {
                Repaired::Held => came += 1,
                Repaired::Nowhere => failed += 1,
                Repaired::NotNow(path) => {
                    failed += 1;
                    if is_there && !repair.is_last() {
                        let (nar_hash, tries) = (repair.nar_hash, repair.tries + 1);
                        repairs.push_back(Repair { nar_hash, tries, path });
                    }
                }
            }
        }
        (came, failed)
    }

    /// Takes over what the store withdrew, as far as there is room: how many are to be fetched then.
    fn take_withdrawn(&self) -> usize {
        let mut due = locked(&self.scrub.repairs.due);
        let room = REPAIRS_MAX.saturating_sub(due.len());
        let new = self.store.take_withdrawn(room).into_iter();
        due.extend(new.map(|nar_hash| Repair { nar_hash, tries: 0, path: None }));
        due.len()
    }

    /// This NAR is nowhere to be had, and its path is about to be promised no more. Where its bytes were
    /// damaged, the next look for it still knows which path that was.
    pub(in super::super) async fn path_goes(&self, name: NarName) {
        self.take_withdrawn();
        let is_it = |it: &Repair| it.nar_hash == name.nar_hash && it.path.is_none();
        if !locked(&self.scrub.repairs.due).iter().any(is_it) {
            return;
        }
        let path = self.path(name.key).await;
        if let Some(repair) = locked(&self.scrub.repairs.due).iter_mut().find(|it| is_it(it)) {
            repair.path = Some(path);
        }
    }

    /// Fetches a NAR again, as for a client.
    async fn repair(self: &Arc<Self>, repair: &Repair) -> Repaired {
        let nar_hash = repair.nar_hash;
        let known = || repair.path.clone();
        match self.store.nar(nar_hash).await {
            // A client asked for it meanwhile.
            Ok(Some(_)) => return self.is_repaired(nar_hash),
            Ok(None) => {}
            Err(_) => return Repaired::NotNow(known()),
        }
        let Ok(paths) = self.store.paths_of(nar_hash, 1).await else {
            return Repaired::NotNow(known());
        };
        let Some(key) = paths.first().copied() else {
            // Nobody asks for it, and it is in nobody's closure: nothing is missing.
            let Some(path) = known() else { return Repaired::Nowhere };
            match self.store.lookup(path.key).await {
                // Clients asked for it since the last look, and nobody had it.
                Ok(None) => self.scrub.repairs.has_failed(nar_hash, path, true),
                // Somebody has the path with another NAR.
                Ok(Some(_)) => self.scrub.repairs.path_came(path.key),
                Err(_) => return Repaired::NotNow(known()),
            }
            return Repaired::Nowhere;
        };
        // Before it is asked for: what is nowhere is not promised any more, and has no name then.
        let path = match known() {
            Some(path) => path,
            None => self.path(key).await,
        };
        let was_tried = match fill::whole(self, NarName { nar_hash, key }, None).await {
            fill::Whole::Held => return self.is_repaired(nar_hash),
            fill::Whole::Not => true,
            fill::Whole::NoRoom | fill::Whole::Untried => false,
        };
        let paths = self.store.paths_of(nar_hash, 1).await;
        let is_nowhere = paths.is_ok_and(|paths| paths.is_empty());
        // What is not tried any more is told, whatever kept it from being tried.
        if was_tried || is_nowhere || repair.is_last() {
            self.scrub.repairs.has_failed(nar_hash, path.clone(), is_nowhere);
        }
        if is_nowhere { Repaired::Nowhere } else { Repaired::NotNow(Some(path)) }
    }

    async fn path(&self, key: StorePathHash) -> Path {
        let known = self.store.lookup(key).await.ok().flatten();
        let name = known.map_or_else(
            || key.to_string(),
            |(it, _)| it.narinfo.store_path.base_name().to_owned(),
        );
        Path { key, name }
    }

    fn is_repaired(&self, nar_hash: NarHash) -> Repaired {
        info!(nar = %nar_hash.to_nix32(), "damaged NAR was fetched again");
        self.metrics.repaired.inc();
        self.scrub.repairs.came(nar_hash);
        self.store.change_scrub_mark(|mark| mark.repaired += 1);
        Repaired::Held
    }
}

impl Repairs {
    /// This NAR was looked for, unless its path came otherwise or was let go meanwhile.
    fn has_failed(&self, nar_hash: NarHash, path: Path, is_nowhere: bool) {
        // Held until the end: who lets it go finds it either here or there.
        let due = locked(&self.due);
        if due.iter().any(|repair| repair.nar_hash == nar_hash) {
            self.note(nar_hash, path, is_nowhere);
        }
    }

    fn note(&self, nar_hash: NarHash, path: Path, is_nowhere: bool) {
        let mut failed = locked(&self.failed);
        let known = failed.get(&nar_hash);
        let is_news = known.is_none_or(|lost| is_nowhere && !lost.is_nowhere);
        if !is_news || (known.is_none() && failed.len() >= UNREPAIRED_MAX) {
            return;
        }
        let since = known.map_or_else(Instant::now, |lost| lost.since);
        warn!(nar = %nar_hash.to_nix32(), path = path.name, is_nowhere,
            "damaged NAR could not be fetched again");
        failed.insert(nar_hash, Lost { path, since, is_nowhere });
    }

    /// This NAR is here, whoever brought it.
    pub(in super::super) fn came(&self, nar_hash: NarHash) {
        locked(&self.failed).remove(&nar_hash);
    }

    /// This path is to be had again, maybe with another NAR than the one that was lost.
    pub(in super::super) fn path_came(&self, key: StorePathHash) {
        self.remove(key, None);
    }

    /// The owner lets this path go: neither it nor its NAR is wanted again.
    pub(in super::super) fn let_go(&self, key: StorePathHash, nar_hash: Option<NarHash>) {
        if self.remove(key, nar_hash) {
            info!(%key, "lost path is let go");
        }
    }

    fn remove(&self, key: StorePathHash, nar_hash: Option<NarHash>) -> bool {
        let mut due = locked(&self.due);
        due.retain(|it| {
            Some(it.nar_hash) != nar_hash && it.path.as_ref().is_none_or(|path| path.key != key)
        });
        let mut failed = locked(&self.failed);
        let before = failed.len();
        failed.retain(|hash, lost| Some(*hash) != nar_hash && lost.path.key != key);
        failed.len() < before
    }

    /// What is to be told of it.
    pub(super) fn unrepaired(&self) -> Unrepaired {
        let mut all: Vec<Lost> = locked(&self.failed).values().cloned().collect();
        let order = |lost: &Lost| (!lost.is_nowhere, lost.since);
        all.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.path.name.cmp(&b.path.name)));
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let (nowhere, promised) = all.split_at(all.partition_point(|lost| lost.is_nowhere));
        let told = nowhere.iter().take(NAMED_MAX).chain(promised.iter().take(NAMED_MAX));
        let named = told.map(|lost| {
            let (since, is_nowhere) = (lost.since.elapsed(), lost.is_nowhere);
            (lost.path.name.clone(), WantedFor { since, is_nowhere })
        });
        Unrepaired {
            count: number(all.len()),
            nowhere: number(nowhere.len()),
            named: named.collect(),
        }
    }
}

#[cfg(test)]
impl Repairs {
    pub(super) fn waiting(&self) -> usize {
        locked(&self.due).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_had_is_counted_all_and_named_in_part_oldest_first() {
        let repairs = Repairs::default();
        let hash = |n: u8| NarHash::from_bytes([n; 32]);
        let path =
            |n: u8| Path { key: StorePathHash::from_bytes([n; 20]), name: format!("path-{n}") };
        for n in 0..70 {
            repairs.note(hash(n), path(n), n >= 60);
            repairs.note(hash(n), path(n), n >= 60);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let told = repairs.unrepaired();
        assert_eq!((told.count, told.nowhere, told.named.len()), (70, 10, 2 * NAMED_MAX));
        let wanted =
            |since, is_nowhere| WantedFor { since: Duration::from_secs(since), is_nowhere };
        assert_eq!(told.named[0], ("path-60".to_owned(), wanted(10, true)));
        assert_eq!(told.named[NAMED_MAX], ("path-0".to_owned(), wanted(70, false)));
        // What is nowhere now was wanted before; it is not promised again by being looked for.
        repairs.note(hash(0), path(0), true);
        repairs.note(hash(0), path(0), false);
        let told = repairs.unrepaired();
        assert_eq!((told.count, told.nowhere), (70, 11));
        assert_eq!(told.named[0], ("path-0".to_owned(), wanted(70, true)));
        repairs.came(hash(0));
        repairs.path_came(StorePathHash::from_bytes([60; 20]));
        repairs.let_go(StorePathHash::from_bytes([99; 20]), Some(hash(61)));
        let told = repairs.unrepaired();
        assert_eq!((told.count, told.nowhere, told.named[0].0.as_str()), (67, 8, "path-62"));
    }
}
