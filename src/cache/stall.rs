//! When a transfer has stalled or drips. Pure: only time spent waiting for the upstream counts, so
//! that a slow disk here is never held against it.

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

/// The time over which dripping is measured.
const WINDOW: Duration = Duration::from_mins(1);

/// Bytes that must come in a window of waiting: 1 KiB/s.
const WINDOW_BYTES_MIN: u64 = 60 * 1024;

/// Watches one transfer.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// So many bytes came after so much waiting; `false` when that is dripping.
    pub(super) fn came(&mut self, bytes: u64, waited: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < WINDOW {
            return true;
        }
        let enough = self.bytes >= WINDOW_BYTES_MIN;
        *self = Self::default();
        enough
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
}
