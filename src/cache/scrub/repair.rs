//! What was withdrawn for its bytes is fetched again, whoever found it: a client, the scrub, or a segment
//! that failed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::cache::{Inner, fill, locked};
use crate::nix::{NarHash, NarName};

/// NARs that wait to be fetched again, besides those that the store still has the names of.
const REPAIRS_MAX: usize = 4096;

/// How often one is tried: with a look an hour, two days of an upstream that is away. Clients that ask
/// for it have it fetched whatever this says.
const REPAIR_TRIES_MAX: u32 = 48;

/// NARs that could not be fetched again and are remembered, for people: as many as are tried.
const UNREPAIRED_MAX: usize = REPAIRS_MAX;

/// Of those, names that are told.
const NAMED_MAX: usize = 8;

/// NARs that are to be fetched again.
#[derive(Debug, Default)]
pub(in super::super) struct Repairs {
    /// In the order in which they are tried.
    due: Mutex<VecDeque<Repair>>,
    failed: Mutex<Failed>,
}

/// What could not be fetched again and is not here by other ways, since this cache was started.
type Failed = HashMap<NarHash, (String, Instant)>;

/// What was withdrawn for its bytes and could not be had again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unrepaired {
    /// So many NARs.
    pub count: u64,
    /// Names of some, and for how long, those that are known for longest first.
    pub named: Vec<(String, Duration)>,
}

/// A NAR that is to be fetched again.
#[derive(Debug, Clone, Copy)]
struct Repair {
    nar_hash: NarHash,
    tries: u32,
}

/// How fetching again ended.
enum Repaired {
    Held,
    /// Nobody has it, or nobody asks for it.
    Nowhere,
    /// It is to be tried again.
    NotNow,
}

impl Inner {
    /// Tries to fetch again all that was withdrawn: how many came, and how many did not.
    pub(super) async fn repair_all(
        self: &Arc<Self>,
        tell: &(impl Fn(u64, u64) + Sync),
    ) -> (u64, u64) {
        let waiting = {
            let mut repairs = locked(&self.scrub.repairs.due);
            let room = REPAIRS_MAX.saturating_sub(repairs.len());
            let new = self.store.take_withdrawn(room).into_iter();
            repairs.extend(new.map(|nar_hash| Repair { nar_hash, tries: 0 }));
            repairs.len()
        };
        let of = u64::try_from(waiting).unwrap_or(u64::MAX);
        let (mut came, mut failed) = (0, 0);
        for done in 0..of {
            tell(done, of);
            // Left where it is until it is done: whoever waits for this may leave.
            let Some(repair) = locked(&self.scrub.repairs.due).front().copied() else { break };
            let ended = Box::pin(self.repair(repair.nar_hash)).await;
            let mut repairs = locked(&self.scrub.repairs.due);
            let is_there = repairs.front().is_some_and(|it| it.nar_hash == repair.nar_hash);
            if is_there {
                repairs.pop_front();
            }
            match ended {
                Repaired::Held => came += 1,
                Repaired::Nowhere => failed += 1,
                Repaired::NotNow => {
                    failed += 1;
                    if is_there && repair.tries + 1 < REPAIR_TRIES_MAX {
                        repairs.push_back(Repair { tries: repair.tries + 1, ..repair });
                    }
                }
            }
        }
        (came, failed)
    }

    /// Fetches a NAR again, as for a client.
    async fn repair(self: &Arc<Self>, nar_hash: NarHash) -> Repaired {
        match self.store.nar(nar_hash).await {
            // A client asked for it meanwhile.
            Ok(Some(_)) => return self.is_repaired(nar_hash),
            Ok(None) => {}
            Err(_) => return Repaired::NotNow,
        }
        let Ok(paths) = self.store.paths_of(nar_hash, 1).await else { return Repaired::NotNow };
        // Nobody asks for it, and it is in nobody's closure: nothing is missing.
        let Some(key) = paths.first().copied() else { return Repaired::Nowhere };
        let name = NarName { nar_hash, key };
        // Before it is asked for: what is nowhere is not promised any more, and has no name then.
        let path = self.store.lookup(key).await.ok().flatten();
        if fill::whole(self, name, None).await == fill::Whole::Held {
            return self.is_repaired(nar_hash);
        }
        let path = path.map_or_else(
            || key.to_string(),
            |(it, _)| it.narinfo.store_path.base_name().to_owned(),
        );
        self.scrub.repairs.has_failed(nar_hash, path);
        match self.store.paths_of(nar_hash, 1).await {
            // It is nowhere, and is not promised any more.
            Ok(paths) if paths.is_empty() => Repaired::Nowhere,
            Ok(_) | Err(_) => Repaired::NotNow,
        }
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
    fn has_failed(&self, nar_hash: NarHash, path: String) {
        let mut failed = locked(&self.failed);
        if failed.contains_key(&nar_hash) || failed.len() >= UNREPAIRED_MAX {
            return;
        }
        warn!(nar = %nar_hash.to_nix32(), path, "damaged NAR could not be fetched again");
        failed.insert(nar_hash, (path, Instant::now()));
    }

    /// This NAR is here, whoever brought it.
    pub(in super::super) fn came(&self, nar_hash: NarHash) {
        locked(&self.failed).remove(&nar_hash);
    }

    /// What is to be told of it.
    pub(super) fn unrepaired(&self) -> Unrepaired {
        let failed = locked(&self.failed);
        let count = u64::try_from(failed.len()).unwrap_or(u64::MAX);
        let mut named: Vec<_> = failed.values().cloned().collect();
        drop(failed);
        named.sort_by(|one, other| (one.1, &one.0).cmp(&(other.1, &other.0)));
        let told = named.into_iter().take(NAMED_MAX);
        Unrepaired { count, named: told.map(|(name, since)| (name, since.elapsed())).collect() }
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
        for n in 0..70 {
            repairs.has_failed(hash(n), format!("path-{n}"));
            repairs.has_failed(hash(n), format!("path-{n}"));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let told = repairs.unrepaired();
        assert_eq!((told.count, told.named.len()), (70, NAMED_MAX));
        assert_eq!(told.named[0], ("path-0".to_owned(), Duration::from_secs(70)));
        repairs.came(hash(0));
        let told = repairs.unrepaired();
        assert_eq!((told.count, told.named[0].0.as_str()), (69, "path-1"));
    }
}
