//! Pins, and closures that are fetched because somebody says so.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::info;

use super::bring::{self, Came};
use super::closure::{self, Closure, Member};
use super::fit::{Leaving, check_fit, check_room, fits, no_fit};
use super::{Cache, Errand, Inner, Lack, Step, Why};
use crate::limit::Limit;
use crate::nix::{NarName, StorePathHash};
use crate::store::{self, PinnedPath};

/// Paths that one pin names.
const ROOTS_MAX: usize = 1000;

/// Pins at once: a house's machines and their generations.
const PINS_MAX: usize = 256;

/// Paths that are pinned in one transaction.
const PATHS_A_TIME: usize = 512;

/// How often what went missing between two looks is fetched again.
const ROUNDS_MAX: usize = 3;

/// A pin that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinMade {
    /// Its name.
    pub name: String,
    /// Paths that it holds.
    pub paths: usize,
    /// What they take.
    pub bytes: u64,
    /// NARs that were fetched for it.
    pub fetched: usize,
    /// Bytes that came for them.
    pub fetched_bytes: u64,
}

/// A pin as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinShown {
    /// Its name.
    pub name: String,
    /// What was asked to be pinned, as full paths.
    pub roots: Vec<String>,
    /// Whether it holds under its name. Before that its paths are being fetched.
    pub holds: bool,
    /// When it was given, in seconds since 1970.
    pub since_s: u64,
    /// Paths that it holds.
    pub paths: u64,
    /// Those of them whose NAR is not here.
    pub missing: u64,
    /// What its NARs take.
    pub bytes: u64,
    /// What those of them take that no other pin holds.
    pub alone_bytes: u64,
}

/// A closure that was fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Paths of the closure, as far as it is known.
    pub paths: usize,
    /// NARs that came.
    pub nars: usize,
    /// Bytes that came for them.
    pub bytes: u64,
    /// NARs that were here.
    pub held: usize,
    /// Paths that cannot be had, some of them.
    pub lacks: Vec<Lack>,
    /// How many they are.
    pub lack_count: usize,
}

impl Cache {
    /// Pins the closure of some paths under a name, or that of the first one; what is missing is
    /// fetched. What the name held before stays pinned until all of it is here.
    pub async fn pin(
        &self,
        name: Option<&str>,
        roots: &[StorePathHash],
        told: impl Fn(Step) + Send + Sync,
    ) -> Result<PinMade, Errand> {
        let Self { inner } = self;
        if roots.is_empty() {
            return Err(Errand::Nothing);
        }
        if roots.len() > ROOTS_MAX {
            return Err(Errand::Roots(ROOTS_MAX));
        }
        name.map(check_name).transpose()?;
        let walked = walk(inner, roots, &told).await?;
        if walked.lack_count > 0 {
            return Err(Errand::Lacking { lacks: walked.lacks, count: walked.lack_count });
        }
        let first = walked.roots.iter().find(|path| Some(&path.hash()) == roots.first());
        let name = match (name, first) {
            (Some(name), _) => name.to_owned(),
            (None, Some(first)) => name_of(first.name()),
            (None, None) => return Err(Errand::Nothing),
        };
        check_name(&name)?;
        let pins = inner.store.pins().await?;
        if pins.len() >= PINS_MAX && !pins.iter().any(|pin| pin.name == name) {
            return Err(Errand::Pins(pins.len()));
        }
        // One that is not whole goes at once, and makes as much room.
        let before = pins.iter().filter(|pin| pin.name == name).map(|pin| pin.id);
        let leaving = inner.leaving(before.collect(), &walked.nars).await?;
        check_fit(inner, &walked.nars, leaving)?;
        inner.pin(&name, (walked, leaving), &told).await
    }

    /// Forgets a pin. False: there is none of that name.
    pub async fn unpin(&self, name: &str) -> Result<bool, Errand> {
        let unpinned = self.inner.store.unpin(name).await?;
        if unpinned {
            info!(name, "unpinned");
        }
        Ok(unpinned)
    }

