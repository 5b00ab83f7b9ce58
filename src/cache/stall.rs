//! When a transfer has stalled or drips. Pure: only time spent waiting for the upstream counts, so
//! that a slow disk here is never held against it.

use std::collections::VecDeque;
use std::time::Duration;

/// The waits of a transfer. A value and not constants, so that tests need not wait as long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// No byte for so long, or no head of an answer: stalled.
    pub(super) silence: Duration,
}

/// What is used outside of tests: longer than any hiccup of a line, and short enough that a client
/// (300 s) lives to see the second attempt.
pub(super) const PATIENCE: Patience = Patience { silence: Duration::from_secs(15) };

/// The time over which dripping is measured, in slots of a second: it slides, so that a burst hides
/// the drip behind it for no longer than this.
const WINDOW_SLOTS: usize = 60;

/// One slot.
const SLOT: Duration = Duration::from_secs(1);

/// Bytes that must come in each window of waiting: 1 KiB/s.
const WINDOW_BYTES_MIN: u64 = 60 * 1024;

/// Watches one transfer.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The bytes of full slots, the oldest first, at most a window of them.
    slots: VecDeque<u64>,
    /// Their sum.
    slots_bytes: u64,
    /// The slot that is not full yet: its waiting and its bytes.
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// So many bytes came after so much waiting; `false` when that is dripping.
    pub(super) fn came(&mut self, bytes: u64, waited: Duration) -> bool {
        self.waited += waited;
        while self.waited >= SLOT {
            self.waited -= SLOT;
            self.next_slot();
        }
        self.bytes += bytes;
        self.slots.len() < WINDOW_SLOTS || self.slots_bytes + self.bytes >= WINDOW_BYTES_MIN
    }

    fn next_slot(&mut self) {
        if self.slots.len() == WINDOW_SLOTS {
            self.slots_bytes -= self.slots.pop_front().unwrap_or(0);
        }
        self.slots_bytes += self.bytes;
        self.slots.push_back(self.bytes);
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_kilobyte_a_second_for_a_minute_is_dripping() {
        let mut pace = Pace::default();
        for _ in 0..11 {
            assert!(pace.came(1000, Duration::from_secs(5)));
        }
        assert!(!pace.came(1000, Duration::from_secs(5)));
    }

    #[test]
    fn waiting_that_brings_enough_begins_a_new_minute() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            assert!(pace.came(14 * 1024, Duration::from_secs(14)));
        }
    }

    #[test]
    fn a_burst_hides_the_drip_behind_it_for_a_minute_only() {
        let tick = Duration::from_millis(100);
        for burst_s in [0, 7, 59, 200] {
            let mut pace = Pace::default();
            assert!(pace.came(10 << 20, tick));
            for _ in 0..burst_s * 10 {
                assert!(pace.came(10_000, tick));
            }
            let drips = (0..10_000).take_while(|_| pace.came(1, tick)).count();
            assert!((590..=611).contains(&drips), "noticed after {drips} ticks, {burst_s}");
        }
    }
}
