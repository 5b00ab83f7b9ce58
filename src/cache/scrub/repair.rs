//! What was withdrawn for its bytes is fetched again, whoever found it: a client, the scrub, or a segment
//! that failed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tracing::info;

use crate::cache::{Inner, fill, locked};
use crate::nix::{NarHash, NarName};

/// NARs that wait to be fetched again, besides those that the store still has the names of.
const REPAIRS_MAX: usize = 4096;

/// How often one is tried: with a look an hour, two days of an upstream that is away. Clients that ask
/// for it have it fetched whatever this says.
const REPAIR_TRIES_MAX: u32 = 48;

/// NARs that are to be fetched again, in the order in which they are tried.
#[derive(Debug, Default)]
pub(super) struct Repairs(Mutex<VecDeque<Repair>>);

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
            let mut repairs = locked(&self.scrub.repairs.0);
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
            let Some(repair) = locked(&self.scrub.repairs.0).front().copied() else { break };
            let ended = Box::pin(self.repair(repair.nar_hash)).await;
            let mut repairs = locked(&self.scrub.repairs.0);
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
        let Some(key) = paths.first().copied() else { return Repaired::Nowhere };
        let name = NarName { nar_hash, key };
        if fill::whole(self, name, None).await == fill::Whole::Held {
            return self.is_repaired(nar_hash);
        }
        match self.store.paths_of(nar_hash, 1).await {
            // It is nowhere, and is not promised any more.
            Ok(paths) if paths.is_empty() => Repaired::Nowhere,
            Ok(_) | Err(_) => Repaired::NotNow,
        }
    }

    fn is_repaired(&self, nar_hash: NarHash) -> Repaired {
        info!(nar = %nar_hash.to_nix32(), "damaged NAR was fetched again");
        self.metrics.repaired.inc();
        self.store.change_scrub_mark(|mark| mark.repaired += 1);
        Repaired::Held
    }
}

#[cfg(test)]
impl Repairs {
    pub(super) fn waiting(&self) -> usize {
        locked(&self.0).len()
    }
}
