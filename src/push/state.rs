//! When a target is tried: at once while it is well, after a rest that doubles while it is not, and
//! for ever. Pure: time and chance are arguments.

use std::time::Duration;

/// First rest after trouble: a router that starts again takes longer, a lost packet does not.
const REST_MIN: Duration = Duration::from_secs(5);

/// Longest rest: once the target is well again, what waits goes up within this time.
const REST_MAX: Duration = Duration::from_mins(10);

/// Objects on their way to one target: enough to fill a house's line in spite of its round trips,
/// few enough that each goes on briskly and a Pi's memory does not notice.
pub(super) const AT_ONCE_MAX: usize = 4;

/// What kind of trouble a target is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It passes by itself: the network, the disk here, the clock.
    Passing,
    /// Somebody must mend it: credentials, rights, room.
    Refusing,
}

/// How fast a target is worked for. `now` is the time since any fixed point.
#[derive(Debug, Default)]
pub(super) struct Pace {
    trouble: Option<Trouble>,
    rest: Duration,
    due: Duration,
    failed_at: Duration,
    successes: u64,
}

impl Pace {
    /// How many may be on their way now: none while it rests, one to probe it, else all.
    pub(super) fn places(&self, now: Duration) -> usize {
        match self.trouble {
            None => AT_ONCE_MAX,
            Some(_) if now < self.due => 0,
            Some(_) => 1,
        }
    }

    /// Something went well. What was there already says nothing about a target that refuses to
    /// take: only what was `put` mends that.
    pub(super) fn succeeded(&mut self, put: bool) {
        self.successes += 1;
        if put || self.trouble == Some(Trouble::Passing) {
            self.trouble = None;
            self.rest = Duration::ZERO;
        }
    }

    /// How often something went well. A thing that fails again after others went well is at fault
    /// itself.
    pub(super) fn successes(&self) -> u64 {
        self.successes
    }

    /// What began at `began` failed. What was under way together fails in a bunch and is one
    /// trouble. `chance` in 0..=1 spreads those who try.
    pub(super) fn failed(&mut self, began: Duration, now: Duration, how: Trouble, chance: f64) {
        let in_bunch = self.trouble.is_some() && began <= self.failed_at;
        if !(in_bunch && self.trouble == Some(Trouble::Refusing)) {
            self.trouble = Some(how);
        }
        if in_bunch {
            return;
        }
        self.failed_at = now;
        self.rest = (self.rest * 2).clamp(REST_MIN, REST_MAX);
        self.due = now + self.rest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
    }

    /// Somebody says that it is mended: tried at once, and the rests begin anew.
    pub(super) fn retry(&mut self, now: Duration) {
        self.due = now;
        self.rest = Duration::ZERO;
    }

    /// The trouble it is in.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// When it is tried again, while it rests.
    pub(super) fn due(&self, now: Duration) -> Option<Duration> {
        (self.trouble.is_some() && now < self.due).then_some(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn rests_double_from_five_seconds_to_ten_minutes_without_end() {
        let mut pace = Pace::default();
        let mut now = 0;
        for rest in [5, 10, 20, 40, 80, 160, 320, 600, 600, 600] {
            assert_eq!(pace.due(at(now)), None);
            pace.failed(at(now), at(now), Trouble::Passing, 1.0);
            assert_eq!(pace.due(at(now)), Some(at(now + rest)));
            assert_eq!(pace.places(at(now + rest - 1)), 0);
            now += rest;
            assert_eq!(pace.places(at(now)), 1, "one probes it");
        }
        pace.succeeded(true);
        assert_eq!((pace.places(at(now)), pace.trouble()), (AT_ONCE_MAX, None));
        pace.failed(at(now), at(now), Trouble::Passing, 1.0);
        assert_eq!(pace.due(at(now)), Some(at(now + 5)), "rests begin anew");
    }

    #[test]
    fn chance_brings_a_try_forward_by_half_at_most() {
        for (chance, due_ms) in [(0.0, 2500), (0.5, 3750), (1.0, 5000), (7.0, 5000)] {
            let mut pace = Pace::default();
            pace.failed(at(0), at(0), Trouble::Passing, chance);
            assert_eq!(pace.due(at(0)), Some(Duration::from_millis(due_ms)));
        }
    }

    #[test]
    fn what_fails_in_a_bunch_is_one_trouble() {
        let mut pace = Pace::default();
        for second in 10..14 {
            pace.failed(at(second - 10), at(second), Trouble::Passing, 1.0);
        }
        assert_eq!(pace.due(at(14)), Some(at(15)));
        pace.failed(at(3), at(14), Trouble::Refusing, 1.0);
        pace.failed(at(3), at(14), Trouble::Passing, 1.0);
        assert_eq!(pace.trouble(), Some(Trouble::Refusing), "the worse one is said");
    }

    #[test]
    fn a_target_that_refuses_is_mended_only_by_what_it_takes() {
        let mut pace = Pace::default();
        pace.failed(at(0), at(0), Trouble::Refusing, 1.0);
        pace.succeeded(false);
        assert_eq!(pace.trouble(), Some(Trouble::Refusing));
        assert_eq!(pace.places(at(5)), 1);
        pace.succeeded(true);
        assert_eq!(pace.trouble(), None);
        pace.failed(at(5), at(5), Trouble::Passing, 1.0);
        pace.succeeded(false);
        assert_eq!(pace.trouble(), None, "it answers");
    }

    #[test]
    fn a_retry_by_hand_tries_at_once() {
        let mut pace = Pace::default();
        for n in 0..9 {
            pace.failed(at(n * 1000), at(n * 1000), Trouble::Refusing, 1.0);
        }
        pace.retry(at(8001));
        assert_eq!((pace.places(at(8001)), pace.due(at(8001))), (1, None));
        pace.failed(at(8001), at(8002), Trouble::Refusing, 1.0);
        assert_eq!(pace.due(at(8002)), Some(at(8007)));
    }
}
