//! What may change while the cache runs: upstreams, their keys and bounds, the cache's own keys, the
//! bound of the push side. The configuration is read again, at SIGHUP or on command; where anything
//! in it is wrong, nothing changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{OwnKeys, Reread, signer_of_fetched};
use crate::cache::Cache;
use crate::config::{self, Config, Sign};
use crate::http::{PublicKeys, Reloaded};
use crate::metrics::Metrics;
use crate::nix::PublicKey;
use crate::push::Push;
use crate::upstream::{self, Upstream};

/// Takes another configuration.
pub(super) struct Reloader {
    reread: Option<Reread>,
    parts: Parts,
    holds: Mutex<Holds>,
}

/// What it changes.
pub(super) struct Parts {
    cache: Cache,
    push: Push,
    public_keys: PublicKeys,
    metrics: Metrics,
}

impl Parts {
    pub(super) fn new(
        cache: &Cache,
        push: &Push,
        public_keys: &PublicKeys,
        metrics: &Metrics,
    ) -> Self {
        let (cache, push) = (cache.clone(), push.clone());
        Self { cache, push, public_keys: public_keys.clone(), metrics: metrics.clone() }
    }
}

/// What holds now.
struct Holds {
    config: Config,
    upstreams: Vec<Upstream>,
}

impl Reloader {
    pub(super) fn new(
        reread: Option<Reread>,
        parts: Parts,
        (config, upstreams): (Config, Vec<Upstream>),
    ) -> Self {
        Self { reread, parts, holds: Mutex::new(Holds { config, upstreams }) }
    }

    fn holds(&self) -> MutexGuard<'_, Holds> {
        // Each change of it is the last step of a reload.
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the configuration and the cache's own keys again and takes what may change. An error
    /// says all that is wrong. Blocks on files; runs where a runtime is.
    fn reload(&self) -> Result<Reloaded, String> {
        let Some(reread) = &self.reread else {
            return Err("this cache was started without a configuration to be read again".into());
        };
        let mut holds = self.holds();
        let said = |error: anyhow::Error| format!("{error:#}");
        let new = reread().map_err(said)?;
        let upstreams = self.upstreams(&holds, &new).map_err(said)?;
        let keys = OwnKeys::read(&holds.config.state_dir).map_err(said)?;
        let needs_restart = needs_restart(&holds.config, &new);
        let mut changed = Vec::new();
        if new.upstreams != holds.config.upstreams {
            self.replace(&holds.upstreams, &upstreams);
            changed.push("upstream");
        }
        if new.push.limit != holds.config.push.limit {
            self.parts.push.set_limit(new.push.limit.map(|limit| limit.0));
            changed.push("push.limit");
        }
        if keys.secret.is_some() && *keys.public() != *self.parts.public_keys.all() {
            self.take_keys(holds.config.push.sign, keys);
            changed.push("the cache's own keys");
        }
        // What needs a restart is told again at each reload, until there was one.
        holds.config.upstreams = new.upstreams;
        holds.config.push.limit = new.push.limit;
        holds.upstreams = upstreams;
        Ok(Reloaded { changed, needs_restart })
    }

    /// Those that are configured as before stay the same ones, with what is known of them.
    fn upstreams(&self, holds: &Holds, new: &Config) -> anyhow::Result<Vec<Upstream>> {
        let known: Vec<_> = holds.config.upstreams.iter().zip(&holds.upstreams).collect();
        open_upstreams(new, &known, &self.parts.metrics)
    }

    fn replace(&self, before: &[Upstream], upstreams: &[Upstream]) {
        let Parts { cache, push, metrics, .. } = &self.parts;
        cache.set_upstreams(upstreams.to_vec());
        let (targets, others) = upstreams.iter().cloned().partition(Upstream::is_target);
        push.set_upstreams(targets, others);
        for gone in before.iter().filter(|it| upstreams.iter().all(|new| new.url() != it.url())) {
            metrics.upstream_gone(gone.url());
        }
    }

