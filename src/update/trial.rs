//! Whether a version that runs on trial may stay. Pure: time is an argument.

use std::time::Duration;

/// How it was at one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// What is not well, in a few words; nothing when all is.
    pub ill: Option<String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Look again.
    Wait,
    /// It was well for long enough: it stays.
    Stay,
    /// It had its time: back, and this is why.
    Back(String),
}

/// The watch over a trial.
#[derive(Debug, Clone)]
pub struct Watch {
    well_for: Duration,
    within: Duration,
    well_since: Option<Duration>,
    last_ill: String,
}

impl Watch {
    /// Well for so long without a break, within so long from the start. A minute that began in time
    /// may end after it.
    pub fn new(well_for: Duration, within: Duration) -> Self {
        Self { well_for, within, well_since: None, last_ill: "it was not looked at".to_owned() }
    }

    /// What a look says, `now` after the start.
    pub fn look(&mut self, now: Duration, look: Look) -> Verdict {
        if let Some(ill) = look.ill {
            self.last_ill = ill;
            self.well_since = None;
        } else {
            let since = *self.well_since.get_or_insert(now);
            if now.saturating_sub(since) >= self.well_for {
                return Verdict::Stay;
            }
        }
        if self.well_since.is_none() && now >= self.within {
            return Verdict::Back(self.last_ill.clone());
        }
        // One that is well on and off must not go on for ever.
        if now >= self.within.saturating_add(self.well_for) {
            return Verdict::Back(format!("it was not well for long enough: {}", self.last_ill));
        }
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look every second; `well` says how it is then.
    fn run(well: impl Fn(u64) -> bool) -> (u64, Verdict) {
        let mut watch = Watch::new(Duration::from_mins(1), Duration::from_mins(10));
        for second in 0..10_000 {
            let ill = (!well(second)).then(|| format!("ill at {second}"));
            match watch.look(Duration::from_secs(second), Look { ill }) {
                Verdict::Wait => {}
                verdict @ (Verdict::Stay | Verdict::Back(_)) => return (second, verdict),
            }
        }
        (10_000, Verdict::Wait)
    }

    #[test]
    fn a_minute_without_a_break_is_wanted_within_ten() {
        assert_eq!(run(|_| true), (60, Verdict::Stay));
        assert_eq!(run(|second| second >= 100), (160, Verdict::Stay));
        assert_eq!(run(|second| second != 30), (91, Verdict::Stay));
        assert_eq!(run(|second| second >= 599), (659, Verdict::Stay));
        assert_eq!(run(|_| false), (600, Verdict::Back("ill at 600".into())));
        assert_eq!(run(|second| second < 59), (600, Verdict::Back("ill at 600".into())));
        let (second, verdict) = run(|second| second % 50 != 0);
        assert!(matches!(verdict, Verdict::Back(_)), "{verdict:?}");
        assert!((600..=660).contains(&second), "{second}");
    }
}
