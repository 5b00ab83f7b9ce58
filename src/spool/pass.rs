//! One pass over what waits: in which batches it is copied, and whose fault it is when a batch
//! fails. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::nix::StorePath;

/// Paths of one `nix copy`: few starts of Nix, and little to do again after a kill.
const BATCH_PATHS_MAX: usize = 64;

/// Bytes of one `nix copy`, for the same reason: a minute over a slow wire. One path may have more.
const BATCH_BYTES_MAX: u64 = 1 << 30;

/// So many single paths that failed, while nothing went well, are taken for the cache's fault.
const SUSPECTS_MAX: usize = 3;

/// What has failed alone so often comes last, so that it does not hold up others.
pub(super) type Failures = BTreeMap<StorePath, u32>;

/// What is still to be copied in this pass, and what failed.
#[derive(Debug)]
pub(super) struct Pass {
    todo: VecDeque<Vec<StorePath>>,
    failed: Vec<(StorePath, String)>,
    went_well: bool,
}

impl Pass {
    /// From what waits, the oldest first, with its bytes. What failed alone before goes alone, the
    /// least often failed first, after all others.
    pub(super) fn new(waiting: Vec<(StorePath, u64)>, failures: &Failures) -> Self {
        let mut todo = VecDeque::new();
        let (mut batch, mut batch_bytes) = (Vec::new(), 0_u64);
        let mut suspects = Vec::new();
        for (path, bytes) in waiting {
            if let Some(times) = failures.get(&path) {
                suspects.push((*times, path));
                continue;
            }
            let is_full = batch.len() == BATCH_PATHS_MAX
                || batch_bytes.saturating_add(bytes) > BATCH_BYTES_MAX;
            if is_full && !batch.is_empty() {
                todo.push_back(std::mem::take(&mut batch));
                batch_bytes = 0;
            }
            batch.push(path);
            batch_bytes = batch_bytes.saturating_add(bytes);
        }
        if !batch.is_empty() {
            todo.push_back(batch);
        }
        // Stable: the oldest of those that failed as often.
        suspects.sort_by_key(|(times, _)| *times);
        todo.extend(suspects.into_iter().map(|(_, path)| vec![path]));
        Self { todo, failed: Vec::new(), went_well: false }
    }

    /// What to copy now.
    pub(super) fn next(&mut self) -> Option<Vec<StorePath>> {
        self.todo.pop_front()
    }

    /// A batch arrived.
    pub(super) fn copied(&mut self) {
        self.went_well = true;
    }

    /// To be copied again without those that turned out to be gone.
    pub(super) fn again(&mut self, rest: Vec<StorePath>) {
        if !rest.is_empty() {
            self.todo.push_front(rest);
        }
    }

    /// A batch failed: its halves go next, and a single path is remembered.
    pub(super) fn failed(&mut self, mut batch: Vec<StorePath>, reason: &str) {
        if batch.len() > 1 {
            let second = batch.split_off(batch.len() / 2);
            self.todo.push_front(second);
            self.todo.push_front(batch);
        } else {
            self.failed.extend(batch.into_iter().map(|path| (path, reason.to_owned())));
        }
    }

    /// Whether so much failed, and nothing went well, that it is not the paths' fault.
    pub(super) fn is_stuck(&self) -> bool {
        !self.went_well && self.failed.len() >= SUSPECTS_MAX
    }

    /// The single paths that failed, with the reasons, and whether the cache takes others.
    pub(super) fn end(self) -> (Vec<(StorePath, String)>, bool) {
        (self.failed, self.went_well)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::kit;

    fn paths(count: usize) -> Vec<(StorePath, u64)> {
        (0..count).map(|n| (kit::path(&format!("p{n:04}")), 1000)).collect()
    }

    /// Runs a pass against a cache that takes all but what is `bad`, or nothing at all. The copies,
    /// and the pass.
    fn run(mut pass: Pass, is_bad: impl Fn(&StorePath) -> bool) -> (usize, Vec<StorePath>, Pass) {
        let (mut copies, mut arrived) = (0, Vec::new());
        while !pass.is_stuck() {
            let Some(batch) = pass.next() else { break };
            copies += 1;
            if batch.iter().any(&is_bad) {
                pass.failed(batch, "refused");
            } else {
                pass.copied();
                arrived.extend(batch);
            }
        }
        (copies, arrived, pass)
    }

    #[test]
    fn batches_are_bounded_by_paths_and_bytes_and_the_oldest_go_first() {
        let mut pass = Pass::new(paths(130), &Failures::new());
        let sizes: Vec<usize> = std::iter::from_fn(|| pass.next().map(|it| it.len())).collect();
        assert_eq!(sizes, [64, 64, 2]);
        let gib = 1 << 30;
        let large = [("a", 1), ("b", gib), ("c", 5 * gib), ("d", gib / 2), ("e", gib / 2)];
        let large = large.map(|(name, bytes)| (kit::path(name), bytes)).to_vec();
        let mut pass = Pass::new(large, &Failures::new());
        let names: Vec<String> = std::iter::from_fn(|| pass.next())
            .map(|batch| batch.iter().map(StorePath::name).collect())
            .collect();
        assert_eq!(names, ["a", "b", "c", "de"]);
    }

    #[test]
    fn one_bad_path_fails_alone_wherever_it_stands() {
        for bad in [0, 1, 31, 63, 64, 99] {
            let bad = kit::path(&format!("p{bad:04}"));
            let pass = Pass::new(paths(100), &Failures::new());
            let (copies, arrived, pass) = run(pass, |path| *path == bad);
            assert_eq!(arrived.len(), 99);
            assert!(copies <= 16, "{copies}");
            assert_eq!(pass.end(), (vec![(bad, "refused".to_owned())], true));
        }
    }

    #[test]
    fn a_cache_that_takes_nothing_is_left_alone_soon() {
        let (copies, arrived, pass) = run(Pass::new(paths(1000), &Failures::new()), |_| true);
        assert!(arrived.is_empty() && copies <= 12, "{copies}");
        let (failed, went_well) = pass.end();
        assert_eq!((failed.len(), went_well), (3, false));
    }

    #[test]
    fn bad_paths_in_front_do_not_hold_up_the_others_for_ever() {
        let bad = |path: &StorePath| path.name() < "p0010";
        let mut failures = Failures::new();
        for round in 0.. {
            assert!(round < 10, "never got past");
            let (_, arrived, pass) = run(Pass::new(paths(20), &failures), bad);
            if arrived.len() == 10 {
                return;
            }
            for (path, _) in pass.end().0 {
                *failures.entry(path).or_default() += 1;
            }
        }
    }
}
