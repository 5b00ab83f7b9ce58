//! Owns every task and opens every door: the order of the start, the signals, the order of the end.

mod admin;
mod announce;
mod key;
mod listen;
mod names;
mod reload;
mod room;
mod still;
mod tls;
mod watchdog;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::appliance::Notes;
use crate::cache::{self, Cache};
use crate::config::{self, Config, Sign};
use crate::http::{self, Admin, AdminSocket, Clients, Crowd, Listeners, PublicKeys, Site};
use crate::mdns::Announcer;
use crate::metrics::Metrics;
use crate::nix::SecretKey;
use crate::push::{self, Push, tokens::Tokens};
use crate::store::{self, Disk, Store};
use crate::systemd;
use crate::upstream::Upstream;

use listen::listen;
use reload::{Parts, Reloader, open_upstreams};
use room::Shares;
use watchdog::Watched;

pub use listen::near;

pub use key::{
    Imported, OwnKeys, had_own_key, import, make_state_dir, own_key_file, read_own_key, rotate,
};
pub use still::Still;

/// How long the first questions wait behind the listening sockets for the store to open, so that a
/// restart is not seen as a row of 404. Part of the 2.5 s that a narinfo has in all.
const STORE_OPEN_WAIT: Duration = Duration::from_millis(400);

/// The same at a start that has no key of its own yet, where the store is mostly begun from
/// nothing, with some writes to a slow card: a key is never made while the store is degraded.
const KEY_WAIT: Duration = Duration::from_secs(3);

/// What the cache may take to end its fills, once no client is left to wait for them.
const CACHE_CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What the push side may take to leave what it is sending: an upload to a bucket is cut and begun
/// again at the next start, so nothing is gained by a long wait.
const PUSH_CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What the store may take to make durable what waits: at most 64 MiB, at 4 MiB/s of a tired card.
const STORE_CLOSE_WAIT: Duration = Duration::from_secs(20);

/// Reads the configuration again, as the process was told to at its start.
pub type Reread = Box<dyn Fn() -> anyhow::Result<Config> + Send + Sync>;

/// What the process was given besides its configuration.
#[derive(Default)]
pub struct Given {
    /// How the configuration is read again; without it, it holds until the end.
    pub reread: Option<Reread>,
    /// The store's disk; `None` is the folder of the configuration. Tests give one that fails.
    pub disk: Option<Arc<dyn Disk>>,
    /// Sockets that listen already: [`systemd::inherited_sockets`].
    pub sockets: Vec<std::net::TcpListener>,
    /// Such sockets for TLS.
    pub tls_sockets: Vec<std::net::TcpListener>,
}

/// Runs the whole daemon until `stop` is cancelled, then ends it in order. `on_listening` hears the
/// addresses once connections are accepted by the system. Comes up whatever the store, the
/// upstreams or the network do; only a wrong configuration, a state directory that cannot be used
/// or an address that is taken are errors.
pub async fn run(
    config: Config,
    given: Given,
    stop: CancellationToken,
    on_listening: impl FnOnce(Vec<SocketAddr>),
) -> anyhow::Result<()> {
    let started = Instant::now();
    let metrics = Metrics::new();
    tell_config(&config);
    let shares = Shares::here();
    key::make_state_dir(&config.state_dir)?;
    // Before anything is opened: what is wrong in the configuration ends the start with code 78.
    let upstreams = open_upstreams(&config, &[], &metrics)?;
    // A signal that comes before anybody listens for it would end the process.
    let hangups = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let (plain, addresses) = listen(config.listen.as_deref(), given.sockets).await?;
    let plain_port = addresses.first().map(SocketAddr::port);
    let tls = tls::open(&config, given.tls_sockets).await?;
    let disk = given.disk.unwrap_or_else(|| folder(&config));
    let store = Store::start(store_config(&config), disk, metrics.clone())
        .context("start the store's threads")?;
    for address in &addresses {
        info!(addr = %address, "listening");
    }
    for address in tls.iter().flat_map(|tls| &tls.addresses) {
        info!(addr = %address, tls = true, "listening");
    }
    let tls_addresses = tls.as_ref().map(|tls| tls.addresses.clone()).unwrap_or_default();
    on_listening([addresses.as_slice(), &tls_addresses].concat());
    let keys = own_keys(&config, &store).await?;
    let cache = open_cache(&config, (&keys, &shares), &store, (upstreams.clone(), &metrics));
    let push = open_push(&config, &keys, (&store, &cache), upstreams.clone(), &metrics);
    let public_keys = PublicKeys::new(keys.public());
    let keeper = tls.as_ref().map(|tls| tls::Keeper::new(&tls.identity, &store, &config));
    let keeper = tls::first_look(keeper).await;
    let secured = tls.as_ref().and_then(tls::Tls::shown);
    let announcer = announce::start(&config, (&addresses, &tls_addresses), &keys, secured.as_ref());
    let keeper = keeper.map(|keeper| keeper.following(announcer.as_ref().map(Announcer::name)));
    let crowd = Crowd::new(shares.connections_max);
    let address = addresses.first().or(tls_addresses.first()).copied();
    let watched = Watched { address, crowd: crowd.clone(), store: store.clone() };
    let tls_listeners = tls.map(|tls| tls.listeners).unwrap_or_default();
    let listeners = Listeners { plain, tls: tls_listeners, crowd };
    let parts = Parts::new(&cache, &push, &public_keys, &metrics);
    let reloader = Arc::new(Reloader::new(given.reread, parts, (config.clone(), upstreams)));
    let clients = Clients::default();
    let admin = admin::open(&config.admin.socket, (&cache, &push, clients.clone()), &reloader);
    let site = Site {
        cache: cache.clone(),
        push: push.clone(),
        tokens: Arc::new(Tokens::new(config.push.tokens_file)),
        push_plain: config.push.plain,
        metrics,
        name: config.name,
        local_name: announcer.as_ref().filter(|it| it.is_speaking()).map(Announcer::name),
        public_keys,
        store_dir: config.store_dir,
        names: config.names,
        tls: secured,
        plain_port,
        allow: config.allow,
        clients,
        page_clients: config.page.clients,
        notes: config.appliance_notes,
        started,
    };
    let beside = Beside { admin, announcer, keeper, watched, reloads: (reloader, hangups) };
    let ended = serve(listeners, Arc::new(site), push, beside, stop).await;
    within(CACHE_CLOSE_WAIT, "fills", cache.close()).await;
    within(STORE_CLOSE_WAIT, "store", store.close()).await;
    info!("stopped");
    ended
}

