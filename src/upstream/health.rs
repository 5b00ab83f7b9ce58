//! How an upstream is: breaker and back-off. Pure: time and chance are arguments.

use std::time::Duration;

/// Troubles in a row that open the breaker: one can be an object's own, three are the upstream's.
const TROUBLES_MAX: u32 = 3;

/// First rest after the breaker opened.
const REST_MIN: Duration = Duration::from_secs(1);

/// Longest rest. A probe is a client's own question, so nothing is asked while nobody asks; and
/// once the upstream is well, the next client has it within this time.
const REST_MAX: Duration = Duration::from_secs(5);

/// What one answer counts in the latency is one part of these: some ten answers are seen in it.
const LATENCY_PARTS: u32 = 8;

/// How an upstream is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthState {
    /// It answers.
    Up,
    /// It does not answer, or with trouble.
    Down,
    /// It answers that it does not want us (credentials, clock, wrong bucket).
    Refusing,
}

/// How an upstream is and since when.
#[derive(Debug, Clone)]
pub struct Health {
    /// Up, down or refusing.
    pub state: HealthState,
    /// For how long.
    pub since: Duration,
    /// The last trouble, in words without secrets.
    pub last_error: Option<String>,
    /// From a question to the head of its answer, smoothed; `None` before the first.
    pub latency: Option<Duration>,
}

/// Lets questions through while the upstream answers; after [`TROUBLES_MAX`] troubles in a row
/// only single probes, ever more rarely, until one is answered. `now` is the time since any fixed
/// point.
#[derive(Debug)]
pub(super) struct Breaker {
    state: HealthState,
    since: Duration,
    last_error: Option<String>,
    latency: Option<Duration>,
    troubles: u32,
    first_trouble_at: Duration,
    rest: Duration,
    probe_at: Duration,
    probing: bool,
}

