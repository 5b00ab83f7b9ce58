//! What is given up while the machine's memory runs short: what only saves questions, free pages of
//! the heap, and a half of the codecs' budget, until it is well again.
//!
//! It looks while shares of that budget are out, so that a cache at rest wakes for nothing. Connections
//! and documents can grow without: they have bounds of their own that go by the machine's memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use super::{Cache, Inner, locked};
use crate::allocator;
use crate::pressure::{Kernel, Look, Watch};

/// Between two looks: a fill takes seconds to use what it was given, and what the kernel says of stalls
/// is over ten seconds.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How memory is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryState {
    /// What this process may take, where the kernel says.
    pub room_bytes: Option<u64>,
    /// For how long it has been short.
    pub short_for: Option<Duration>,
}

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Relief(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    watch: Watch,
    room_bytes: Option<u64>,
    short_since: Option<Instant>,
}

impl Cache {
    /// How memory was when it was last looked at.
    pub fn memory_state(&self) -> MemoryState {
        let known = locked(&self.inner.relief.0);
        let short_for = known.short_since.map(|since| since.elapsed());
        MemoryState { room_bytes: known.room_bytes, short_for }
    }
}

/// Looks after it until the cache is closed.
pub(super) fn start(inner: &Arc<Inner>) {
    let (own, closing) = (Arc::clone(inner), inner.closing.clone());
    inner.spawn(async move {
        closing.run_until_cancelled(Box::pin(keep(&own))).await;
    });
}

async fn keep(inner: &Inner) {
    loop {
        let is_short = relieve(inner).await;
        let next = Instant::now() + LOOK_EVERY;
        if is_short {
            // Whoever has what is to be withdrawn may keep it for longer.
            drop(timeout_at(next, inner.permits.withdraw()).await);
        } else if inner.permits.are_idle() {
            inner.permits.asked().await;
        }
        sleep_until(next).await;
    }
}

/// Looks, and does what follows from it.
async fn relieve(inner: &Inner) -> bool {
    // Some small files of the kernel's. Without them memory is as it was last seen.
    let Ok(look) = tokio::task::spawn_blocking(|| Kernel::default().look()).await else {
        return locked(&inner.relief.0).short_since.is_some();
    };
    let (was_short, is_short) = locked(&inner.relief.0).note(&look);
    if is_short {
        if !was_short {
            let (free_bytes, stalled) =
                (look.memories.iter().map(|it| it.free_bytes).min(), look.stalled);
            warn!(free_bytes, stalled, "memory runs short, caches in it are given up");
        }
        inner.memory.shed();
        // It takes a lock that every allocation waits for, for milliseconds: not on the reactor.
        drop(tokio::task::spawn_blocking(allocator::give_back).await);
    } else if was_short {
        info!("memory is well again");
        inner.permits.restore();
    }
    is_short
}

impl Known {
    /// Whether it was short, and is.
    fn note(&mut self, look: &Look) -> (bool, bool) {
        let was_short = self.short_since.is_some();
        let is_short = self.watch.observe(look);
        self.room_bytes = look.room_bytes();
        self.short_since = is_short.then(|| self.short_since.unwrap_or_else(Instant::now));
        (was_short, is_short)
    }
}
