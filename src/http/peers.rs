//! How many connections each peer has: one machine of the house cannot hold all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections by peer.
#[derive(Debug, Default)]
pub(super) struct Peers {
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// A place that a connection of a peer takes while this lives.
#[derive(Debug)]
pub(super) struct Place {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl Peers {
    /// A place, unless the peer has `count_max` of them. Loopback is not bound: a reverse proxy
    /// there stands for all machines of the house.
    pub(super) fn place(self: &Arc<Self>, peer: IpAddr, count_max: usize) -> Option<Place> {
        let peer = peer.to_canonical();
        let mut counts = self.counts();
        let count = counts.entry(peer).or_default();
        if *count >= count_max && !peer.is_loopback() {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Place { peers: Arc::clone(self), peer })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Each change is a single step.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.peers.counts().entry(self.peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
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
        assert!(peers.counts().is_empty(), "nothing is remembered of who left");
    }
}