impl Breaker {
    /// A closed one.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            state: HealthState::Up,
            since: now,
            last_error: None,
            latency: None,
            troubles: 0,
            first_trouble_at: now,
            rest: REST_MIN,
            probe_at: now,
            probing: false,
        }
    }

    fn is_open(&self) -> bool {
        self.troubles >= TROUBLES_MAX
    }

    /// Whether a question would be kept back now.
    pub(super) fn is_resting(&self, now: Duration) -> bool {
        self.is_open() && now < self.probe_at
    }

    /// Whether a question may be asked now. While the breaker is open, a yes makes it the probe;
    /// should that one hang, the next may go after [`REST_MAX`].
    pub(super) fn admit(&mut self, now: Duration) -> bool {
        if !self.is_open() {
            return true;
        }
        if now < self.probe_at {
            return false;
        }
        self.probing = true;
        self.probe_at = now + REST_MAX;
        true
    }

    /// An answer took so long.
    pub(super) fn took(&mut self, took: Duration) {
        let before = self.latency.unwrap_or(took);
        self.latency = Some((before * (LATENCY_PARTS - 1) + took) / LATENCY_PARTS);
    }

    /// An answer came, even "I have it not".
    pub(super) fn succeeded(&mut self, now: Duration) {
        if self.state != HealthState::Up {
            self.since = now;
        }
        self.state = HealthState::Up;
        self.troubles = 0;
        self.rest = REST_MIN;
        self.probing = false;
    }

    /// Trouble came. `chance` in 0..=1 spreads the probes of many clients of one upstream.
    pub(super) fn failed(&mut self, now: Duration, how: HealthState, why: String, chance: f64) {
        self.last_error = Some(why);
        if self.troubles == 0 {
            self.first_trouble_at = now;
        }
        let was_open = self.is_open();
        self.troubles = self.troubles.saturating_add(1);
        if !self.is_open() {
            return;
        }
        if self.state != how {
            // The row of troubles began earlier than it was long enough to be believed.
            let came_up = self.state == HealthState::Up;
            self.since = if came_up { self.first_trouble_at } else { now };
            self.state = how;
        }
        // Questions that were on their way when the breaker opened fail in a bunch: one rest.
        if was_open && !self.probing {
            return;
        }
        self.rest = if was_open { (self.rest * 2).min(REST_MAX) } else { REST_MIN };
        self.probing = false;
        self.probe_at = now + self.rest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
    }

    /// For people.
    pub(super) fn health(&self, now: Duration) -> Health {
        Health {
            state: self.state,
            since: now.saturating_sub(self.since),
            last_error: self.last_error.clone(),
            latency: self.latency,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn open_at(ms: u64) -> Breaker {
        let mut breaker = Breaker::new(at(0));
        for _ in 0..TROUBLES_MAX {
            breaker.failed(at(ms), HealthState::Down, "no".into(), 1.0);
        }
        breaker
    }

    #[test]
    fn fewer_troubles_than_a_row_change_nothing() {
        let mut breaker = Breaker::new(at(0));
        for n in 0..10 {
            breaker.failed(at(n), HealthState::Down, "no".into(), 0.0);
            breaker.failed(at(n), HealthState::Down, "no".into(), 0.0);
            breaker.succeeded(at(n));
        }
        assert!(breaker.admit(at(11)));
        assert_eq!(breaker.health(at(11)).state, HealthState::Up);
    }

    #[test]
    fn a_row_of_troubles_opens_it_and_one_probe_goes_after_the_rest() {
        let mut breaker = open_at(100);
        assert!(breaker.is_resting(at(1099)));
        assert!(!breaker.admit(at(1099)));
        assert!(!breaker.is_resting(at(1100)));
        assert!(breaker.admit(at(1100)));
        assert!(!breaker.admit(at(1101)), "one probe at a time");
    }

    #[test]
    fn rests_double_up_to_the_longest() {
        let mut breaker = open_at(0);
        let mut now = 0;
        for rest in [1000, 2000, 4000, 5000, 5000] {
            assert!(!breaker.admit(at(now + rest - 1)), "{rest}");
            now += rest;
            assert!(breaker.admit(at(now)), "{rest}");
            breaker.failed(at(now), HealthState::Down, "no".into(), 1.0);
        }
    }

    #[test]
    fn a_bunch_of_late_failures_is_one_rest() {
        let mut breaker = open_at(0);
        for _ in 0..25 {
            breaker.failed(at(500), HealthState::Down, "no".into(), 1.0);
        }
        assert!(breaker.admit(at(1000)));
    }

    #[test]
    fn a_probe_that_hangs_does_not_keep_the_next_back_for_long() {
        let mut breaker = open_at(0);
        assert!(breaker.admit(at(1000)));
        assert!(!breaker.admit(at(5999)));
        assert!(breaker.admit(at(6000)));
    }

    #[test]
    fn chance_brings_a_probe_forward_by_half_at_most() {
        let mut breaker = Breaker::new(at(0));
        for _ in 0..TROUBLES_MAX {
            breaker.failed(at(0), HealthState::Down, "no".into(), 0.0);
        }
        assert!(breaker.is_resting(at(499)));
        assert!(!breaker.is_resting(at(500)));
    }

    #[test]
    fn a_success_closes_it_and_keeps_the_last_trouble_for_people() {
        let mut breaker = open_at(0);
        assert!(breaker.admit(at(1000)));
        breaker.succeeded(at(1200));
        assert!(breaker.admit(at(1200)) && breaker.admit(at(1200)));
        let health = breaker.health(at(3200));
        assert_eq!((health.state, health.since), (HealthState::Up, at(2000)));
        assert_eq!(health.last_error.as_deref(), Some("no"));
    }

    #[test]
    fn latency_follows_the_last_answers_slowly() {
        let mut breaker = Breaker::new(at(0));
        assert_eq!(breaker.health(at(0)).latency, None);
        breaker.took(at(80));
        assert_eq!(breaker.health(at(0)).latency, Some(at(80)));
        breaker.took(at(160));
        assert_eq!(breaker.health(at(0)).latency, Some(at(90)));
        for _ in 0..100 {
            breaker.took(at(8));
        }
        assert!(breaker.health(at(0)).latency.is_some_and(|took| took < at(9)));
    }

    #[test]
    fn down_counts_from_the_first_trouble_of_the_row() {
        let mut breaker = Breaker::new(at(0));
        for ms in [100, 200, 300] {
            breaker.failed(at(ms), HealthState::Down, "no".into(), 0.0);
        }
        assert_eq!(breaker.health(at(1100)).since, at(1000));
        breaker.failed(at(1100), HealthState::Refusing, "keys".into(), 0.0);
        let health = breaker.health(at(1200));
        assert_eq!((health.state, health.since), (HealthState::Refusing, at(100)));
    }
}
