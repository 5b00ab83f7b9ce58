//! mdns-sd's daemon, held to the interfaces of the house. Ends with its handle, with a goodbye for
//! whatever is still announced.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use mdns_sd::{
    DaemonEvent, HostnameResolutionEvent, IfKind, IfPredicate, Receiver, ServiceDaemon, ServiceInfo,
};

use super::interfaces::{OwnAddresses, Selection};

/// How often the machine's interfaces are looked at, in seconds: a laptop that came home finds its
/// cache within this, and looking costs a tenth of a millisecond.
const INTERFACES_EVERY_S: u32 = 2;

/// What mdns-sd's thread may take to answer a command. It does nothing that blocks.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// How long after the first goodbye mdns-sd has sent the second one (120 ms), for who missed it.
const SECOND_GOODBYE_WAIT: Duration = Duration::from_millis(150);

/// The daemon and what it tells of the interfaces.
pub(super) struct Speaker {
    daemon: ServiceDaemon,
    own: OwnAddresses,
}

impl Speaker {
    /// Speaks on what `selection` chooses, and nowhere else: everything is switched off before the
    /// first packet could be sent. The receiver tells each address that comes or goes there.
    pub(super) fn open(
        selection: Selection,
    ) -> Result<(Self, Receiver<DaemonEvent>), mdns_sd::Error> {
        let own = OwnAddresses::default();
        let speaker = Self { daemon: ServiceDaemon::new()?, own: own.clone() };
        let daemon = &speaker.daemon;
        // First, so that it hears of the addresses that the last call switches on.
        let events = daemon.monitor()?;
        daemon.set_ip_check_interval(INTERFACES_EVERY_S)?;
        daemon.disable_interface(IfKind::All)?;
        daemon.enable_interface(IfKind::Predicate(IfPredicate::new(move |interface| {
            own.note(interface.ip());
            selection.speaks(&interface.name, interface.ip())
        })))?;
        Ok((speaker, events))
    }

    pub(super) const fn daemon(&self) -> &ServiceDaemon {
        &self.daemon
    }

    /// Those of them that are not this machine's.
    pub(super) fn of_others(&self, addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
        addresses.filter(|address| !self.own.contains(*address)).collect()
    }

    /// Asks who has a host name, at once and then ever less often.
    pub(super) fn ask(
        &self,
        host: &str,
    ) -> Result<Receiver<HostnameResolutionEvent>, mdns_sd::Error> {
        self.daemon.resolve_hostname(host, None)
    }

    pub(super) fn announce(&self, service: ServiceInfo) -> Result<(), mdns_sd::Error> {
        self.daemon.register(service)
    }

    /// Says goodbye for a service; a second time soon after, from mdns-sd's own thread.
    pub(super) async fn withdraw(&self, fullname: &str) {
        if let Ok(answer) = self.daemon.unregister(fullname) {
            // Either it was sent or there is nobody left to send it.
            drop(tokio::time::timeout(ANSWER_WAIT, answer.recv_async()).await);
        }
    }

    /// Lets the second goodbye out and ends the daemon.
    pub(super) async fn close(self) {
        tokio::time::sleep(SECOND_GOODBYE_WAIT).await;
        if let Ok(answer) = self.daemon.shutdown() {
            drop(tokio::time::timeout(ANSWER_WAIT, answer.recv_async()).await);
        }
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        // Its thread ends of itself then; after `close` it has ended already.
        drop(self.daemon.shutdown());
    }
}

/// The addresses of an answer, without the interface that they came by.
pub(super) fn plain(addresses: HashSet<mdns_sd::ScopedIp>) -> impl Iterator<Item = IpAddr> {
    addresses.into_iter().map(|address| address.to_ip_addr())
}
