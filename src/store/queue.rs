//! A bounded queue from async callers to threads of our own: the caller waits without a thread,
//! the thread waits without a runtime.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::lock;

/// See the module.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    places: Semaphore,
    closed: watch::Sender<bool>,
}

struct State<T> {
    /// The item, and whether it holds a place of the bound.
    items: VecDeque<(T, bool)>,
    closed: bool,
}

/// A place in a queue.
pub(super) struct Place<'q, T> {
    queue: &'q Queue<T>,
    permit: SemaphorePermit<'q>,
}

impl<T> Place<'_, T> {
    pub(super) fn push(self, item: T) {
        self.permit.forget();
        drop(self.queue.put(item, true));
    }
}

/// What waiting for an item came to.
pub(super) enum Popped<T> {
    Item(T),
    TimedOut,
    /// Closed, and nothing is left.
    Closed,
}

impl<T> Queue<T> {
    pub(super) fn new(places: usize) -> Self {
        Self {
            state: Mutex::new(State { items: VecDeque::new(), closed: false }),
            filled: Condvar::new(),
            places: Semaphore::new(places),
            closed: watch::Sender::new(false),
        }
    }

    /// Waits for a place. Gives the item back when the queue is closed.
    pub(super) async fn push(&self, item: T) -> Result<(), T> {
        match self.places.acquire().await {
            Ok(place) => {
                place.forget();
                self.put(item, true)
            }
            Err(_closed) => Err(item),
        }
    }

    /// Waits for a place that is filled later; `None` when the queue is closed.
    pub(super) async fn place(&self) -> Option<Place<'_, T>> {
        let permit = self.places.acquire().await.ok()?;
        Some(Place { queue: self, permit })
    }

    /// Waits until the queue is closed.
    pub(super) async fn until_closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives in `self`.
        drop(closed.wait_for(|closed| *closed).await);
    }

    /// Without waiting and outside the bound: for what is bounded elsewhere (rows by their
    /// permits, farewells by the handles that say them). Dropped when the queue is closed.
    pub(super) fn push_now(&self, item: T) {
        drop(self.put_now(item));
    }

    /// The same; gives the item back when the queue is closed.
    pub(super) fn put_now(&self, item: T) -> Result<(), T> {
        self.put(item, false)
    }

    fn put(&self, item: T, placed: bool) -> Result<(), T> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(item);
        }
        state.items.push_back((item, placed));
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// The next item, waiting for it at most `wait` (`None`: as long as it takes).
    pub(super) fn pop(&self, wait: Option<Duration>) -> Popped<T> {
        let until = wait.map(|wait| Instant::now() + wait);
        let mut state = lock(&self.state);
        loop {
            if let Some((item, placed)) = state.items.pop_front() {
                drop(state);
                self.places.add_permits(usize::from(placed));
                return Popped::Item(item);
            }
            if state.closed {
                return Popped::Closed;
            }
            state = match until {
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Popped::TimedOut;
                    }
                    let waited = self.filled.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Refuses new items; what is inside is still handed out.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.places.close();
        self.filled.notify_all();
        self.closed.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_makes_the_caller_wait_and_a_closed_one_gives_back() {
        let queue = Queue::new(1);
        assert!(queue.push(1).await.is_ok());
        let second = queue.push(2);
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(matches!(queue.pop(None), Popped::Item(1)));
        assert!(second.await.is_ok());
        queue.close();
        assert_eq!(queue.push(3).await, Err(3));
        assert!(matches!(queue.pop(None), Popped::Item(2)));
        assert!(matches!(queue.pop(None), Popped::Closed));
    }

    #[test]
    fn nothing_comes_within_the_wait() {
        let queue = Queue::<u8>::new(1);
        assert!(matches!(queue.pop(Some(Duration::from_millis(1))), Popped::TimedOut));
    }
}
