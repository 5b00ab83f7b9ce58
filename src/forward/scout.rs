//! Looks for the caches of the house: probes what is due, hears announcements, changed links and a
//! new `joined.toml`. Its own task; requests never wait for it by name.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Config;
use super::hub::Hub;
use super::line::{Line, ProbeError};
use super::links::Links;
use super::place::{Announced, House};
use super::trust::{self, Stamp, Trust};
use crate::mdns::{self, Found};
use crate::nix::{CacheInfo, StoreDir};
use crate::pinned;

/// How long a probe may take: longer than any question waits for it, so that a cache that is slow at
/// its first TLS handshake is found in the end.
const PROBE_WAIT: Duration = Duration::from_secs(3);

/// The scout sleeps no longer than this, whatever it waits for.
const REST_MAX: Duration = Duration::from_hours(1);

/// `joined.toml` is looked at no more often than this, and only when something happens.
const JOINED_EVERY: Duration = Duration::from_secs(2);

/// What the scout listens to.
pub(super) struct Ears {
    /// Announcements; none where mDNS is off or not to be had.
    pub(super) browser: Option<mdns::Browser>,
    /// Changes of links; none where the kernel does not tell.
    pub(super) links: Option<Links>,
}

/// Finds and loses caches for a hub.
pub(super) struct Scout {
    hub: Arc<Hub>,
    config: Config,
    house: House,
    joined: (Stamp, Instant),
    found: Option<watch::Receiver<Arc<[Found]>>>,
}

impl Scout {
    /// Nobody is probed yet.
    pub(super) fn new(hub: Arc<Hub>, config: Config, house: House) -> Self {
        let joined = (trust::stamp(&config.joined_file), Instant::now());
        Self { hub, config, house, joined, found: None }
    }

    /// Runs until `stop`.
    pub(super) async fn run(mut self, mut ears: Ears, stop: CancellationToken) {
        self.found = ears.browser.as_ref().map(mdns::Browser::found);
        self.list();
        let mut probes: JoinSet<Option<String>> = JoinSet::new();
        loop {
            for line in self.hub.due() {
                probes.spawn(probe(Arc::clone(&self.hub), line));
            }
            let next = self.hub.next_due();
            let rest = next.map_or(REST_MAX, |at| at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.hub.wake.notified() => self.join_again(),
                () = tokio::time::sleep(rest.min(REST_MAX)) => {}
                Some(ended) = probes.join_next() => doubt(ears.browser.as_ref(), ended),
                () = changed(&mut self.found) => self.list(),
                () = links_changed(&mut ears.links) => {
                    debug!("links changed");
                    self.hub.look();
                }
            }
        }
        probes.shutdown().await;
    }

    fn list(&mut self) {
        let found = self.found.as_mut().map(|found| Arc::clone(&found.borrow_and_update()));
        let announced: Vec<Announced> =
            found.iter().flat_map(|found| found.iter()).map(announced).collect();
        self.hub.list(self.house.places(&announced));
    }

    /// Takes up what `snowberry join` wrote meanwhile.
    fn join_again(&mut self) {
        if self.joined.1.elapsed() < JOINED_EVERY {
            return;
        }
        let stamp = trust::stamp(&self.config.joined_file);
        let is_another = stamp != self.joined.0;
        self.joined = (stamp, Instant::now());
        if is_another {
            let Trust { house, tls } = Trust::read(&self.config);
            self.house = house;
            self.hub.trust(tls);
            self.list();
        }
    }
}

fn announced(found: &Found) -> Announced {
    Announced {
        name: found.name.clone(),
        addresses: found.addresses.clone(),
        port: found.port,
        tls_port: found.tls_port,
        ca_sha256: found.ca_sha256,
        store_dir: found.store_dir.clone(),
    }
}

/// Until an announcement comes or goes.
async fn changed(found: &mut Option<watch::Receiver<Arc<[Found]>>>) {
    let Some(receiver) = found else { return std::future::pending().await };
    if receiver.changed().await.is_err() {
        // The browser ended: what it found stays.
        *found = None;
    }
}

async fn links_changed(links: &mut Option<Links>) {
    let Some(open) = links else { return std::future::pending().await };
    if let Err(error) = open.changed().await {
        warn!(error = &error as &dyn StdError, "changes of links are not heard any more");
        *links = None;
    }
}

/// An announcement that nobody stands behind any more is asked for again, so that the next one is
/// news.
fn doubt(browser: Option<&mdns::Browser>, ended: Result<Option<String>, JoinError>) {
    if let (Some(browser), Ok(Some(name))) = (browser, ended) {
        browser.doubt(&name);
    }
}

/// Returns the mDNS name of a cache that did not answer.
async fn probe(hub: Arc<Hub>, line: Arc<Line>) -> Option<String> {
    let place = &line.place;
    let why = match timeout(PROBE_WAIT, line.cache_info()).await {
        Ok(Ok(info)) if hub.is_our_store_dir(&info.store_dir) => {
            hub.found(&line, info);
            return None;
        }
        Ok(Ok(CacheInfo { store_dir, .. })) => Miss::StoreDir(store_dir),
        Ok(Err(error)) => Miss::Probe(error),
        Err(_) => Miss::Late,
    };
    line.lose();
    let (host, port) = (&place.host, place.port);
    if !hub.missed(place) {
        debug!(%host, port, error = &why as &dyn StdError, "cache still away");
    } else if pinned::other_ca(&why).is_some() || matches!(why, Miss::StoreDir(_)) {
        warn!(%host, port, error = &why as &dyn StdError, "this is not the cache of this machine");
    } else {
        info!(%host, port, error = &why as &dyn StdError, "cache away");
    }
    host.strip_suffix(".local").map(str::to_owned)
}

/// Why a cache is not used.
#[derive(Debug, thiserror::Error)]
enum Miss {
    #[error("no answer within {} s", PROBE_WAIT.as_secs())]
    Late,
    #[error("ask for its nix-cache-info")]
    Probe(#[source] ProbeError),
    #[error("its store directory is {0}")]
    StoreDir(StoreDir),
}
