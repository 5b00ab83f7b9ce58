//! The names and addresses under which the machines of the house know this one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use if_addrs::Interface;

use crate::http::tls::Names;
use crate::mdns;

/// Where Linux says what the machine is called.
const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";

/// Where Linux says which of its IPv6 addresses are what.
const V6_FILE: &str = "/proc/net/if_inet6";

/// Flags of addresses that come and go by themselves (`linux/if_addr.h`): temporary ones, which hide a
/// machine from the servers it asks and change every day, and what is not yet or no longer good.
const V6_PASSING: u8 = 0x01 | 0x08 | 0x20 | 0x40;

/// Addresses in a certificate at most: a host with more has most of them on networks of its own.
const ADDRESSES_MAX: usize = 64;

/// The names of a cache: the label that it has on the network now, the one of its configuration,
/// the host's own, and what else it is configured to be.
pub(super) fn of_cache(
    label: Option<&str>,
    configured: &str,
    more: &[String],
    chosen: &mdns::Config,
) -> Names {
    let host_name = std::fs::read_to_string(HOST_NAME_FILE).unwrap_or_default();
    let mut names = Names::default();
    for name in [label.unwrap_or(configured), configured, host_name.trim()] {
        let first = name.split('.').next().unwrap_or_default();
        names.hosts.extend([host(&format!("{first}.local")), host(name)].into_iter().flatten());
    }
    names.hosts.extend(host("localhost"));
    names.hosts.extend(more.iter().filter_map(|name| host(name)));
    let own = if_addrs::get_if_addrs().unwrap_or_default();
    let passing = passing_addresses(&std::fs::read_to_string(V6_FILE).unwrap_or_default());
    let is_asked_at = |it: &&Interface| mdns::is_of_the_house(chosen, &it.name);
    let addresses = own.iter().filter(is_asked_at).map(Interface::ip);
    names.addresses.extend([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]);
    names
        .addresses
        .extend(addresses.filter(|it| is_asked(*it) && !passing.contains(it)).take(ADDRESSES_MAX));
    names
}

/// A host name as certificates have it; nothing where it is none.
fn host(name: &str) -> Option<String> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty()
            && label.chars().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (name.split('.').all(is_label) && name.parse::<IpAddr>().is_err()).then_some(name)
}

/// Columns are the address in 32 digits, the interface's number, the length of its prefix, its scope,
/// its flags (all hexadecimal), and the interface. A certificate with them would be made anew daily.
fn passing_addresses(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let bits = u128::from_str_radix(columns.next()?, 16).ok()?;
        let flags = u8::from_str_radix(columns.nth(3)?, 16).ok()?;
        (flags & V6_PASSING != 0).then(|| Ipv6Addr::from_bits(bits).into())
    };
    text.lines().filter_map(address).collect()
}

/// A link-local address of IPv6 means nothing without its interface, which no URL of Nix names.
fn is_asked(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_known_by_label_name_host_and_loopback() {
        let names = of_cache(
            Some("snowberry-2"),
            "snowberry",
            &["Cache.Example.org.".to_owned()],
            &mdns::Config::default(),
        );
        for host in ["snowberry-2.local", "snowberry.local", "localhost", "cache.example.org"] {
            assert!(names.hosts.contains(host), "{host} is not in {names:?}");
        }
        for address in ["127.0.0.1", "::1"] {
            assert!(names.addresses.contains(&address.parse().unwrap()), "{names:?}");
        }
        assert!(!names.hosts.iter().any(String::is_empty));
    }

    #[test]
    fn what_is_no_host_name_is_left_out() {
        for name in ["", ".", "a..b", "a b", "-a", "a-", "192.168.1.7", "a_b", "*.local"] {
            assert_eq!(host(name), None, "{name}");
        }
        assert_eq!(host("Pi.LAN.").as_deref(), Some("pi.lan"));
    }

    #[test]
    fn addresses_that_change_every_day_are_left_out() {
        let text = "20010db8000100020000000000000005 02 40 00 80     eth0\n\
                    20010db8000100020000000000000006 02 40 00 01     eth0\n\
                    20010db8000100020000000000000007 02 40 00 a0     eth0\n\
                    nonsense\n";
        let passing: Vec<_> = passing_addresses(text).iter().map(ToString::to_string).collect();
        assert_eq!(passing, ["2001:db8:1:2::6", "2001:db8:1:2::7"]);
    }
}
