//! What requests and the scout share: the caches that are there, the lines to them, and what the
//! cache said of itself.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::ClientConfig;
use tokio::sync::{Notify, watch};
use tracing::info;

use super::line::Line;
use super::place::Place;
use super::reach::{Reach, Verdict};
use crate::nix::{CacheInfo, StoreDir};

/// What `nix-cache-info` says until a cache said otherwise: before cache.nixos.org, which has 40.
const PRIORITY: u32 = 30;

/// One for the whole forwarder.
pub(super) struct Hub {
    known: Mutex<Known>,
    /// Counts what changed, for those who wait.
    changes: watch::Sender<u64>,
    /// Whether any cache is here.
    there: watch::Sender<bool>,
    /// Wakes the scout, who has something to do.
    pub(super) wake: Notify,
    store_dir: StoreDir,
}

struct Known {
    reach: Reach<Arc<Place>>,
    lines: HashMap<Arc<Place>, Arc<Line>>,
    info: Option<CacheInfo>,
    tls: ClientConfig,
}

impl Known {
    fn line_to(&mut self, place: &Arc<Place>) -> Arc<Line> {
        let line = self
            .lines
            .entry(Arc::clone(place))
            .or_insert_with(|| Arc::new(Line::new(Place::clone(place), &self.tls)));
        Arc::clone(line)
    }
}

impl Hub {
    /// Nobody is known. With `finding`, somebody may be found soon.
    pub(super) fn new(store_dir: StoreDir, tls: ClientConfig, finding: bool) -> Self {
        let reach = Reach::new(finding, Instant::now());
        let known = Known { reach, lines: HashMap::new(), info: None, tls };
        Self {
            known: Mutex::new(known),
            changes: watch::Sender::new(0),
            there: watch::Sender::new(false),
            wake: Notify::new(),
            store_dir,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any cache is here, now and from now on.
    pub(super) fn there(&self) -> watch::Receiver<bool> {
        self.there.subscribe()
    }

    fn changed(&self) {
        let is_there = self.known().reach.is_any_here();
        self.there.send_if_modified(|there| std::mem::replace(there, is_there) != is_there);
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        self.wake.notify_one();
    }

    /// The best cache that is here, but none of `but`; waits where waiting is due, until `deadline`
    /// where there is one, which is then waited for whatever the verdict.
    pub(super) async fn line(&self, but: &[Place], deadline: Option<Instant>) -> Option<Arc<Line>> {
        let but: Vec<Arc<Place>> = but.iter().cloned().map(Arc::new).collect();
        loop {
            let mut changes = self.changes.subscribe();
            let until = match self.ask(&but) {
                Verdict::Go(line) => return Some(line),
                Verdict::Wait(until) => deadline.map_or(until, |deadline| deadline.max(until)),
                Verdict::Away => deadline?,
            };
            if until <= Instant::now() {
                return None;
            }
            // Either way the verdict is asked for again; after `until` it waits no more.
            drop(tokio::time::timeout_at(until.into(), changes.changed()).await);
        }
    }

    fn ask(&self, but: &[Arc<Place>]) -> Verdict<Arc<Line>> {
        let now = Instant::now();
        let mut known = self.known();
        let verdict = known.reach.ask(but, now);
        // The question may be the one that lets probing go on.
        if !matches!(verdict, Verdict::Go(_)) {
            self.wake.notify_one();
        }
        match verdict {
            Verdict::Go(place) => Verdict::Go(known.line_to(&place)),
            Verdict::Wait(until) => Verdict::Wait(until),
            Verdict::Away => Verdict::Away,
        }
    }

    /// The caches that may be asked, the best first.
    pub(super) fn list(&self, places: Vec<Place>) {
        let places = places.into_iter().map(Arc::new).collect();
        self.known().reach.list(places, Instant::now());
        self.changed();
    }

    /// Looks for every cache now: an address or a link of this machine is another, or builds wait.
    /// Connections that are in use go on; the next questions go over new ones.
    pub(super) fn look(&self) {
        self.known().reach.look_again();
        self.changed();
    }

    /// Another CA is pinned from now on: what was found under the old one is found anew.
    pub(super) fn trust(&self, tls: ClientConfig) {
        let mut known = self.known();
        known.tls = tls;
        known.lines.clear();
        known.reach.look_again();
        drop(known);
        self.changed();
    }

    /// A line to each cache that is to be probed now, never used before.
    pub(super) fn due(&self) -> Vec<Arc<Line>> {
        let mut known = self.known();
        let places = known.reach.due(Instant::now());
        places.into_iter().map(|it| Arc::new(Line::new(Place::clone(&it), &known.tls))).collect()
    }

    /// When the next probe is due, if nothing happens before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.known().reach.next_due(Instant::now())
    }

    /// A probe over this line got an answer.
    pub(super) fn found(&self, line: &Arc<Line>, info: CacheInfo) {
        let place = Arc::new(line.place.clone());
        let mut known = self.known();
        if known.reach.probed(&place, true, Instant::now()) {
            let place = &line.place;
            info!(host = %place.host, port = place.port, tls = place.is_tls, "cache found");
        }
        known.lines.insert(place, Arc::clone(line));
        known.info = Some(info);
        drop(known);
        self.changed();
    }

    /// A probe of this place failed. Returns whether that is news.
    pub(super) fn missed(&self, place: &Place) -> bool {
        let place = Arc::new(place.clone());
        let mut known = self.known();
        let is_news = known.reach.probed(&place, false, Instant::now());
        known.lines.remove(&place);
        drop(known);
        self.changed();
        is_news
    }

    /// A request over this line heard nothing any more: all of its connections end, and nobody is
    /// sent there before it answered a probe.
    pub(super) fn lost(&self, line: &Line, why: &(dyn StdError + 'static)) {
        let was_good = line.lose();
        let place = Arc::new(line.place.clone());
        let mut known = self.known();
        let is_current =
            known.lines.get(&place).is_some_and(|it| std::ptr::eq(&raw const **it, line));
        if !is_current {
            return;
        }
        known.lines.remove(&place);
        let was_here = known.reach.lost(&place, Instant::now());
        drop(known);
        if was_good && was_here {
            info!(host = %line.place.host, port = line.place.port, error = why, "cache lost");
        }
        self.changed();
    }

    /// A request over this line broke: whoever is still there says so by a probe.
    pub(super) fn doubt(&self, line: &Line) {
        self.known().reach.doubt(&Arc::new(line.place.clone()));
        self.wake.notify_one();
    }

    /// What a cache of ours says of itself; as the cache said it last, else as one says by default.
    pub(super) fn cache_info(&self) -> CacheInfo {
        let known = self.known().info.clone();
        CacheInfo {
            store_dir: self.store_dir.clone(),
            want_mass_query: true,
            priority: Some(known.and_then(|info| info.priority).unwrap_or(PRIORITY)),
        }
    }

    /// Whether this is the store directory of the clients.
    pub(super) fn is_our_store_dir(&self, store_dir: &StoreDir) -> bool {
        *store_dir == self.store_dir
    }
}
