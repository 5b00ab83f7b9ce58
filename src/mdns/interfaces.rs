//! On which interfaces mDNS is spoken, and which addresses are said there. Pure but for the list of
//! what this machine called its own.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use super::Config;

/// Stands at the end of a name for any rest.
pub const PATTERN_WILDCARD: char = '*';

/// Interfaces of containers, virtual machines and VPNs: who is behind them is not the house.
const NOT_OF_THE_HOUSE: [&str; 14] = [
    "veth*",
    "docker*",
    "br-*",
    "virbr*",
    "cni*",
    "wg*",
    "tun*",
    "tap*",
    "tailscale*",
    "zt*",
    "podman*",
    "lxc*",
    "vboxnet*",
    "vmnet*",
];

/// Own addresses that are remembered. A machine has some tens with its changing IPv6 ones; what is
/// forgotten is the oldest, which nobody caches any more (two minutes).
const OWN_ADDRESSES_MAX: usize = 256;

/// Whether machines of the house are behind this interface: those that the configuration names, and
/// all that are none of containers, virtual machines or VPNs.
pub fn is_of_the_house(config: &Config, interface: &str) -> bool {
    let chosen = config.interfaces.is_some();
    let is_chosen = |chosen| Selection::new(chosen, None).is_chosen(interface);
    is_chosen(None) || chosen && is_chosen(config.interfaces.clone())
}

/// Where mDNS is spoken.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    /// Names of the configuration.
    chosen: Option<Vec<String>>,
    /// What the server listens on; `None` for who only asks.
    listening: Option<Vec<IpAddr>>,
}

impl Selection {
    pub(super) fn new(chosen: Option<Vec<String>>, listening: Option<&[SocketAddr]>) -> Self {
        let listening = listening.map(|all| all.iter().map(|it| it.ip().to_canonical()).collect());
        Self { chosen, listening }
    }

    /// Whether there can be anything to say: a server on loopback has nobody to be found by.
    pub(super) fn is_silent(&self) -> bool {
        let nowhere = |listening: &Vec<IpAddr>| listening.iter().all(IpAddr::is_loopback);
        self.listening.as_ref().is_some_and(nowhere)
    }

    /// Whether mDNS is spoken on this address of this interface.
    pub(super) fn speaks(&self, interface: &str, address: IpAddr) -> bool {
        !address.is_loopback() && self.is_chosen(interface) && self.is_served(address)
    }

    fn is_chosen(&self, interface: &str) -> bool {
        let fits = |pattern: &str| match pattern.strip_suffix(PATTERN_WILDCARD) {
            Some(start) => interface.starts_with(start),
            None => interface == pattern,
        };
        match &self.chosen {
            Some(chosen) => chosen.iter().any(|pattern| fits(pattern)),
            None => !NOT_OF_THE_HOUSE.iter().any(|pattern| fits(pattern)),
        }
    }

    /// `[::]` takes IPv4 too, as Linux does unless told otherwise.
    fn is_served(&self, address: IpAddr) -> bool {
        let Some(listening) = &self.listening else { return true };
        listening.iter().any(|on| match on {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
            IpAddr::V4(v4) if v4.is_unspecified() => address.is_ipv4(),
            IpAddr::V4(_) | IpAddr::V6(_) => *on == address,
        })
    }
}

/// Whether an address is said to others: an IPv6 link-local one means nothing without its
/// interface, which many resolvers lose on the way.
pub(super) const fn is_said(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    }
}

/// The addresses that this machine has or had since the start, on whatever interface: who answers
/// with one of them is Avahi or systemd-resolved on this machine, our other interface, or a cache of
/// what we said ourselves.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnAddresses(Arc<Mutex<VecDeque<IpAddr>>>);

