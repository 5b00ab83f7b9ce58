//! The ledger: the history of figures, fed from the counters, kept by the store. One for status,
//! page and metrics, so that they say the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::figures::Figures;
use super::history::{History, Sample, Tally};
use super::troubles::Trouble;
use crate::cache::StoreHistory;
use crate::metrics::{Counter, Metrics};

/// See the module.
pub(super) struct Ledger {
    pub(super) figures: Figures,
    served_bytes: Counter,
    fetched_bytes: Counter,
    history: Mutex<History>,
    /// Since when what is not well is known, by what it is.
    troubles: Mutex<BTreeMap<String, Instant>>,
}

/// Seconds since 1970 by the system's clock, which may be wrong.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Ledger {
    /// An empty one on these counters.
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            figures: Figures::new(metrics),
            served_bytes: metrics.served_bytes.clone(),
            fetched_bytes: metrics.fetched_bytes.clone(),
            history: Mutex::default(),
            troubles: Mutex::default(),
        }
    }

    /// The counters as they are.
    pub(super) fn counters(&self) -> Tally {
        let totals = self.figures.totals();
        Tally {
            hits: totals.hits,
            misses: totals.misses,
            absent: totals.absent,
            served_bytes: self.served_bytes.get(),
            fetched_bytes: self.fetched_bytes.get(),
        }
    }

    /// The history up to now.
    pub(super) fn history(&self, now_s: u64) -> MutexGuard<'_, History> {
        // Each change leaves it whole.
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.count(now_s, self.counters());
        history
    }

    /// What was just looked at.
    pub(super) fn sample(&self, now_s: u64, sample: &Sample) {
        self.history(now_s).sample(now_s, sample);
    }

    /// Since when, for those troubles that do not say so themselves. What is well again is
    /// forgotten.
    pub(super) fn date(&self, troubles: &mut [Trouble], now: Instant) {
        let mut known = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|key, _| troubles.iter().any(|trouble| trouble.key == *key));
        for trouble in troubles {
            let since = *known.entry(trouble.key.clone()).or_insert(now);
            let since_s = now.saturating_duration_since(since).as_secs();
            trouble.since_s.get_or_insert(since_s);
        }
    }
}

impl StoreHistory for Ledger {
    fn found(&self, rows: Vec<(String, Bytes)>) {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).found(&rows);
    }

    fn rows(&self) -> Vec<(&'static str, Bytes)> {
        self.history(now_s()).rows()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Ended, Kind};

    #[test]
    fn what_is_asked_for_is_in_the_rows_at_once() {
        let ledger = Ledger::new(&Metrics::new());
        ledger.found(Vec::new());
        assert!(ledger.rows().is_empty());
        ledger.figures.note(Kind::Nar, Ended::Hit, Duration::ZERO);
        ledger.served_bytes.inc_by(7);
        assert_eq!(ledger.rows().len(), 3);
        let wanted = Tally { hits: 1, served_bytes: 7, ..Tally::default() };
        assert_eq!(ledger.history(now_s()).ever(), wanted);
    }

    #[test]
    fn a_trouble_is_dated_from_when_it_was_first_seen() {
        let ledger = Ledger::new(&Metrics::new());
        let now = Instant::now();
        let later = now + Duration::from_mins(1);
        let trouble =
            |key: &str, since_s| Trouble { key: key.into(), what: String::new(), since_s };
        ledger.date(&mut [trouble("a", None)], now);
        let mut troubles = [trouble("a", None), trouble("b", None), trouble("c", Some(5))];
        ledger.date(&mut troubles, later);
        assert_eq!(troubles.map(|it| it.since_s), [Some(60), Some(0), Some(5)]);
        ledger.date(&mut [], later);
        let mut troubles = [trouble("a", None)];
        ledger.date(&mut troubles, later);
        assert_eq!(troubles.map(|it| it.since_s), [Some(0)]);
    }
}