    /// All pins, by their names.
    pub async fn pins(&self) -> Result<Vec<PinShown>, Errand> {
        let store = &self.inner.store;
        let mut shown = Vec::new();
        for pin in store.pins().await? {
            let store_dir = &self.inner.config.store_dir;
            let mut one = PinShown {
                roots: pin.roots.iter().map(|root| store_dir.join(root)).collect(),
                name: pin.name,
                holds: pin.is_whole,
                since_s: pin.since_s,
                paths: 0,
                missing: 0,
                bytes: 0,
                alone_bytes: 0,
            };
            let mut after = None;
            loop {
                let paths = store.pinned_paths(pin.id, after).await?;
                let Some(last) = paths.last() else { break };
                after = Some(last.key);
                for path in paths {
                    one.paths += 1;
                    let Some(takes) = path.takes_bytes else {
                        one.missing += 1;
                        continue;
                    };
                    one.bytes += if path.is_first { takes } else { 0 };
                    one.alone_bytes += if path.is_first && path.is_alone { takes } else { 0 };
                }
            }
            shown.push(one);
        }
        shown.sort_by(|a, b| (&a.name, !a.holds).cmp(&(&b.name, !b.holds)));
        Ok(shown)
    }

    /// How many pins there are.
    pub fn pin_count(&self) -> usize {
        self.inner.store.pin_count()
    }

    /// Fetches the closure of some paths, at most so many bytes a second. What cannot be had is
    /// said; the rest comes all the same.
    pub async fn prefetch(
        &self,
        roots: &[StorePathHash],
        bytes_a_second: Option<u64>,
        told: impl Fn(Step) + Send + Sync,
    ) -> Result<Fetched, Errand> {
        let Self { inner } = self;
        if roots.is_empty() {
            return Err(Errand::Nothing);
        }
        let walked = walk(inner, roots, &told).await?;
        check_room(inner, &walked.nars)?;
        let missing: Vec<Member> = walked.nars.iter().filter(|it| !it.is_held).copied().collect();
        let limit = bytes_a_second.map(|bytes| Arc::new(Limit::new(Some(bytes))));
        let came = bring::all(inner, &missing, limit, told, || true).await;
        let mut fetched = Fetched {
            paths: walked.paths.len(),
            nars: came.nars,
            bytes: came.line_bytes,
            held: walked.nars.len() - missing.len(),
            lack_count: walked.lack_count + came.lacks.len(),
            lacks: walked.lacks,
        };
        fetched.lacks.extend(inner.lacks(came.lacks).await);
        info!(paths = fetched.paths, nars = fetched.nars, lacks = fetched.lack_count, "prefetched");
        Ok(fetched)
    }
}

impl Inner {
    async fn pin(
        self: &Arc<Self>,
        name: &str,
        (walked, leaving): (Closure, Leaving),
        told: &(impl Fn(Step) + Send + Sync),
    ) -> Result<PinMade, Errand> {
        let Self { store, .. } = &**self;
        let overtaken = || Errand::Overtaken(name.to_owned());
        let Closure { roots, paths, mut nars, .. } = walked;
        let id = store.begin_pin(name, roots, now_s()).await?;
        for some in paths.chunks(PATHS_A_TIME) {
            if !store.pin_paths(id, some.to_vec()).await? {
                return Err(overtaken());
            }
        }
        let (mut fetched, mut fetched_bytes) = (0, 0);
        for round in 1.. {
            // From now on nothing of it goes but what is damaged.
            let missing = self.missing(id, &nars).await?;
            if missing.is_empty() {
                break;
            }
            let Came { lacks, line_bytes, nars: came } =
                bring::all(self, &missing, None, told, || fits(self, 0, leaving)).await;
            fetched += came;
            fetched_bytes += line_bytes;
            // What came counts once it is in the index.
            store.flush().await?;
            closure::look_at_store(self, &mut nars).await?;
            let more = nars.iter().filter(|it| !it.is_held).map(|it| it.takes_bytes).sum();
            let has_room = !lacks.iter().any(|(_, why)| *why == Why::NoRoom);
            if !fits(self, if has_room { 0 } else { more }, leaving) {
                let refused = no_fit(self, &nars);
                store.drop_pin(id).await?;
                return Err(refused);
            }
            if !lacks.is_empty() || round >= ROUNDS_MAX {
                let count = lacks.len();
                return Err(Errand::Lacking { lacks: self.lacks(lacks).await, count });
            }
        }
        if !store.hold_pin(id).await? {
            return Err(overtaken());
        }
        info!(name, paths = paths.len(), fetched, "pinned");
        let takes = self.takes(id).await?;
        let name = name.to_owned();
        Ok(PinMade { name, paths: paths.len(), bytes: takes, fetched, fetched_bytes })
    }

