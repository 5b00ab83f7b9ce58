//! The counters of answers, looked up once: an answer then costs no map and no lock but the
//! histogram's.

use std::time::Duration;

use crate::metrics::{Counter, Ended, Histogram, Kind, KindLabel, Metrics, RequestLabels};

/// The counters of all kinds.
pub(super) struct Figures {
    narinfo: OfKind,
    nar: OfKind,
    listing: OfKind,
    document: OfKind,
    other: OfKind,
}

struct OfKind {
    hit: Counter,
    miss: Counter,
    absent: Counter,
    refused: Counter,
    seconds: Histogram,
}

/// Sums since the start, over everything that Nix asks for (pages and figures left out).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) absent: u64,
}

impl OfKind {
    fn new(metrics: &Metrics, kind: Kind) -> Self {
        let requests = &metrics.requests;
        let of = |outcome| requests.get_or_create_owned(&RequestLabels { kind, outcome });
        Self {
            hit: of(Ended::Hit),
            miss: of(Ended::Miss),
            absent: of(Ended::Absent),
            refused: of(Ended::Refused),
            seconds: metrics.request_seconds.get_or_create_owned(&KindLabel { kind }),
        }
    }

    const fn counter(&self, ended: Ended) -> &Counter {
        match ended {
            Ended::Hit => &self.hit,
            Ended::Miss => &self.miss,
            Ended::Absent => &self.absent,
            Ended::Refused => &self.refused,
        }
    }
}

impl Figures {
    /// Handles on these metrics. Every series exists, at zero, from the start.
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            narinfo: OfKind::new(metrics, Kind::Narinfo),
            nar: OfKind::new(metrics, Kind::Nar),
            listing: OfKind::new(metrics, Kind::Listing),
            document: OfKind::new(metrics, Kind::Document),
            other: OfKind::new(metrics, Kind::Other),
        }
    }

    /// Counts one answer.
    pub(super) fn note(&self, kind: Kind, ended: Ended, took: Duration) {
        let figures = match kind {
            Kind::Narinfo => &self.narinfo,
            Kind::Nar => &self.nar,
            Kind::Listing => &self.listing,
            Kind::Document => &self.document,
            Kind::Other => &self.other,
        };
        figures.counter(ended).inc();
        figures.seconds.observe(took.as_secs_f64());
    }

    /// The sums for status and page.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for figures in [&self.narinfo, &self.nar, &self.listing, &self.document] {
            totals.hits += figures.hit.get();
            totals.misses += figures.miss.get();
            totals.absent += figures.absent.get();
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_kind_and_outcome() {
        let metrics = Metrics::new();
        let figures = Figures::new(&metrics);
        figures.note(Kind::Narinfo, Ended::Hit, Duration::from_millis(1));
        figures.note(Kind::Nar, Ended::Miss, Duration::from_millis(20));
        figures.note(Kind::Document, Ended::Absent, Duration::ZERO);
        figures.note(Kind::Other, Ended::Hit, Duration::ZERO);
        figures.note(Kind::Other, Ended::Refused, Duration::ZERO);
        assert_eq!(figures.totals(), Totals { hits: 1, misses: 1, absent: 1 });
        let labels = RequestLabels { kind: Kind::Nar, outcome: Ended::Miss };
        assert_eq!(metrics.requests.get_or_create(&labels).get(), 1);
    }
}