/// Cancels `stop` at the first SIGTERM or SIGINT and returns at the second: who gets it back drops
/// everything as it is, which the store survives like a pulled plug.
pub async fn second_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    for _ in 0..2 {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if stop.is_cancelled() {
            break;
        }
        stop.cancel();
    }
    Ok(())
}

fn tell_config(config: &Config) {
    let file = config.file.as_deref().unwrap_or(Path::new("none"));
    let store = config.store.path.as_deref().unwrap_or(Path::new("none"));
    info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %file.display(),
        state_dir = %config.state_dir.display(),
        store = %store.display(),
        upstreams = config.upstreams.len(),
        "starting"
    );
}

fn compression_level(config: &Config) -> i32 {
    config.store.compression_level.unwrap_or(config::DEFAULT_COMPRESSION_LEVEL)
}

/// Who signs what was merely fetched: nobody, unless that is configured.
fn signer_of_fetched(sign: Sign, keys: &OwnKeys) -> Option<SecretKey> {
    match sign {
        Sign::Pushed => None,
        Sign::Verified => keys.secret.clone(),
    }
}

/// The read side, which reads what is stored again from time to time.
fn open_cache(
    config: &Config,
    (keys, shares): (&OwnKeys, &Shares),
    store: &Store,
    (upstreams, metrics): (Vec<Upstream>, &Metrics),
) -> Cache {
    let cache_config = cache::Config {
        compression_level: compression_level(config),
        codec_memory_bytes: shares.codec_bytes,
        unpack_bytes_max: shares.unpack_bytes_max,
        store_dir: config.store_dir.clone(),
        own_keys: keys.public(),
        signer: signer_of_fetched(config.push.sign, keys),
        scrub_every: config.scrub.every,
    };
    let cache = Cache::new(cache_config, store.clone(), upstreams, metrics.clone());
    cache.keep_scrubbing();
    cache
}

/// The write side: upstreams are where it carries to, or who is asked whether it is theirs already.
fn open_push(
    config: &Config,
    keys: &OwnKeys,
    (store, cache): (&Store, &Cache),
    upstreams: Vec<Upstream>,
    metrics: &Metrics,
) -> Push {
    let targets_and_others = upstreams.into_iter().partition(Upstream::is_target);
    let push_config = push::Config {
        store_dir: config.store_dir.clone(),
        compression_level: compression_level(config),
        nar_size_max: config.push.nar_size_max.0,
        everything: config.push.everything,
        limit: config.push.limit.map(|limit| limit.0),
    };
    let (key, store, cache) = (keys.secret.clone(), store.clone(), cache.clone());
    Push::new(push_config, key, (store, cache), targets_and_others, metrics.clone())
}

/// An appliance that runs on trial must be able to go back: the store keeps its format.
fn store_config(config: &Config) -> store::Config {
    let notes = Notes::read(&config.appliance_notes);
    let holds_format = notes.and_then(|notes| notes.update).is_some_and(|update| update.trial);
    if holds_format {
        info!("this version runs on trial, a store of an older format is left as it is");
    }
    store::Config { holds_format, ..config.store.clone() }
}

