//! Uploads that no narinfo bound within a day are cleared away; and the figures that come from the
//! queue's length are kept fresh.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Inner, now_s};

/// How often uploads are looked at: they may stay up to this much longer than their day.
const EVERY: Duration = Duration::from_hours(1);

/// How long an upload may wait for its narinfo. Newer clients send the NARs of a whole closure
/// before its first narinfo.
const UNBOUND_FOR: Duration = Duration::from_hours(24);

/// How far the clock may be off our own count of time before it counts as set: more than any clock
/// drifts in an hour.
const CLOCK_STEP: Duration = Duration::from_mins(2);

/// How often the queue's figures are looked at, in memory.
const FIGURES_EVERY: Duration = Duration::from_secs(5);

/// Whether ages by the clock can be believed. A Pi without a battery starts years back, and what
/// came before its clock was set would look years old a moment later.
#[derive(Debug)]
struct Clock {
    /// The clock less our own count of time, when it was looked at last.
    offset_s: u64,
    /// From when on, by our own count, ages can be believed.
    steady_at: Duration,
}

impl Clock {
    fn new(uptime: Duration, clock_s: u64) -> Self {
        Self { offset_s: clock_s.saturating_sub(uptime.as_secs()), steady_at: uptime }
    }

    /// Before which second uploads are too old, if that can be said.
    fn cutoff(&mut self, uptime: Duration, clock_s: u64) -> Option<u64> {
        let offset_s = clock_s.saturating_sub(uptime.as_secs());
        if offset_s.abs_diff(self.offset_s) > CLOCK_STEP.as_secs() {
            self.steady_at = uptime + UNBOUND_FOR;
        }
        self.offset_s = offset_s;
        (uptime >= self.steady_at).then(|| clock_s.saturating_sub(UNBOUND_FOR.as_secs()))
    }
}

/// Clears away unbound uploads, hour by hour.
pub(super) async fn uploads(inner: Arc<Inner>, stop: CancellationToken) {
    let started = Instant::now();
    let mut clock = Clock::new(Duration::ZERO, now_s());
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        let Some(before_s) = clock.cutoff(started.elapsed(), now_s()) else { continue };
        match inner.store.drop_unbound(before_s).await {
            Ok(0) => {}
            Ok(count) => info!(count, "uploads without a narinfo were cleared away"),
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, cause = ?error.source(),
                    "uploads without a narinfo could not be cleared away");
            }
        }
    }
}

/// Keeps the gauges of the queue fresh.
pub(super) async fn figures(inner: Arc<Inner>, stop: CancellationToken) {
    loop {
        let metrics = &inner.metrics;
        let queues = inner.store.queues();
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.push_waiting.set(whole(queues.iter().map(|queue| queue.waiting).sum()));
        metrics.push_lost.set(whole(queues.iter().map(|queue| queue.lost).sum()));
        let oldest = queues.iter().filter_map(|queue| queue.oldest_at_s).min();
        let oldest_s = oldest.map_or(0, |oldest| now_s().saturating_sub(oldest));
        metrics.push_oldest_seconds.set(whole(oldest_s));
        metrics.push_parked.set(whole(inner.parked()));
        if stop.run_until_cancelled(tokio::time::sleep(FIGURES_EVERY)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(count: u64) -> Duration {
        Duration::from_hours(count)
    }

    #[test]
    fn ages_are_believed_while_the_clock_goes_steadily() {
        let mut clock = Clock::new(hours(0), 1_000_000);
        assert_eq!(clock.cutoff(hours(1), 1_003_600), Some(1_003_600 - 86_400));
        assert_eq!(clock.cutoff(hours(2), 1_007_260), Some(1_007_260 - 86_400));
    }

    #[test]
    fn nothing_is_old_for_a_day_after_the_clock_was_set() {
        let mut clock = Clock::new(hours(0), 1_000);
        let set = 1_795_266_000;
        assert_eq!(clock.cutoff(hours(1), set), None);
        for hour in 2..25 {
            assert_eq!(clock.cutoff(hours(hour), set + (hour - 1) * 3600), None, "{hour}");
        }
        assert!(clock.cutoff(hours(25), set + 24 * 3600).is_some());
        assert_eq!(clock.cutoff(hours(26), 5_000), None, "set back");
    }
}
