//! When a cache that could not be pushed to is tried again: after a rest that doubles, for ever.
//! Pure: time and chance are arguments.

use std::time::Duration;

/// First rest: a router that starts again takes longer, a lost packet does not.
const REST_MIN: Duration = Duration::from_secs(5);

/// Longest rest: once the cache is back, what waits goes within this time, told or not.
const REST_MAX: Duration = Duration::from_mins(10);

/// Rests between tries. `now` is the time since any fixed point.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rest: Duration,
    due: Duration,
}

impl Pace {
    /// How long it still rests.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        self.due.saturating_sub(now)
    }

    /// `chance` in 0..=1 spreads those who try.
    pub(super) fn failed(&mut self, now: Duration, chance: f64) {
        self.rest = (self.rest * 2).clamp(REST_MIN, REST_MAX);
        self.due = now + self.rest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
    }

    /// Something went well, or somebody says that it will: tried at once, and the rests begin anew.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_double_from_five_seconds_to_ten_minutes_without_end() {
        let mut pace = Pace::default();
        let mut now = Duration::ZERO;
        for rest in [5, 10, 20, 40, 80, 160, 320, 600, 600, 600] {
            assert_eq!(pace.wait(now), Duration::ZERO);
            pace.failed(now, 1.0);
            assert_eq!(pace.wait(now), Duration::from_secs(rest));
            now += Duration::from_secs(rest);
        }
        pace.reset();
        pace.failed(now, 0.0);
        assert_eq!(pace.wait(now), Duration::from_millis(2500), "anew, and half by chance");
    }
}