    /// Reads the cache's own keys again: those that hold from then on, or why it stays as it was.
    pub(super) fn reload_keys(&self) -> Result<Vec<PublicKey>, String> {
        let holds = self.holds();
        let keys = OwnKeys::read(&holds.config.state_dir).map_err(|error| format!("{error:#}"))?;
        if keys.secret.is_none() {
            return Err("the key of this cache is gone: restore it from its backup".to_owned());
        }
        Ok(self.take_keys(holds.config.push.sign, keys))
    }

    fn take_keys(&self, sign: Sign, keys: OwnKeys) -> Vec<PublicKey> {
        let Parts { cache, push, public_keys, .. } = &self.parts;
        let (public, signer) = (keys.public(), signer_of_fetched(sign, &keys));
        // Trusted before it signs.
        cache.set_own_keys(public.clone(), signer);
        public_keys.set(public.clone());
        if let Some(secret) = keys.secret {
            push.set_own_key(secret);
        }
        public
    }

    /// Reloads and tells the log of it.
    pub(super) fn tell(&self) -> Result<Reloaded, String> {
        let reloaded = self.reload();
        match &reloaded {
            Ok(reloaded) => {
                info!(changed = ?reloaded.changed, "read the configuration again");
                if !reloaded.needs_restart.is_empty() {
                    let keys = &reloaded.needs_restart;
                    warn!(?keys, "these changes of the configuration need a restart");
                }
            }
            Err(wrong) => error!(%wrong, "the configuration is wrong, nothing was changed"),
        }
        reloaded
    }
}

/// In the order of the configuration: it is the order in which they are asked.
/// One that is `known` with the same configuration stays as it is.
pub(super) fn open_upstreams(
    config: &Config,
    known: &[(&upstream::Config, &Upstream)],
    metrics: &Metrics,
) -> anyhow::Result<Vec<Upstream>> {
    let mut upstreams = Vec::new();
    let mut problems = Vec::new();
    for upstream in &config.upstreams {
        if let Some((_, known)) = known.iter().find(|(before, _)| *before == upstream) {
            upstreams.push((*known).clone());
            continue;
        }
        match Upstream::new(upstream, &config.store_dir, metrics) {
            Ok(upstream) => upstreams.push(upstream),
            Err(error) => problems.push(config::upstream_problem(&error)),
        }
    }
    if problems.is_empty() {
        Ok(upstreams)
    } else {
        Err(config::Error::Wrong(config::Problems(problems)).into())
    }
}

/// The tables and keys that differ and are read at the start only.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    // Named one by one, so that a new field has to be thought of here.
    let Config {
        file: _,
        listen,
        name,
        names,
        allow,
        state_dir,
        store_dir,
        store,
        scrub,
        upstreams: _,
        push,
        admin,
        mdns,
        spool: _,
        tls,
        page,
        forward: _,
        update: _,
        appliance_notes,
    } = new;
    let push_differs = crate::config::Push { limit: old.push.limit, ..push.clone() } != old.push;
    [
        ("listen", *listen != old.listen),
        ("name", *name != old.name),
        ("names", *names != old.names),
        ("allow", *allow != old.allow),
        ("state-dir", *state_dir != old.state_dir),
        ("store-dir", *store_dir != old.store_dir),
        ("store", *store != old.store),
        ("scrub", *scrub != old.scrub),
        ("push", push_differs),
        ("admin", *admin != old.admin),
        ("mdns", *mdns != old.mdns),
        ("tls", *tls != old.tls),
        ("page", *page != old.page),
        ("appliance", *appliance_notes != old.appliance_notes),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

/// Reloads at each SIGHUP, until `stop`.
pub(super) async fn at_hangups(
    reloader: Arc<Reloader>,
    mut hangups: Signal,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    while stop.run_until_cancelled(hangups.recv()).await.flatten().is_some() {
        let reloader = Arc::clone(&reloader);
        // Files are read. How it went is in the log.
        drop(tokio::task::spawn_blocking(move || drop(reloader.tell())).await);
    }
    stop.cancelled().await;
    Ok(())
}
