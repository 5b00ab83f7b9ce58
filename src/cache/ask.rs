//! Several upstreams, one question: in order, the next one early when one is slow. Pure but for
//! the timer; what is asked and whom is the caller's.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

/// When the one that was asked has not answered after this time, the next is asked too.
pub(super) const HEDGE: Duration = Duration::from_millis(700);

/// What one upstream said.
#[derive(Debug)]
pub(super) enum Said<T> {
    /// What was wanted.
    Found(T),
    /// Something, but not what is preferred.
    Other(T),
    /// It has it not.
    Absent,
    /// No usable answer.
    Trouble,
}

/// What they said together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked<T> {
    /// The first that was wanted; then the others were not waited for.
    pub(super) found: Option<T>,
    /// The first that was not preferred.
    pub(super) other: Option<T>,
    /// Whether one of them was in trouble: absence is not known then.
    pub(super) trouble: bool,
}

/// Asks one after the other (each question begins when it is first polled) until one has it.
pub(super) async fn first<T>(
    questions: impl IntoIterator<Item = BoxFuture<'_, Said<T>>>,
) -> Asked<T> {
    let mut questions = questions.into_iter();
    let mut asked = Asked { found: None, other: None, trouble: false };
    let mut running = FuturesUnordered::new();
    running.extend(questions.next());
    let mut hedge_at = Instant::now() + HEDGE;
    let mut all_asked = false;
    loop {
        tokio::select! {
            said = running.next() => {
                match said {
                    Some(Said::Found(found)) => {
                        asked.found = Some(found);
                        return asked;
                    }
                    Some(Said::Other(other)) => asked.other = asked.other.or(Some(other)),
                    Some(Said::Trouble) => asked.trouble = true,
                    None if all_asked => return asked,
                    Some(Said::Absent) | None => {}
                }
            }
            () = sleep_until(hedge_at), if !all_asked => {}
        }
        match questions.next() {
            Some(next) => running.push(next),
            None => all_asked = true,
        }
        hedge_at = Instant::now() + HEDGE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ms: u64, said: Said<&'static str>) -> BoxFuture<'static, Said<&'static str>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            said
        })
    }

    async fn check(
        questions: Vec<BoxFuture<'static, Said<&'static str>>>,
        found: Option<&'static str>,
        trouble: bool,
        ms: u128,
    ) {
        let began = Instant::now();
        let asked = first(questions).await;
        assert_eq!((asked.found, asked.trouble), (found, trouble));
        assert_eq!(began.elapsed().as_millis(), ms);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_is_asked_when_one_has_it_not() {
        check(vec![after(5, Said::Absent), after(5, Said::Found("b"))], Some("b"), false, 10).await;
        check(vec![after(5, Said::Trouble), after(5, Said::Found("b"))], Some("b"), true, 10).await;
        check(vec![after(5, Said::Absent), after(5, Said::Absent)], None, false, 10).await;
        check(vec![after(5, Said::Trouble), after(5, Said::Absent)], None, true, 10).await;
        check(Vec::new(), None, false, 0).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_is_overtaken_after_the_hedge() {
        let slow = || after(60_000, Said::Found("slow"));
        check(vec![slow(), after(5, Said::Found("b"))], Some("b"), false, 705).await;
        check(vec![slow(), slow(), after(5, Said::Found("c"))], Some("c"), false, 1405).await;
        check(vec![after(900, Said::Found("a")), slow()], Some("a"), false, 900).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_preferred_comes_before_what_was_there_first() {
        let asked = first(vec![after(5, Said::Other("b")), after(5, Said::Found("a"))]).await;
        assert_eq!(asked, Asked { found: Some("a"), other: Some("b"), trouble: false });
        let asked = first(vec![after(5, Said::Other("b")), after(5, Said::Absent)]).await;
        assert_eq!(asked, Asked { found: None, other: Some("b"), trouble: false });
    }
}
