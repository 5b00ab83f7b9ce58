//! The budget by our own count: what rows take, what is set aside, what may be taken. Only
//! numbers; who has to go is decided in [`evict`](super::evict).

use std::sync::Mutex;

use super::disk::Space as DiskSpace;
use super::lock;
use crate::metrics::Metrics;

/// What is left free on the file system: 2 GiB, or a tenth of a small one.
const DISK_RESERVE_BYTES: u64 = 2 << 30;

/// At least so much is left of a disk below 320 MiB, up to half of it: redb uses freed pages again
/// only after further commits, and until then a slice of evicted rows (16 MiB), rows that land
/// (4 MiB) and rows that wait (8 MiB) may take fresh ones.
const DISK_RESERVE_BYTES_MIN: u64 = 32 << 20;

/// Default budget at first start: this part of what is free, in hundredths.
const DEFAULT_BUDGET_PERCENT: u64 = 90;

/// Eviction begins when less than this part of the budget is free, so that fills rarely wait for
/// it ...
const HIGH_WATER_PART: u64 = 50;

/// What fills of a busy minute take, with a budget so large that a fiftieth of it is far more.
const HIGH_WATER_BYTES_MAX: u64 = 512 << 20;

/// ... and goes on until twice that is free.
const LOW_WATER_FACTOR: u64 = 2;

/// The budget at first start, unless configured.
pub(super) fn default_budget(disk: DiskSpace) -> u64 {
    disk.free_bytes / 100 * DEFAULT_BUDGET_PERCENT
}

/// See the module.
#[derive(Debug)]
pub(super) struct Space {
    counts: Mutex<Counts>,
}

#[derive(Debug, Clone, Copy)]
struct Counts {
    budget: u64,
    /// What the file system allows us to take, however large the budget.
    allowed: u64,
    disk_free: u64,
    /// Less is free than twice what is to be left.
    disk_tight: bool,
    kept: u64,
    reserved: u64,
}

impl Counts {
    fn limit(&self) -> u64 {
        self.budget.min(self.allowed)
    }
    fn taken(&self) -> u64 {
        self.kept.saturating_add(self.reserved)
    }
    fn margin(&self) -> u64 {
        (self.limit() / HIGH_WATER_PART).min(HIGH_WATER_BYTES_MAX)
    }
}

impl Space {
    pub(super) fn new(budget: u64, kept: u64) -> Self {
        let counts = Counts {
            budget,
            allowed: u64::MAX,
            disk_free: 0,
            disk_tight: false,
            kept,
            reserved: 0,
        };
        Self { counts: Mutex::new(counts) }
    }

    /// Takes note of the file system. `occupied` is about what the segments' files occupy: room
    /// inside of them is ours whatever is free beside them.
    pub(super) fn observe(&self, disk: DiskSpace, occupied: u64) {
        let reserve = DISK_RESERVE_BYTES.min(disk.total_bytes / 10);
        let reserve = reserve.max(DISK_RESERVE_BYTES_MIN.min(disk.total_bytes / 2));
        let mut counts = lock(&self.counts);
        counts.disk_free = disk.free_bytes;
        counts.disk_tight = disk.free_bytes < reserve.saturating_mul(2);
        counts.allowed = occupied.saturating_add(disk.free_bytes.saturating_sub(reserve));
    }

    pub(super) fn budget_bytes(&self) -> u64 {
        lock(&self.counts).budget
    }

    pub(super) fn kept_bytes(&self) -> u64 {
        lock(&self.counts).kept
    }

    pub(super) fn disk_free_bytes(&self) -> u64 {
        lock(&self.counts).disk_free
    }

    /// Whether so little is free that each page counts.
    pub(super) fn is_disk_tight(&self) -> bool {
        lock(&self.counts).disk_tight
    }

    pub(super) fn publish(&self, metrics: &Metrics) {
        let counts = *lock(&self.counts);
        metrics.store_bytes.set(i64::try_from(counts.kept).unwrap_or(i64::MAX));
        metrics.store_budget_bytes.set(i64::try_from(counts.budget).unwrap_or(i64::MAX));
    }

    /// Sets aside, when there is room.
    pub(super) fn try_reserve(&self, bytes: u64) -> bool {
        let mut counts = lock(&self.counts);
        let fits = counts.taken().saturating_add(bytes) <= counts.limit();
        if fits {
            counts.reserved += bytes;
        }
        fits
    }

    /// Whether so many bytes could be set aside if nothing else were there.
    pub(super) fn could_ever(&self, bytes: u64) -> bool {
        bytes <= lock(&self.counts).limit()
    }

    /// Gives back what was set aside.
    pub(super) fn release(&self, bytes: u64) {
        let mut counts = lock(&self.counts);
        counts.reserved = counts.reserved.saturating_sub(bytes);
    }

    /// Something set aside becomes a row.
    pub(super) fn spend(&self, bytes: u64) {
        let mut counts = lock(&self.counts);
        counts.reserved = counts.reserved.saturating_sub(bytes);
        counts.kept += bytes;
    }

    /// Rows are gone.
    pub(super) fn free(&self, bytes: u64) {
        let mut counts = lock(&self.counts);
        counts.kept = counts.kept.saturating_sub(bytes);
    }

    /// Rows were counted anew.
    pub(super) fn corrected(&self, before: u64, now: u64) {
        let mut counts = lock(&self.counts);
        counts.kept = counts.kept.saturating_add(now).saturating_sub(before);
    }

    /// Bytes to evict now for the sake of those who come next; 0 below the high water.
    pub(super) fn excess(&self) -> u64 {
        let counts = *lock(&self.counts);
        let margin = counts.margin();
        if counts.taken() <= counts.limit().saturating_sub(margin) {
            return 0;
        }
        let low = counts.limit().saturating_sub(margin.saturating_mul(LOW_WATER_FACTOR));
        counts.taken().saturating_sub(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_spent_or_given_back() {
        let space = Space::new(1000, 100);
        assert!(space.try_reserve(900));
        assert!(!space.try_reserve(1));
        space.spend(400);
        space.release(500);
        assert_eq!(space.kept_bytes(), 500);
        assert!(space.try_reserve(500));
        space.free(100);
        assert!(space.try_reserve(100));
        assert!(space.could_ever(1000) && !space.could_ever(1001));
    }

    #[test]
    fn eviction_runs_between_two_waters() {
        let space = Space::new(10_000, 9_800);
        assert_eq!(space.excess(), 0);
        let space = Space::new(10_000, 9_801);
        assert_eq!(space.excess(), 201);
    }

    #[test]
    fn a_full_file_system_bounds_whatever_the_budget() {
        let space = Space::new(1 << 40, 50);
        let disk = DiskSpace { free_bytes: 1 << 20, total_bytes: 1 << 40 };
        space.observe(disk, 100);
        assert!(space.try_reserve(50));
        assert!(!space.try_reserve(1));
    }
}
