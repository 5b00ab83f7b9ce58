//! HTTP/2 within the bounds that connections of HTTP/1.1 have by nature: requests at once, an end
//! for who is idle, an end for an answer that nobody takes. Knows nothing of what is answered.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

/// Requests at once on one connection: newer Nix has at most 125 of them in hand.
const STREAMS_MAX: u32 = 128;

/// What of one upload may be on its way to us: half a second of a slow Wi-Fi, 10 ms of a cable.
const STREAM_WINDOW_LEN: u32 = 256 * 1024;

/// The same of all uploads of a connection. 32 uploads that wait for their place hold their windows
/// full, and those that have one must go on: Nix sends at most 25 at once.
const CONNECTION_WINDOW_LEN: u32 = 8 * 1024 * 1024;

/// What of one answer waits for the client besides the row that is being sent.
const SEND_BUFFER_LEN: usize = 64 * 1024;

/// Bytes of the headers of a request: those of Nix are some hundred.
const HEADERS_LEN_MAX: u32 = 16 * 1024;

/// A connection's settings.
pub(super) fn builder(requests: Requests) -> http2::Builder<Requests> {
    let mut builder = http2::Builder::new(requests);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_LEN)
        .initial_connection_window_size(CONNECTION_WINDOW_LEN)
        .max_send_buf_size(SEND_BUFFER_LEN)
        .max_header_list_size(HEADERS_LEN_MAX);
    builder
}

/// Runs the requests of all connections, each a task of its own.
#[derive(Clone)]
pub(super) struct Requests {
    tasks: TaskTracker,
    stall_max: Duration,
}

impl Requests {
    pub(super) fn new(stall_max: Duration) -> Self {
        Self { tasks: TaskTracker::new(), stall_max }
    }

    /// Waits for the end of all, once nothing more is begun.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

tokio::task_local! {
    /// That of the request that the task answers.
    static CLOCK: Arc<Clock>;
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Requests {
    fn execute(&self, request: F) {
        let (clock, stall_max) = (Arc::<Clock>::default(), self.stall_max);
        let answered = CLOCK.scope(Arc::clone(&clock), AssertUnwindSafe(request).catch_unwind());
        self.tasks.spawn(async move {
            tokio::select! {
                ended = answered => {
                    if ended.is_err() {
                        error!("a request panicked");
                    }
                }
                // What is dropped unfinished resets its stream: no client takes it for whole.
                () = clock.stalls(stall_max) => debug!("the client takes nothing of an answer"),
            }
        });
    }
}

/// Since when a client owes to take what was handed out for it.
#[derive(Debug, Default)]
struct Clock(Mutex<Option<Instant>>);

impl Clock {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Ends when that is as long ago as `max`.
    async fn stalls(&self, max: Duration) {
        loop {
            let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let until = since.unwrap_or(now) + max;
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// How busy a connection is.
#[derive(Default)]
pub(super) struct Activity(Mutex<Count>);

struct Count {
    open: usize,
    idle_since: Instant,
}

impl Default for Count {
    fn default() -> Self {
        Self { open: 0, idle_since: Instant::now() }
    }
}

impl Activity {
    /// A request has begun; it ends with what is returned.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.count().open += 1;
        Busy { activity: Arc::clone(self), permit: None }
    }

    /// Ends when no request has been open for `max`.
    pub(super) async fn idle_for(&self, max: Duration) {
        loop {
            let until = {
                let count = self.count();
                let now = Instant::now();
                let since = if count.open == 0 { count.idle_since } else { now };
                if since + max <= now {
                    return;
                }
                since + max
            };
            sleep_until(until).await;
        }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is open, and its place among all.
pub(super) struct Busy {
    activity: Arc<Activity>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut count = self.activity.count();
        count.open = count.open.saturating_sub(1);
        count.idle_since = Instant::now();
    }
}

/// The body of an answer, with a clock on who takes it.
pub(super) struct Watched<B> {
    body: B,
    clock: Option<Arc<Clock>>,
    _busy: Busy,
}

impl<B> Watched<B> {
    /// To be called by the task that answers.
    pub(super) fn new(body: B, busy: Busy) -> Self {
        Self { body, clock: CLOCK.try_with(Arc::clone).ok(), _busy: busy }
    }

    fn note(&self, since: Option<Instant>) {
        if let Some(clock) = &self.clock {
            clock.set(since);
        }
    }
}

impl<B> Drop for Watched<B> {
    fn drop(&mut self) {
        self.note(None);
    }
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    /// Asked for more, the client has taken what was before.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.note(polled.is_ready().then(Instant::now));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
