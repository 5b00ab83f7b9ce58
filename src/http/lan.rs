//! Who is the LAN: which peers are answered at all. A router's open IPv6 must not publish the
//! house.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the interfaces' prefixes count before they are read again: a new prefix from the
/// provider comes some times a day, and a stranger's connections must not cost a reading each.
const INTERFACES_FRESH: Duration = Duration::from_secs(10);

/// Shortest prefixes of interfaces that count as the house's own. A provider gives a house a /48
/// at most, and a wider on-link route (a tunnel's, a point-to-point link's) is not a LAN.
const INTERFACE_V6_LEN_MIN: u8 = 48;
/// As above: IPv4 blocks given to one site are a /16 at most.
const INTERFACE_V4_LEN_MIN: u8 = 16;

/// An address prefix, `203.0.113.0/24` or `2001:db8::/32`; a bare address is a prefix of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// Why a text is not a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address prefix such as \"203.0.113.0/24\" or \"2001:db8::/32\"")]
pub struct PrefixError(String);

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        Self::read(text).ok_or_else(|| PrefixError(text.to_owned()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl Prefix {
    fn read(text: &str) -> Option<Self> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let len_max = address_bits(address);
        let digits = |len: &&str| len.bytes().all(|c| c.is_ascii_digit());
        let len = match len {
            Some(len) => Some(len).filter(digits)?.parse().ok()?,
            None => len_max,
        };
        (len <= len_max).then_some(Self { address, len })
    }

    /// Whether the address lies in this prefix. An IPv4 address may come mapped into IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.len);
                let differing = own.to_bits() ^ other.to_bits();
                differing.checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128 - u32::from(self.len);
                let differing = own.to_bits() ^ other.to_bits();
                differing.checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

const fn address_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The peers that are answered.
pub(super) struct Lan {
    allow: Vec<Prefix>,
    interfaces: Mutex<Option<(Instant, Vec<Prefix>)>>,
}

impl Lan {
    /// The LAN and what is allowed besides.
    pub(super) fn new(allow: &[String]) -> Result<Self, PrefixError> {
        let allow = allow.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        Ok(Self { allow, interfaces: Mutex::default() })
    }

    /// Whether this peer is answered.
    pub(super) fn admits(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        is_private(peer)
            || self.allow.iter().any(|prefix| prefix.contains(peer))
            || self.is_on_link(peer, Instant::now())
    }

    /// Whether it lies in a prefix of one of our interfaces. Only strangers come this far.
    fn is_on_link(&self, peer: IpAddr, now: Instant) -> bool {
        let mut known = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = known
            .take()
            .filter(|(read, _)| now.saturating_duration_since(*read) < INTERFACES_FRESH);
        let (read, prefixes) = fresh.unwrap_or_else(|| (now, interface_prefixes()));
        let on_link = prefixes.iter().any(|prefix| prefix.contains(peer));
        *known = Some((read, prefixes));
        on_link
    }
}

/// Addresses that no router passes on from outside.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || is_shared(v4)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unique_local(),
    }
}

/// 100.64.0.0/10: carrier-grade NAT, and what Tailscale gives its machines.
fn is_shared(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 100 && second & 0xc0 == 64
}

/// The prefixes of our own interfaces as Linux tells them; none elsewhere. `/proc/net` is made
/// from the kernel's memory: no disk is waited for.
fn interface_prefixes() -> Vec<Prefix> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut prefixes = on_link_routes(&read("/proc/net/route"));
    prefixes.extend(interface_addresses(&read("/proc/net/if_inet6")));
    prefixes
}

/// IPv4 routes without a gateway, from `/proc/net/route`: columns are interface, destination,
/// gateway, flags, three counters, mask; addresses are hexadecimal in the machine's byte order.
fn on_link_routes(text: &str) -> Vec<Prefix> {
    let route = |line: &str| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let destination = hex_v4(columns.next()?)?;
        let gateway = hex_v4(columns.next()?)?;
        let mask = hex_v4(columns.nth(4)?)?.to_bits();
        let len = u8::try_from(mask.leading_ones()).ok()?;
        let counts = gateway.is_unspecified() && len >= INTERFACE_V4_LEN_MIN;
        counts.then_some(Prefix { address: IpAddr::V4(destination), len })
    };
    text.lines().skip(1).filter_map(route).collect()
}

fn hex_v4(text: &str) -> Option<Ipv4Addr> {
    u32::from_str_radix(text, 16).ok().map(|raw| Ipv4Addr::from(raw.to_ne_bytes()))
}