/// The folder of the configuration. Made here only where no store was ever begun: a folder that is
/// missing later is a disk that is missing, and a store must not be begun beside it.
fn folder(config: &Config) -> Arc<dyn Disk> {
    let path = config.store.path.clone().unwrap_or_else(|| config.state_dir.join("store"));
    let was_begun = config.store.marker.as_deref().is_some_and(Path::exists);
    if !was_begun && let Err(error) = key::make_private_dir(&path) {
        warn!(error = &error as &dyn std::error::Error, path = %path.display(),
            "cannot make the store's folder");
    }
    Arc::new(store::disk::Folder { path })
}

/// The keys of this cache: as they are, or made at the first start, once the store is open. Without
/// one that signs when there was one that is gone, or while the store is degraded.
async fn own_keys(config: &Config, store: &Store) -> anyhow::Result<OwnKeys> {
    let keys = OwnKeys::read(&config.state_dir)?;
    let wait = if keys.secret.is_some() { STORE_OPEN_WAIT } else { KEY_WAIT };
    let opened = tokio::time::timeout(wait, store.first_opened()).await;
    if keys.secret.is_some() {
        key::remember_key(&config.state_dir)?;
        return Ok(keys);
    }
    if key::had_own_key(&config.state_dir) {
        warn!(
            state_dir = %config.state_dir.display(),
            "the key of this cache is gone, restore it from its backup: no new one is made"
        );
        return Ok(keys);
    }
    if opened != Ok(store::State::Open) {
        warn!("no key is made while the store is not open, the next start will try again");
        return Ok(keys);
    }
    let made = key::make_own_key(&config.state_dir, &config.name)?;
    info!(key = made.public().name(), "made the key of this cache");
    Ok(OwnKeys { secret: Some(made), ..keys })
}

/// What runs beside the cache itself, and without which it would go on.
struct Beside {
    admin: Option<(AdminSocket, Arc<Admin>)>,
    announcer: Option<Announcer>,
    keeper: Option<tls::Keeper>,
    watched: Watched,
    reloads: (Arc<Reloader>, Signal),
}

/// Serves, pushes, watches, and returns when `stop` was cancelled and all is drained, or when a
/// task ended that should not. Uploads may go on while clients are drained: the push side ends last.
async fn serve(
    listeners: Listeners,
    site: Arc<Site>,
    push: Push,
    beside: Beside,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let drained = stop.clone();
    tasks
        .spawn(async move { http::serve(listeners, site, drained).await.context("serve clients") });
    if let Some(allowed) = systemd::watchdog_allowed() {
        tasks.spawn(watchdog::run(beside.watched, allowed, stop.clone()));
    }
    let (reloader, hangups) = beside.reloads;
    tasks.spawn(reload::at_hangups(reloader, hangups, stop.clone()));
    if let Some(announcer) = beside.announcer {
        let stop = stop.clone();
        tasks.spawn(async move {
            stop.cancelled().await;
            announcer.stop().await;
            anyhow::Ok(())
        });
    }
    if let Some((socket, admin)) = beside.admin {
        let stop = stop.clone();
        tasks.spawn(async move {
            socket.serve(admin, stop).await;
            anyhow::Ok(())
        });
    }
    if let Some(keeper) = beside.keeper {
        tasks.spawn(keeper.run(stop.clone()));
    }
    let (mut pushing, stop_pushing) = (JoinSet::new(), CancellationToken::new());
    let until = stop_pushing.clone();
    pushing.spawn(async move {
        push.run(until).await;
        anyhow::Ok(())
    });
    systemd::ready();
    info!("ready");
    let told = tokio::select! {
        // In this order: what ends because of `stop` may have ended before this is looked at.
        biased;
        () = stop.cancelled() => Ok(()),
        ended = tasks.join_next() => early_end(ended),
        ended = pushing.join_next() => early_end(ended),
    };
    if let Err(error) = &told {
        error!(error = %format_args!("{error:#}"), "a task failed, the daemon ends");
    }
    info!("stopping");
    systemd::stopping();
    stop.cancel();
    let drained = join_all(&mut tasks).await;
    stop_pushing.cancel();
    within(PUSH_CLOSE_WAIT, "pushes", async {
        if let Err(error) = join_all(&mut pushing).await {
            error!(error = %format_args!("{error:#}"), "the push side failed at the end");
        }
    })
    .await;
    // What did not end in time is cut: its rows are in the store, and it goes on at the next start.
    pushing.shutdown().await;
    told.and(drained)
}

async fn join_all(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(ended.context("a task panicked").and_then(|result| result));
    }
    outcome
}

/// No task ends of itself before `stop`: whatever it says is a failure then.
fn early_end(
    ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>,
) -> anyhow::Result<()> {
    match ended {
        Some(Ok(Ok(()))) | None => Err(anyhow::anyhow!("a task ended before its time")),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(error).context("a task panicked"),
    }
}

async fn within(wait: Duration, what: &'static str, closing: impl Future<Output = ()>) {
    if tokio::time::timeout(wait, closing).await.is_err() {
        warn!(what, wait_s = wait.as_secs(), "did not close in time, left as it is");
    }
}

#[cfg(test)]
mod tests;
