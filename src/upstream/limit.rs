//! A bound on bytes a second: of what all targets together get, of what comes from one upstream.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pieces a second at least, while the bound holds bytes back: a target that sees nothing for long
/// takes the connection for dead.
const PIECES_A_SECOND: u64 = 4;

/// Shortest piece: below it the packets are mostly head.
const PIECE_LEN_MIN: u64 = 1024;

/// What may still go, as a debt that shrinks with time: whoever takes waits until the debt is paid,
/// so that several get their turns in the order they asked. `now` is the time since any fixed point.
#[derive(Debug)]
struct Debt {
    bytes_a_second: u64,
    paid_at: Duration,
}

impl Debt {
    /// How long whoever takes these bytes now must wait first.
    fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let begins = self.paid_at.max(now);
        // Both are far below 2^52, where an f64 is exact.
        #[allow(clippy::cast_precision_loss, reason = "a wait is not exact to the nanosecond")]
        let took = Duration::from_secs_f64(bytes as f64 / self.bytes_a_second.max(1) as f64);
        self.paid_at = begins + took;
        begins.saturating_sub(now)
    }
}

/// The bound, shared by all that it holds back.
#[derive(Debug)]
pub struct Limit {
    debt: Mutex<Option<Debt>>,
    started: Instant,
}

impl Limit {
    /// Bytes a second; `None` is no bound.
    pub fn new(bytes_a_second: Option<u64>) -> Self {
        let limit = Self { debt: Mutex::default(), started: Instant::now() };
        limit.set(bytes_a_second);
        limit
    }

    /// Another bound holds from now on, also for what is under way.
    pub fn set(&self, bytes_a_second: Option<u64>) {
        let debt =
            bytes_a_second.map(|bytes_a_second| Debt { bytes_a_second, paid_at: Duration::ZERO });
        *self.debt() = debt;
    }

    fn debt(&self) -> MutexGuard<'_, Option<Debt>> {
        self.debt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest piece to be taken at once.
    pub fn piece_len_max(&self) -> u64 {
        let bytes_a_second = self.debt().as_ref().map_or(u64::MAX, |debt| debt.bytes_a_second);
        (bytes_a_second / PIECES_A_SECOND).max(PIECE_LEN_MIN)
    }

    /// Returns when these bytes may go.
    pub async fn wait(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let wait = self.debt().as_mut().map(|debt| debt.take(self.started.elapsed(), bytes));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_taken_waits_for_what_was_taken_before() {
        let mut debt = Debt { bytes_a_second: 1000, paid_at: Duration::ZERO };
        let ms = Duration::from_millis;
        assert_eq!(debt.take(ms(0), 500), ms(0));
        assert_eq!(debt.take(ms(0), 500), ms(500));
        assert_eq!(debt.take(ms(200), 1000), ms(800));
        assert_eq!(debt.take(ms(9000), 1000), ms(0), "quiet time is not saved up");
        assert_eq!(debt.take(ms(9000), 1000), ms(1000));
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_gets_more_than_its_share(
            rate in 1_000u32..10_000_000,
            takes in prop::collection::vec((0u64..2000, 1u32..300_000), 1..200),
        ) {
            let mut debt = Debt { bytes_a_second: rate.into(), paid_at: Duration::ZERO };
            let (mut now, mut gone) = (Duration::ZERO, 0u32);
            for (later_ms, bytes) in takes {
                now += Duration::from_millis(later_ms);
                let goes_at = now + debt.take(now, bytes.into());
                // What goes at this very moment is not paid for yet.
                let paid = goes_at.as_secs_f64() * f64::from(rate);
                prop_assert!(f64::from(gone) <= paid + 1.0 + f64::from(gone) * 1e-6);
                gone += bytes;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_bound_holds_at_once() {
        let limit = Limit::new(Some(1000));
        limit.wait(1_000_000).await;
        limit.set(None);
        let now = tokio::time::Instant::now();
        limit.wait(1_000_000).await;
        assert_eq!(now.elapsed(), Duration::ZERO);
        limit.set(Some(1000));
        limit.wait(2000).await;
        limit.wait(1).await;
        let waited = now.elapsed();
        assert!((1.9..=2.1).contains(&waited.as_secs_f64()), "{waited:?}");
    }

    #[test]
    fn pieces_are_short_where_the_bound_is_low() {
        assert_eq!(Limit::new(Some(10)).piece_len_max(), 1024);
        assert_eq!(Limit::new(Some(1 << 20)).piece_len_max(), 1 << 18);
        assert!(Limit::new(None).piece_len_max() > 1 << 40);
    }
}