/// IPv6 addresses with their prefix lengths, from `/proc/net/if_inet6`: columns are the address
/// in 32 digits, the interface's number, the prefix length (both hexadecimal), and others.
fn interface_addresses(text: &str) -> Vec<Prefix> {
    let address = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let bits = u128::from_str_radix(columns.next()?, 16).ok()?;
        let len = u8::from_str_radix(columns.nth(1)?, 16).ok()?;
        let counts = (INTERFACE_V6_LEN_MIN..=128).contains(&len);
        counts.then_some(Prefix { address: IpAddr::V6(Ipv6Addr::from_bits(bits)), len })
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_lan_is_answered_and_strangers_are_not() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.178.20",
            "169.254.7.7",
            "100.64.0.1",
            "100.127.255.255",
            "fe80::1",
            "fd12:3456::1",
            "::ffff:192.168.1.2",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_private(ip(address).to_canonical()), "{address}");
        }
        for address in [
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "2001:db8::1",
            "::ffff:8.8.8.8",
            "0.0.0.0",
            "::",
        ] {
            assert!(!is_private(ip(address).to_canonical()), "{address}");
        }
    }

    #[test]
    fn what_is_allowed_is_answered() {
        let allow = ["203.0.113.0/24".to_owned(), "2001:db8:1::/48".to_owned()];
        let lan = Lan::new(&allow).expect("prefixes");
        assert!(lan.admits(ip("203.0.113.9")));
        assert!(lan.admits(ip("::ffff:203.0.113.9")));
        assert!(lan.admits(ip("2001:db8:1:2::3")));
        assert!(!lan.admits(ip("203.0.114.9")));
        assert!(!lan.admits(ip("2001:db8:2::3")));
    }

    #[test]
    fn prefixes_are_read_and_compared() {
        for (prefix, inside, outside) in [
            ("203.0.113.0/24", "203.0.113.255", "203.0.112.255"),
            ("203.0.113.7/24", "203.0.113.255", "203.0.112.255"),
            ("203.0.113.7", "203.0.113.7", "203.0.113.6"),
            ("203.0.113.4/31", "203.0.113.5", "203.0.113.6"),
            ("0.0.0.0/0", "8.8.8.8", "2001:db8::1"),
            ("::/0", "2001:db8::1", "8.8.8.8"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("2001:db8::1", "2001:db8::1", "2001:db8::2"),
        ] {
            let parsed: Prefix = prefix.parse().expect(prefix);
            assert!(parsed.contains(ip(inside)), "{inside} in {prefix}");
            assert!(!parsed.contains(ip(outside)), "{outside} in {prefix}");
        }
        for text in
            ["", "lan", "203.0.113.0/33", "2001:db8::/129", "10.0.0.0/", "10.0.0.0/+8", "10/8"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        assert_eq!(
            "2001:db8::/32".parse::<Prefix>().map(|p| p.to_string()),
            Ok("2001:db8::/32".into())
        );
    }

    #[test]
    fn on_link_routes_count_and_gateways_do_not() {
        let hex = |text: &str| {
            let address: Ipv4Addr = text.parse().expect("an address");
            format!("{:08X}", u32::from_ne_bytes(address.octets()))
        };
        let line = |destination: &str, gateway: &str, mask: &str| {
            let (to, by, mask) = (hex(destination), hex(gateway), hex(mask));
            format!("eth0\t{to}\t{by}\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n")
        };
        let text = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n{}{}{}{}",
            line("0.0.0.0", "192.0.2.1", "0.0.0.0"),
            line("192.0.2.0", "0.0.0.0", "255.255.255.0"),
            line("198.51.100.0", "192.0.2.9", "255.255.255.0"),
            line("0.0.0.0", "0.0.0.0", "0.0.0.0"),
        );
        let prefixes: Vec<_> = on_link_routes(&text).iter().map(Prefix::to_string).collect();
        assert_eq!(prefixes, ["192.0.2.0/24"]);
        assert!(on_link_routes("").is_empty());
        assert!(on_link_routes("x\ny z\n").is_empty());
    }

    #[test]
    fn interface_addresses_count_with_their_prefix() {
        let text = "20010db8000100020000000000000005 02 40 00 80     eth0\n\
                    00000000000000000000000000000001 01 80 10 80       lo\n\
                    20010db8000000000000000000000005 03 10 00 80     tun0\n\
                    nonsense\n";
        let prefixes = interface_addresses(text);
        assert_eq!(prefixes.len(), 2);
        assert!(prefixes.iter().any(|prefix| prefix.contains(ip("2001:db8:1:2::9"))));
        assert!(!prefixes.iter().any(|prefix| prefix.contains(ip("2001:db8:1:3::9"))));
        assert!(!prefixes.iter().any(|prefix| prefix.contains(ip("2001::9"))));
    }
}
