//! When a transfer has stalled or drips. Pure: only time spent waiting for the upstream counts, so
//! that a slow disk here is never held against it.

use std::time::Duration;

/// No byte for so long: stalled.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

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
