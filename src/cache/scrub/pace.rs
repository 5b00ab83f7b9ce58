//! When the scrub reads on: each byte once in a round, in short turns with long rests, and rather while
//! nobody asks. Pure; time is an argument.

use std::time::Duration;

/// Turns in a round: of a month, one an hour. Many, so that each is short; few, so that files which
/// are closed at rest stay closed most of the time.
const TURNS_A_ROUND: u32 = 720;

/// The longest time between two looks whether it is time: that of a month's turns.
const LOOK_MAX: Duration = Duration::from_hours(1);

/// The shortest: looking costs a little too.
const LOOK_MIN: Duration = Duration::from_secs(1);

/// So long nobody has asked when a turn begins: the pauses within a build are shorter.
const QUIET: Duration = Duration::from_secs(30);

/// A house that is never quiet is waited for so many turns, in the usual case a day.
const BUSY_TURNS_MAX: u32 = 24;

/// How many times as long as a step took it rests: a tenth of a core and of the disk at most.
const REST_FACTOR: u32 = 9;

/// While a client read so lately, a scrub that somebody waits for rests too.
const YIELD: Duration = Duration::from_secs(1);

/// How a scrub goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    /// By itself.
    Slow,
    /// Somebody waits for it.
    Asked,
}

impl Haste {
    /// How long to rest after a step.
    pub(super) fn rest(self, took: Duration, quiet_for: Duration) -> Duration {
        match self {
            Self::Asked if quiet_for >= YIELD => Duration::ZERO,
            Self::Slow | Self::Asked => took * REST_FACTOR,
        }
    }
}

/// What time has earned and reading has spent.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    every: Duration,
    /// Bytes times milliseconds of a round: so that nothing is lost by rounding.
    earned: i128,
    at: Duration,
}

impl Pace {
    /// `every`: how long a round takes.
    pub(super) fn new(every: Duration) -> Self {
        Self { every: every.max(LOOK_MIN), earned: 0, at: Duration::ZERO }
    }

    fn every_ms(&self) -> i128 {
        millis(self.every)
    }

    /// How long to wait until the next look.
    pub(super) fn look(&self) -> Duration {
        (self.every / TURNS_A_ROUND).clamp(LOOK_MIN, LOOK_MAX)
    }

    /// Bytes that were read before their time, as they were when this ended last.
    pub(super) fn begin(&mut self, now: Duration, ahead_bytes: u64) {
        self.at = now;
        self.earned = -i128::from(ahead_bytes) * self.every_ms();
    }

    /// Bytes that are read before their time.
    pub(super) fn ahead_bytes(&self) -> u64 {
        u64::try_from((-self.earned).max(0) / self.every_ms()).unwrap_or(u64::MAX)
    }

    /// So much was read.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.earned -= i128::from(bytes) * self.every_ms();
    }

    /// Whether to read on, in a store that has `of_bytes`.
    pub(super) fn is_due(&mut self, now: Duration, of_bytes: u64, quiet_for: Duration) -> bool {
        let of_bytes = i128::from(of_bytes);
        self.earned += of_bytes * millis(now.saturating_sub(self.at));
        self.at = now;
        // Never more than a round ahead or behind: a store that became smaller, or a disk that was
        // away for long, is no reason for more.
        let round = of_bytes * self.every_ms();
        self.earned = self.earned.clamp(-round, round);
        let is_late = self.earned > of_bytes * millis(self.look() * BUSY_TURNS_MAX);
        self.earned > 0 && (is_late || quiet_for >= QUIET.min(self.look()))
    }
}

fn millis(span: Duration) -> i128 {
    i128::try_from(span.as_millis()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const GIB: u64 = 1 << 30;

    /// Plays some days; what is read is at most `nar_bytes` at once. Says how many bytes were read.
    fn play(pace: &mut Pace, days: u32, of_bytes: u64, nar_bytes: u64, quiet: Duration) -> u64 {
        let (mut now, mut read) = (pace.at, 0);
        let end = now + DAY * days;
        while now < end {
            now += pace.look();
            while pace.is_due(now, of_bytes, quiet) {
                pace.spend(nar_bytes);
                read += nar_bytes;
                now += Duration::from_millis(200);
            }
        }
        read
    }

    #[test]
    fn each_byte_is_read_once_a_month() {
        for (of_bytes, nar_bytes) in
            [(200 * GIB, 30 << 20), (200 * GIB, 8 * GIB), (GIB, 4096), (GIB, GIB), (8192, 4096)]
        {
            let mut pace = Pace::new(DAY * 30);
            let read = play(&mut pace, 300, of_bytes, nar_bytes, QUIET);
            let rounds = u128::from(read) * 100 / u128::from(of_bytes);
            // The last one may be read before its time.
            let more = u128::from(nar_bytes) * 100 / u128::from(of_bytes);
            assert!((999..=1001 + more).contains(&rounds), "{of_bytes} {nar_bytes}: {rounds}");
        }
    }

    #[test]
    fn it_waits_for_quiet_and_not_for_ever() {
        let mut pace = Pace::new(DAY * 30);
        let hour = pace.look();
        assert_eq!(hour, Duration::from_hours(1));
        assert!(!pace.is_due(hour, GIB, Duration::ZERO));
        assert!(pace.is_due(hour * 2, GIB, QUIET));
        assert!(!pace.is_due(hour * 20, GIB, Duration::ZERO));
        assert!(pace.is_due(hour * 25, GIB, Duration::ZERO));
        let read = play(&mut pace, 300, 200 * GIB, 1 << 20, Duration::ZERO);
        assert!(read > 1990 * GIB, "{read}");
    }

    #[test]
    fn a_start_goes_on_where_the_last_one_ended() {
        let mut pace = Pace::new(DAY * 30);
        assert!(pace.is_due(DAY, GIB, QUIET));
        pace.spend(GIB);
        let ahead = pace.ahead_bytes();
        assert!(ahead > 28 * GIB / 30 && ahead < GIB, "{ahead}");
        let mut next = Pace::new(DAY * 30);
        next.begin(Duration::from_secs(5), ahead);
        assert!(!next.is_due(DAY * 28, GIB, QUIET));
        assert!(next.is_due(DAY * 30, GIB, QUIET));
        // A store that became smaller waits for a round at most.
        next.begin(Duration::ZERO, 1000 * GIB);
        assert!(!next.is_due(Duration::ZERO, 4096, QUIET));
        assert!(next.is_due(DAY * 31, 4096, QUIET));
    }

    #[test]
    fn it_takes_a_tenth_and_yields_to_clients() {
        let took = Duration::from_millis(100);
        assert_eq!(Haste::Slow.rest(took, DAY), took * 9);
        assert_eq!(Haste::Asked.rest(took, DAY), Duration::ZERO);
        assert_eq!(Haste::Asked.rest(took, Duration::ZERO), took * 9);
    }

    #[test]
    fn nothing_is_read_of_an_empty_store() {
        let mut pace = Pace::new(DAY * 30);
        assert_eq!(play(&mut pace, 60, 0, 4096, QUIET), 0);
    }
}
