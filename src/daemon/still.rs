//! The store and the write side without a server, for commands that work on them while no daemon
//! runs: nothing is served, nothing is carried up.

use anyhow::Context;

use super::room::Shares;
use super::{
    CACHE_CLOSE_WAIT, OwnKeys, STORE_CLOSE_WAIT, folder, open_push, open_upstreams, within,
};
use super::{compression_level, key, signer_of_fetched};
use crate::cache::{self, Cache};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::push::Push;
use crate::store::{self, Store};

/// What is open.
pub struct Still {
    /// The write side.
    pub push: Push,
    cache: Cache,
    store: Store,
}

impl Still {
    /// Opens the store, which no other process may have open, and makes it where none was begun.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        key::make_state_dir(&config.state_dir)?;
        let metrics = Metrics::new();
        let upstreams = open_upstreams(config, &[], &metrics)?;
        let store = Store::start(config.store.clone(), folder(config), metrics.clone())
            .context("start the store's threads")?;
        if let store::State::Degraded { reason, .. } = store.first_opened().await {
            store.close().await;
            anyhow::bail!("the store cannot be opened: {reason}");
        }
        let keys = OwnKeys::read(&config.state_dir)?;
        let shares = Shares::here();
        let cache_config = cache::Config {
            compression_level: compression_level(config),
            codec_memory_bytes: shares.codec_bytes,
            unpack_bytes_max: shares.unpack_bytes_max,
            store_dir: config.store_dir.clone(),
            own_keys: keys.public(),
            signer: signer_of_fetched(config.push.sign, &keys),
            scrub_every: None,
        };
        let cache = Cache::new(cache_config, store.clone(), upstreams.clone(), metrics.clone());
        let push = open_push(config, &keys, (&store, &cache), upstreams, &metrics);
        Ok(Self { push, cache, store })
    }

    /// Makes durable what waits, and closes.
    pub async fn close(self) {
        drop(self.push);
        within(CACHE_CLOSE_WAIT, "fills", self.cache.close()).await;
        within(STORE_CLOSE_WAIT, "store", self.store.close()).await;
    }
}
