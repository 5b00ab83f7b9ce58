//! Writes: what the house builds is taken, acknowledged when it is durable, and carried up to the
//! push targets, whatever happens in between.
//!
//! An upload goes through [`upload`] (the NAR) and [`accept`] (its narinfo); [`documents`] takes
//! the small ones, [`view`] says what `/push` has, [`others`] what the other upstreams say. The
//! queue is carried up by one [`worker`] for each target, in the order that [`order`] finds.
//! [`tokens`] says who may write.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::nix::{SecretKey, StoreDir};
use crate::store::Store;
use crate::upstream::{Limit, Upstream};

use upstreams::Upstreams;

pub mod tokens;

mod refusal;
mod upload;
mod accept;
mod documents;
mod view;
mod waiting;
mod others;
mod order;
mod state;
mod upstreams;
mod bring;
mod carry;
mod worker;
mod sweep;
mod status;

pub use documents::{DOCUMENT_LEN_MAX, Shape, Wrapping};
pub use refusal::Refusal;
pub use status::{TargetState, TargetStatus};
pub use upload::{Begun, NarUpload};
pub use waiting::{Waiting, WaitingFor, WaitingPath, WaitingRow};

/// What the daemon tells the push side.
#[derive(Debug, Clone)]
pub struct Config {
    /// Nix's store directory.
    pub store_dir: StoreDir,
    /// zstd level of what is stored.
    pub compression_level: i32,
    /// Longest NAR that is taken, decoded.
    pub nar_size_max: u64,
    /// Whether what another upstream has is carried up as well.
    pub everything: bool,
    /// Bytes a second that all targets together get; `None` is no bound.
    pub limit: Option<u64>,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Push {
    inner: Arc<Inner>,
}

/// What the rooms share.
struct Inner {
    config: Config,
    /// Signs what was pushed; `None` while there is no key.
    own_key: Mutex<Option<SecretKey>>,
    store: Store,
    cache: Cache,
    /// Where it is carried, and who is asked whether it is theirs already.
    upstreams: Mutex<Arc<Upstreams>>,
    /// Of what all targets together get.
    limit: Limit,
    others_memory: others::Others,
    metrics: Metrics,
    /// Told whenever something was queued.
    queued: watch::Sender<u64>,
    uploads: upload::Uploads,
    turns: accept::Turns,
    workers: worker::Workers,
}

impl Push {
    /// Opens the door; nothing is carried before [`Push::run`].
    pub fn new(
        config: Config,
        own_key: Option<SecretKey>,
        (store, cache): (Store, Cache),
        (targets, others): (Vec<Upstream>, Vec<Upstream>),
        metrics: Metrics,
    ) -> Self {
        let inner = Inner {
            own_key: Mutex::new(own_key),
            store,
            cache,
            uploads: upload::Uploads::default(),
            limit: Limit::new(config.limit),
            workers: worker::Workers::default(),
            turns: accept::Turns::default(),
            upstreams: Mutex::new(Arc::new(Upstreams::new(targets, others))),
            others_memory: others::Others::default(),
            metrics,
            queued: watch::Sender::new(0),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Carries up what is queued, and clears away uploads that nobody bound, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        worker::run(&self.inner, stop).await;
    }

    /// Another key signs from now on.
    pub fn set_own_key(&self, own_key: SecretKey) {
        *self.inner.own_key.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(own_key);
    }
}

/// Seconds since 1970 by this machine's clock.
fn now_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