    /// What goes when a closure of these NARs holds instead of these pins.
    async fn leaving(&self, pins: Vec<u32>, nars: &[Member]) -> Result<Leaving, Errand> {
        let staying: HashSet<_> = nars.iter().map(|it| it.name.nar_hash).collect();
        let mut bytes = 0;
        for id in pins {
            let mut after = None;
            loop {
                let paths = self.store.pinned_paths(id, after).await?;
                let Some(last) = paths.last() else { break };
                after = Some(last.key);
                let goes = |path: &&PinnedPath| {
                    let stays = path.nar_hash.is_some_and(|it| staying.contains(&it));
                    path.is_first && path.is_alone && !path.is_waiting && !stays
                };
                bytes += paths.iter().filter(goes).filter_map(|it| it.takes_bytes).sum::<u64>();
            }
        }
        Ok(Leaving(bytes))
    }

    /// What a pin's NARs take.
    async fn takes(&self, id: u32) -> Result<u64, Errand> {
        let (mut bytes, mut after) = (0, None);
        loop {
            let paths = self.store.pinned_paths(id, after).await?;
            let Some(last) = paths.last() else { return Ok(bytes) };
            after = Some(last.key);
            let first = paths.iter().filter(|path| path.is_first);
            bytes += first.filter_map(|path| path.takes_bytes).sum::<u64>();
        }
    }

    /// NARs of a pin that are not here. What `known` says of one is more than its narinfo does.
    pub(super) async fn missing(
        self: &Arc<Self>,
        id: u32,
        known: &[Member],
    ) -> Result<Vec<Member>, Errand> {
        let (mut missing, mut after) = (Vec::new(), None);
        loop {
            let paths = self.store.pinned_paths(id, after).await?;
            let Some(last) = paths.last() else { return Ok(missing) };
            after = Some(last.key);
            for path in paths.iter().filter(|path| path.takes_bytes.is_none()) {
                let nar_hash = match path.nar_hash {
                    Some(nar_hash) => nar_hash,
                    None => match closure::find(self, path.key).await {
                        Ok(narinfo) => narinfo.nar_hash,
                        Err(why) => {
                            let path = path.key.to_string();
                            let lacks = vec![Lack { path, referrer: None, why }];
                            return Err(Errand::Lacking { lacks, count: 1 });
                        }
                    },
                };
                if missing.iter().any(|it: &Member| it.name.nar_hash == nar_hash) {
                    continue;
                }
                let name = NarName { nar_hash, key: path.key };
                let of = known.iter().find(|it| it.name.nar_hash == nar_hash).copied();
                let unknown =
                    Member { name, line_bytes: 0, takes_bytes: 0, is_held: false, is_kept: false };
                missing.push(of.unwrap_or(unknown));
            }
        }
    }

    /// The names of paths whose NARs did not come.
    async fn lacks(&self, lacks: Vec<(NarName, Why)>) -> Vec<Lack> {
        let mut named = Vec::new();
        for (name, why) in lacks {
            let known = self.store.lookup(name.key).await.ok().flatten();
            let path = known.map_or_else(
                || name.key.to_string(),
                |(stored, _)| stored.narinfo.store_path.base_name().to_owned(),
            );
            named.push(Lack { path, referrer: None, why });
        }
        named
    }
}

async fn walk(
    inner: &Arc<Inner>,
    roots: &[StorePathHash],
    told: &(impl Fn(Step) + Send + Sync),
) -> Result<Closure, Errand> {
    closure::walk(inner, roots, |paths| {
        told(Step { what: "looking for references", bytes: None, things: (paths, None) });
    })
    .await
}

/// The characters of a store path's name are taken, so that the name of each can be one.
fn check_name(name: &str) -> Result<(), Errand> {
    let taken = |c: char| c.is_ascii_alphanumeric() || "+-._?=".contains(c);
    let is_name = (1..=store::PIN_NAME_LEN_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(taken);
    if is_name { Ok(()) } else { Err(Errand::Name(name.to_owned())) }
}

/// A pin's name for a path's name, which may be longer.
fn name_of(name: &str) -> String {
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let name: String = name.chars().take(store::PIN_NAME_LEN_MAX).collect();
    if name.is_empty() { "pin".to_owned() } else { name }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_each_path_makes_a_name_for_its_pin() {
        for (path, pin) in [
            ("nixos-system-desktop-24.11", "nixos-system-desktop-24.11"),
            (".hidden", "hidden"),
            ("+", "pin"),
        ] {
            assert_eq!(name_of(path), pin);
        }
        let long = name_of(&"x".repeat(211));
        assert_eq!(long.len(), store::PIN_NAME_LEN_MAX);
        for name in [long.as_str(), "a", "desktop", "A.b_c-d+e?f=g"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "-a", ".a", "a b", "a/b", "\u{e9}", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
