//! The client's side: a loopback substituter that passes on what Nix asks to the cache of this
//! house, and answers "not here" at once where there is none. Keeps nothing on a disk; knows
//! neither store nor cache.

mod drain;
mod fetch;
mod heads;
mod hub;
pub mod joined;
mod line;
mod links;
mod place;
mod reach;
mod reply;
mod scout;
mod server;
mod stream;
mod trust;
mod upload;
mod wire;

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::{Method, Request};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::mdns;
use crate::nix::StoreDir;
use crate::{spool, systemd};

pub use joined::{Joined, JoinedError};
pub use place::Fixed;

use hub::Hub;
use links::Links;
use reply::{Refusal, Reply};
use scout::{Ears, Scout};
use trust::Trust;

/// Where it listens unless it is configured or handed sockets.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8501";

/// The checked configuration of the forwarder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen, when configured; else inherited sockets, else [`DEFAULT_LISTEN`].
    pub listen: Option<Vec<SocketAddr>>,
    /// The cache, when it is not to be found.
    pub cache: Option<Fixed>,
    /// The pinned CA; else that of `joined.toml`.
    pub ca_file: Option<PathBuf>,
    /// Plain HTTP, with any cache that announces itself.
    pub plain: bool,
    /// What `snowberry join` wrote.
    pub joined_file: PathBuf,
    /// Nix's store directory.
    pub store_dir: StoreDir,
    /// How mDNS is spoken.
    pub mdns: mdns::Config,
    /// Where this machine's builds wait.
    pub spool: spool::Config,
}

/// Why there is no forwarder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address is taken, or not of this machine.
    #[error(
        "listen on {address} (is another server there? choose one: \
         --set 'forward.listen=[\"127.0.0.1:8502\"]')"
    )]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A socket that was handed over cannot be used.
    #[error("take over an inherited socket")]
    Inherited(#[source] io::Error),
    /// A task failed.
    #[error("serve clients")]
    Serve(#[source] io::Error),
}

/// Runs until `stop` is cancelled, then drains. Comes up whatever the network does, with nothing
/// configured and nothing joined too.
pub async fn run(
    config: Config,
    handed: Vec<std::net::TcpListener>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (listeners, addresses) = listen(config.listen.as_deref(), handed).await?;
    let Trust { house, tls } = Trust::read(&config);
    let ears = ears(&config);
    let finding = ears.browser.is_some() && house.may_find();
    let hub = Arc::new(Hub::new(config.store_dir.clone(), tls, finding));
    let spool = config.spool.clone();
    let scout = Scout::new(Arc::clone(&hub), config, house);
    let stop_behind = CancellationToken::new();
    let mut behind = JoinSet::new();
    behind.spawn(scout.run(ears, stop_behind.clone()));
    behind.spawn(drain::run(Arc::clone(&hub), spool, addresses, stop_behind.clone()));
    if let Some(interval) = systemd::watchdog_interval() {
        behind.spawn(watchdog(interval, stop_behind.clone()));
    }
    systemd::ready();
    info!("ready");
    let desk = Arc::clone(&hub);
    let answer = move |request| answer(Arc::clone(&desk), request);
    let stopping = stop.clone();
    let mut serving = JoinSet::new();
    serving.spawn(server::serve(listeners, answer, stop));
    let ended = tokio::select! {
        biased;
        () = stopping.cancelled() => {
            info!("stopping");
            systemd::stopping();
            serving.join_next().await
        }
        ended = serving.join_next() => ended,
    };
    stop_behind.cancel();
    while behind.join_next().await.is_some() {}
    info!("stopped");
    match ended {
        Some(Ok(served)) => served.map_err(Error::Serve),
        Some(Err(panicked)) => Err(Error::Serve(io::Error::other(panicked))),
        None => Ok(()),
    }
}

/// Runs on the thread that answers clients: when that stands still, so does this, and systemd starts
/// the service again.
async fn watchdog(interval: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(interval);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        systemd::alive();
    }
}

/// mDNS and the kernel's word on links, as far as they can be had. A cache that is configured by
/// another name than one of mDNS needs no mDNS.
fn ears(config: &Config) -> Ears {
    let is_mdns_name = |cache: &Fixed| cache.host.to_ascii_lowercase().ends_with(".local");
    let wanted = config.mdns.enabled && config.cache.as_ref().is_none_or(is_mdns_name);
    let browser = wanted.then(|| mdns::Browser::start(&config.mdns)).and_then(|started| {
        started
            .inspect_err(|error| warn!(error = error as &dyn StdError, "mdns cannot be had"))
            .ok()
    });
    let links = Links::open()
        .inspect_err(|error| debug!(error = error as &dyn StdError, "links cannot be watched"));
    Ears { browser, links: links.ok() }
}

/// The sockets that were handed over and the configured addresses; the default one when there is
/// neither. An address that was handed over is not bound again.
async fn listen(
    configured: Option<&[SocketAddr]>,
    handed: Vec<std::net::TcpListener>,
) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), Error> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for socket in handed {
        socket.set_nonblocking(true).map_err(Error::Inherited)?;
        let listener = TcpListener::from_std(socket).map_err(Error::Inherited)?;
        addresses.push(listener.local_addr().map_err(Error::Inherited)?);
        listeners.push(listener);
    }
    let default = [DEFAULT_LISTEN.parse().expect("a constant that is an address")];
    let wanted = match configured {
        Some(configured) => configured,
        None if listeners.is_empty() => default.as_slice(),
        None => &[],
    };
    for address in wanted {
        if address.port() != 0 && addresses.contains(address) {
            continue;
        }
        let failed = |source| Error::Listen { address: *address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        addresses.push(listener.local_addr().map_err(failed)?);
        listeners.push(listener);
    }
    for address in &addresses {
        info!(addr = %address, "listening");
    }
    Ok((listeners, addresses))
}

/// One request, one answer.
async fn answer(hub: Arc<Hub>, request: Request<Incoming>) -> hyper::Response<reply::Body> {
    let began = Instant::now();
    let is_ours = heads::is_loopback(&request);
    let (head, body) = request.into_parts();
    let is_read = matches!(head.method, Method::GET | Method::HEAD);
    let reply = if !is_ours {
        Reply::Refused { why: Refusal::Host, drained: is_read }
    } else if is_read && matches!(head.uri.path(), "/nix-cache-info" | "/push/nix-cache-info") {
        Reply::CacheInfo(hub.cache_info())
    } else if is_read {
        fetch::answer(&hub, &head).await
    } else if head.method == Method::PUT {
        Box::pin(upload::answer(&hub, &head, body)).await
    } else {
        Reply::Absent
    };
    let response = reply.into_response();
    let took_us = began.elapsed().as_micros();
    let (method, path, status) = (&head.method, head.uri.path(), response.status());
    debug!(%method, path, %status, took_us, "answered");
    response
}

#[cfg(test)]
mod tests;
