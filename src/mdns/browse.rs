//! Listens for the caches of the house. What is heard may be said by anybody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mdns_sd::{Receiver, ResolvedService, ServiceDaemon, ServiceEvent};
use tokio::sync::watch;

use super::interfaces::{Selection, is_said};
use super::speaker::{self, Speaker};
use super::{Config, Error, Found, SERVICE_TYPE, txt};

/// Caches that are kept in mind: a house has a handful, and a stranger must not fill our memory.
const FOUND_MAX: usize = 32;

/// Addresses of one cache: some interfaces with some IPv6 prefixes each.
const ADDRESSES_MAX: usize = 16;

/// How long a cache that did not answer has to say that it is there. Two questions fit in, the
/// second after a second.
const DOUBT_WAIT: Duration = Duration::from_millis(1500);

/// Listens until it is dropped. It owns its thread.
#[derive(Debug)]
pub struct Browser {
    found: watch::Receiver<Arc<[Found]>>,
    running: Option<Running>,
    /// Keeps those who watch waiting for ever where nothing is listened for.
    _silent: Option<watch::Sender<Arc<[Found]>>>,
}

struct Running {
    speaker: Speaker,
    stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Browser {
    /// Listens on the interfaces of the LAN. Switched off, it finds nothing and sends nothing.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let (tell, found) = watch::channel(Arc::from([]));
        if !config.enabled {
            return Ok(Self { found, running: None, _silent: Some(tell) });
        }
        let selection = Selection::new(config.interfaces.clone(), None);
        // Who listens need not know which address came or went: mdns-sd asks again by itself.
        let (speaker, _) = Speaker::open(selection).map_err(Error::Speak)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ears = Ears {
            daemon: speaker.daemon().clone(),
            stop: Arc::clone(&stop),
            tell,
            found: BTreeMap::new(),
        };
        let thread = thread::Builder::new().name("mdns-browse".to_owned());
        // It ends when the speaker does: its events end then.
        thread.spawn(move || ears.listen()).map_err(Error::Thread)?;
        Ok(Self { found, running: Some(Running { speaker, stop }), _silent: None })
    }

    /// All caches that are there now. One leaves with its goodbye, or two minutes after it was last
    /// heard, or when it was doubted and did not answer.
    pub fn found(&self) -> watch::Receiver<Arc<[Found]>> {
        self.found.clone()
    }

    /// A cache did not answer: asks whether it is still there, and forgets it if it says nothing
    /// within [`DOUBT_WAIT`]. It comes back with its next announcement.
    pub fn doubt(&self, name: &str) {
        if let Some(running) = &self.running {
            let fullname = format!("{name}.{SERVICE_TYPE}");
            // A full queue of commands means that it is busy asking already.
            drop(running.speaker.daemon().verify(fullname, DOUBT_WAIT));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            // Before the speaker is dropped, which ends the events.
            running.stop.store(true, Ordering::Release);
        }
    }
}

struct Ears {
    daemon: ServiceDaemon,
    stop: Arc<AtomicBool>,
    tell: watch::Sender<Arc<[Found]>>,
    found: BTreeMap<String, Found>,
}

impl Ears {
    fn listen(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            // Again, too, when mdns-sd closed what was not read fast enough.
            let Ok(events) = self.daemon.browse(SERVICE_TYPE) else { return };
            self.hear(&events);
        }
    }

    fn hear(&mut self, events: &Receiver<ServiceEvent>) {
        while let Ok(event) = events.recv() {
            let changed = if let ServiceEvent::ServiceResolved(service) = event {
                self.came(&service)
            } else if let ServiceEvent::ServiceRemoved(_, fullname) = event {
                self.found.remove(&fullname).is_some()
            } else if let ServiceEvent::SearchStopped(_) = event {
                return;
            } else {
                false
            };
            if changed {
                self.tell.send_replace(self.found.values().cloned().collect());
            }
        }
    }

    fn came(&mut self, service: &ResolvedService) -> bool {
        let fullname = service.get_fullname().to_owned();
        let Some(found) = read(service) else { return self.found.remove(&fullname).is_some() };
        if self.found.len() >= FOUND_MAX && !self.found.contains_key(&fullname) {
            return false;
        }
        let before = self.found.insert(fullname, found.clone());
        before != Some(found)
    }
}

/// `None` for what is no cache of this kind or cannot be reached.
fn read(service: &ResolvedService) -> Option<Found> {
    let txt = txt::read(|key| service.get_property_val_str(key))?;
    let name = service.get_hostname().trim_end_matches('.').strip_suffix(".local")?.to_lowercase();
    let mut addresses: Vec<IpAddr> = speaker::plain(service.get_addresses().clone())
        .filter(|address| is_said(*address) && !address.is_loopback())
        .collect();
    addresses.sort_unstable();
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() || service.get_port() == 0 {
        return None;
    }
    Some(Found {
        name,
        addresses,
        port: service.get_port(),
        tls_port: txt.tls_port,
        ca_sha256: txt.ca_sha256,
        public_key: txt.public_key,
        store_dir: txt.store_dir,
        priority: txt.priority,
    })
}