impl OwnAddresses {
    pub(super) fn note(&self, address: IpAddr) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The latest is at the end, so that what is in use is never forgotten.
        known.retain(|other| *other != address);
        if known.len() >= OWN_ADDRESSES_MAX {
            known.pop_front();
        }
        known.push_back(address);
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_tunnels_are_not_the_house_unless_they_are_named() {
        let named = Config { interfaces: Some(vec!["wg0".to_owned()]), ..Config::default() };
        for (name, is, is_when_named) in [
            ("eth0", true, true),
            ("wlan0", true, true),
            ("lo", true, true),
            ("br0", true, true),
            ("docker0", false, false),
            ("br-12ab", false, false),
            ("wg0", false, true),
        ] {
            assert_eq!(is_of_the_house(&Config::default(), name), is, "{name}");
            assert_eq!(is_of_the_house(&named, name), is_when_named, "{name}");
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn listening(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn mdns_is_spoken_where_the_server_listens() {
        let check = |on: &[&str], address: &str, speaks: bool| {
            let selection = Selection::new(None, Some(&listening(on)));
            assert_eq!(selection.speaks("eth0", ip(address)), speaks, "{on:?} {address}");
        };
        check(&["[::]:80"], "192.168.1.2", true);
        check(&["[::]:80"], "fd00::2", true);
        check(&["[::]:80"], "fe80::2", true);
        check(&["[::]:80"], "127.0.0.1", false);
        check(&["0.0.0.0:80"], "192.168.1.2", true);
        check(&["0.0.0.0:80"], "fd00::2", false);
        check(&["192.168.1.2:80"], "192.168.1.2", true);
        check(&["192.168.1.2:80"], "192.168.1.3", false);
        check(&["[::ffff:192.168.1.2]:80"], "192.168.1.2", true);
        check(&["127.0.0.1:80"], "192.168.1.2", false);
        check(&["127.0.0.1:80", "192.168.1.2:80"], "192.168.1.2", true);
    }

    #[test]
    fn a_server_on_loopback_is_silent() {
        let check = |on: &[&str], silent: bool| {
            let selection = Selection::new(None, Some(&listening(on)));
            assert_eq!(selection.is_silent(), silent, "{on:?}");
        };
        check(&["127.0.0.1:8500"], true);
        check(&["127.0.0.1:8500", "[::1]:8500"], true);
        check(&["127.0.0.1:8500", "[::]:80"], false);
        check(&[], true);
        assert!(!Selection::new(None, None).is_silent());
    }

    #[test]
    fn containers_and_vpns_are_left_out_unless_they_are_chosen() {
        let check = |chosen: Option<&[&str]>, interface: &str, speaks: bool| {
            let chosen = chosen.map(|names| names.iter().map(ToString::to_string).collect());
            let selection = Selection::new(chosen, None);
            assert_eq!(selection.speaks(interface, ip("10.0.0.2")), speaks, "{interface}");
        };
        for house in ["eth0", "wlan0", "enp3s0", "end0", "br0", "bond0", "en0"] {
            check(None, house, true);
        }
        for not in ["veth1a2b", "docker0", "br-1a2b", "virbr0", "cni0", "wg0", "tun0", "tap1"] {
            check(None, not, false);
        }
        check(None, "tailscale0", false);
        check(None, "ztabcdef", false);
        check(Some(&["wg0", "eth*"]), "wg0", true);
        check(Some(&["wg0", "eth*"]), "eth1", true);
        check(Some(&["wg0", "eth*"]), "wlan0", false);
    }

    #[test]
    fn the_oldest_own_address_is_forgotten() {
        let own = OwnAddresses::default();
        let nth = |n: usize| IpAddr::V4((u32::try_from(n).unwrap() + 0x0a00_0000).into());
        for n in 0..OWN_ADDRESSES_MAX {
            own.note(nth(n));
        }
        own.note(nth(0));
        own.note(nth(OWN_ADDRESSES_MAX));
        assert!(own.contains(nth(0)), "it was seen again");
        assert!(!own.contains(nth(1)));
        assert!(own.contains(nth(OWN_ADDRESSES_MAX)));
    }
}
