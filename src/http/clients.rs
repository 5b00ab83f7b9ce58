//! Who asked for what lately. In memory only, bounded, and shown to whoever may open the admin
//! socket, or to the house when it is configured so.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::words::{bytes, span};
use crate::metrics::Ended;

/// Clients that are remembered: the machines of a large house. The one that was silent for longest
/// makes room.
const CLIENTS_MAX: usize = 64;

/// NARs that are remembered: an evening's update is in it.
const LATEST_MAX: usize = 200;

/// Longest name of a path that is kept: Nix allows 211.
const NAME_LEN_MAX: usize = 211;

/// Who asked, and what for. A cheap clone.
#[derive(Clone, Default)]
pub struct Clients(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    clients: HashMap<IpAddr, Client>,
    latest: VecDeque<Asked>,
}

#[derive(Clone, Copy)]
struct Client {
    hits: u64,
    misses: u64,
    absent: u64,
    nar_bytes: u64,
    last: Instant,
}

struct Asked {
    client: IpAddr,
    nar: Nar,
    ended: Ended,
    at: Instant,
}

/// A NAR that was asked for.
pub(super) struct Nar {
    /// The name of its path, or its hash where the name is not at hand.
    pub(super) name: String,
    /// Bytes as served, or of the NAR itself, where that is known.
    pub(super) size_bytes: Option<u64>,
}

/// One client, as it is shown.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct ClientShown {
    pub(super) client: IpAddr,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) absent: u64,
    pub(super) nar_bytes: u64,
    pub(super) last_s: u64,
}

/// One NAR, as it is shown.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct AskedShown {
    pub(super) name: String,
    pub(super) client: IpAddr,
    pub(super) size_bytes: Option<u64>,
    pub(super) outcome: &'static str,
    pub(super) ago_s: u64,
}

impl ClientShown {
    /// For people.
    pub(super) fn nars(&self) -> String {
        bytes(self.nar_bytes)
    }

    pub(super) fn last(&self) -> String {
        span(self.last_s)
    }
}

impl AskedShown {
    /// For people.
    pub(super) fn size(&self) -> String {
        self.size_bytes.map(bytes).unwrap_or_default()
    }

    pub(super) fn when(&self) -> String {
        span(self.ago_s)
    }
}

/// All of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct ClientsShown {
    pub(super) clients: Vec<ClientShown>,
    pub(super) latest: Vec<AskedShown>,
}

impl Clients {
    fn book(&self) -> MutexGuard<'_, Book> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client was answered; `nar`: one that it reads.
    pub(super) fn note(&self, client: IpAddr, ended: Ended, nar: Option<Nar>, at: Instant) {
        let client = client.to_canonical();
        let mut book = self.book();
        if book.clients.len() >= CLIENTS_MAX && !book.clients.contains_key(&client) {
            let silent = book.clients.iter().min_by_key(|(_, it)| it.last).map(|(it, _)| *it);
            silent.and_then(|silent| book.clients.remove(&silent));
        }
        let new = Client { hits: 0, misses: 0, absent: 0, nar_bytes: 0, last: at };
        let entry = book.clients.entry(client).or_insert(new);
        entry.last = at;
        match ended {
            Ended::Hit => entry.hits += 1,
            Ended::Miss => entry.misses += 1,
            Ended::Absent => entry.absent += 1,
            Ended::Refused => {}
        }
        let Some(mut nar) = nar else { return };
        entry.nar_bytes = entry.nar_bytes.saturating_add(nar.size_bytes.unwrap_or(0));
        nar.name.truncate(nar.name.floor_char_boundary(NAME_LEN_MAX));
        if book.latest.len() >= LATEST_MAX {
            book.latest.pop_back();
        }
        book.latest.push_front(Asked { client, nar, ended, at });
    }

    /// Those who asked last first.
    pub(super) fn shown(&self, now: Instant) -> ClientsShown {
        let book = self.book();
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        let shown = |(client, it): (&IpAddr, &Client)| ClientShown {
            client: *client,
            hits: it.hits,
            misses: it.misses,
            absent: it.absent,
            nar_bytes: it.nar_bytes,
            last_s: ago(it.last),
        };
        let mut clients: Vec<_> = book.clients.iter().map(shown).collect();
        clients.sort_by_key(|client| (client.last_s, client.client));
        let latest = book.latest.iter().map(|asked| AskedShown {
            name: asked.nar.name.clone(),
            client: asked.client,
            size_bytes: asked.nar.size_bytes,
            outcome: match asked.ended {
                Ended::Hit => "hit",
                Ended::Miss => "miss",
                Ended::Absent => "absent",
                Ended::Refused => "refused",
            },
            ago_s: ago(asked.at),
        });
        ClientsShown { clients, latest: latest.collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    fn nar(name: &str) -> Nar {
        Nar { name: name.to_owned(), size_bytes: Some(10) }
    }

    #[test]
    fn who_asked_and_what_for_is_shown_the_last_first() {
        let (clients, at) = (Clients::default(), Instant::now());
        let [ada, bob] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        clients.note(ada, Ended::Hit, Some(nar("hello")), at);
        clients.note(
            "::ffff:10.0.0.2".parse().unwrap(),
            Ended::Miss,
            Some(nar("gcc")),
            at + Duration::from_secs(5),
        );
        clients.note(bob, Ended::Absent, None, at + Duration::from_secs(6));
        let shown = serde_json::to_value(clients.shown(at + Duration::from_secs(10))).unwrap();
        let wanted = serde_json::json!({
            "clients": [
                {"client": "10.0.0.2", "hits": 0, "misses": 1, "absent": 1, "nar_bytes": 10, "last_s": 4},
                {"client": "10.0.0.1", "hits": 1, "misses": 0, "absent": 0, "nar_bytes": 10, "last_s": 10},
            ],
            "latest": [
                {"name": "gcc", "client": "10.0.0.2", "size_bytes": 10, "outcome": "miss", "ago_s": 5},
                {"name": "hello", "client": "10.0.0.1", "size_bytes": 10, "outcome": "hit", "ago_s": 10},
            ],
        });
        assert_eq!(shown, wanted);
    }

    #[test]
    fn the_book_does_not_grow() {
        let (clients, at) = (Clients::default(), Instant::now());
        for number in 0..1000_u32 {
            let client = IpAddr::from(Ipv4Addr::from_bits(number));
            let at = at + Duration::from_secs(u64::from(number));
            clients.note(client, Ended::Hit, Some(nar(&"\u{e9}".repeat(500))), at);
        }
        let shown = clients.shown(at);
        assert_eq!((shown.clients.len(), shown.latest.len()), (CLIENTS_MAX, LATEST_MAX));
        assert!(shown.latest.iter().all(|asked| asked.name.len() <= NAME_LEN_MAX));
        assert_eq!(shown.clients.iter().map(|it| it.client).min(), Some([0, 0, 3, 168].into()));
    }
}
