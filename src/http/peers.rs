//! What each peer gets: so many connections, so many requests a second. One machine of the house can
//! neither hold all places nor keep the cache from answering the others; one that runs away slows
//! itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

/// Requests a second that a peer gets for ever: twice what the quickest Nix client asks, a thirtieth
/// of what a Pi answers.
const REQUESTS_A_SECOND: u32 = 1000;

/// What it gets besides when it was quiet before: the narinfos and NARs of the largest closures.
const BURST: Duration = Duration::from_secs(20);

/// Connections and requests by peer.
#[derive(Debug)]
pub(super) struct Peers {
    peers: Mutex<HashMap<IpAddr, Peer>>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Peer {
    connections: usize,
    pace: Arc<Mutex<Pace>>,
}

/// When the requests that were let in are paid for. Times are since any fixed point.
#[derive(Debug, Default)]
struct Pace {
    paid_at: Duration,
    /// Whether it was told that it is slowed, since it was last quiet.
    is_told: bool,
}

impl Pace {
    /// How long a request that comes now must wait.
    fn take(&mut self, now: Duration) -> Duration {
        let begins = self.paid_at.max(now);
        self.is_told &= begins > now;
        self.paid_at = begins + Duration::from_secs(1) / REQUESTS_A_SECOND;
        begins.saturating_sub(now + BURST)
    }
}

/// A place that a connection of a peer takes while this lives.
#[derive(Debug)]
pub(super) struct Place {
    peers: Arc<Peers>,
    peer: IpAddr,
    pace: Arc<Mutex<Pace>>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { peers: Mutex::default(), began: Instant::now() }
    }
}

impl Peers {
    /// A place, unless the peer has `count_max` of them. Loopback is not bound: a reverse proxy
    /// there stands for all machines of the house.
    pub(super) fn place(self: &Arc<Self>, peer: IpAddr, count_max: usize) -> Option<Place> {
        let peer = peer.to_canonical();
        let mut peers = self.peers();
        let known = peers.entry(peer).or_default();
        if known.connections >= count_max && !peer.is_loopback() {
            return None;
        }
        known.connections += 1;
        let pace = Arc::clone(&known.pace);
        drop(peers);
        Some(Place { peers: Arc::clone(self), peer, pace })
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<IpAddr, Peer>> {
        // Each change is a single step.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// How long a request of this peer must wait for its turn. At most as long as all that its
    /// connections can ask at once takes: under a second.
    pub(super) fn wait(&self) -> Duration {
        if self.peer.is_loopback() {
            return Duration::ZERO;
        }
        let now = self.peers.began.elapsed();
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = pace.take(now);
        if !wait.is_zero() && !std::mem::replace(&mut pace.is_told, true) {
            info!(peer = %self.peer, "a client asks more than its share, and waits for its turns");
        }
        wait
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut known) = self.peers.peers().entry(self.peer) {
            known.get_mut().connections -= 1;
            if known.get().connections == 0 {
                known.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_places_and_no_more_and_loopback_any() {
        let peers = Arc::new(Peers::default());
        let [far, mapped, other, here] = ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "::1"]
            .map(|text| text.parse::<IpAddr>().expect("an address"));
        let first = peers.place(far, 2);
        let second = peers.place(mapped, 2);
        assert!(first.is_some() && second.is_some());
        assert!(peers.place(far, 2).is_none(), "the third, whichever way it is written");
        assert!(peers.place(other, 2).is_some());
        let local: Vec<_> = (0..5).map(|_| peers.place(here, 2)).collect();
        assert!(local.iter().all(Option::is_some));
        drop(second);
        let again = peers.place(far, 2);
        assert!(again.is_some());
        drop((first, again, local));
        assert!(peers.peers().is_empty(), "nothing is remembered of who left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_runs_away_slows_itself_and_nobody_else() {
        let peers = Arc::new(Peers::default());
        let [runaway, other, here] = ["192.0.2.1", "192.0.2.2", "127.0.0.1"]
            .map(|text| peers.place(text.parse().expect("an address"), 8).expect("a place"));
        let again = peers.place("192.0.2.1".parse().expect("an address"), 8).expect("a place");
        let burst = REQUESTS_A_SECOND * u32::try_from(BURST.as_secs()).expect("small");
        for n in 0..burst {
            let place = if n % 2 == 0 { &runaway } else { &again };
            assert_eq!(place.wait(), Duration::ZERO, "request {n}");
        }
        let waits: Vec<Duration> = (0..500).map(|_| runaway.wait()).collect();
        assert!(waits.is_sorted());
        assert!(waits[499] > Duration::from_millis(490) && waits[499] < Duration::from_millis(510));
        for place in [&other, &here] {
            assert_eq!(place.wait(), Duration::ZERO);
        }
        // In the long run it gets its share, and what it was quiet for.
        tokio::time::advance(BURST + Duration::from_secs(1)).await;
        assert_eq!(again.wait(), Duration::ZERO);
        for _ in 0..burst * 2 {
            here.wait();
        }
        assert_eq!(here.wait(), Duration::ZERO, "loopback stands for others");
    }
}
