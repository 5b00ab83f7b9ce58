//! Whether this machine has a network, by what the kernel says of its routes and addresses.

use std::path::Path;

use crate::appliance::read_bounded;

/// Longest table that is read: a line for each route or address, and a Pi has few.
const TABLE_LEN_MAX: u64 = 1 << 20;

/// The interface of the machine with itself.
const LOOPBACK: &str = "lo";

/// A destination of zeros, as IPv6 routes have it.
const NOWHERE: &str = "00000000000000000000000000000000";

fn table(proc: &Path, name: &str) -> String {
    read_bounded(&proc.join("net").join(name), TABLE_LEN_MAX).unwrap_or_default()
}

/// Whether there is a way out of the local network, by IPv4 or IPv6.
pub(super) fn has_default_route(proc: &Path) -> bool {
    // Iface Destination Gateway Flags RefCnt Use Metric Mask ...
    let by_v4 = table(proc, "route").lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first() != Some(&LOOPBACK)
            && words.get(1) == Some(&"00000000")
            && words.get(7) == Some(&"00000000")
    });
    // Destination, its bits, source, its bits, next hop, metric, counts, flags, interface.
    let by_v6 = table(proc, "ipv6_route").lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first() == Some(&NOWHERE)
            && words.get(1) == Some(&"00")
            && words.last() != Some(&LOOPBACK)
    });
    by_v4 || by_v6
}

/// Whether it has an address that others can reach: a route by IPv4, which every address brings, or a
/// global address of IPv6.
pub(super) fn has_address(proc: &Path) -> bool {
    let by_v4 = table(proc, "route")
        .lines()
        .skip(1)
        .any(|line| line.split_whitespace().next().is_some_and(|name| name != LOOPBACK));
    // Address, index, bits, scope, flags, interface.
    let by_v6 = table(proc, "if_inet6").lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(3) == Some(&"00") && words.last() != Some(&LOOPBACK)
    });
    by_v4 || by_v6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], route: bool, address: bool) {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("net")).unwrap();
        for (name, text) in files {
            std::fs::write(proc.path().join("net").join(name), text).unwrap();
        }
        let found = (has_default_route(proc.path()), has_address(proc.path()));
        assert_eq!(found, (route, address), "{files:?}");
    }

    #[test]
    fn routes_and_addresses_are_read_as_the_kernel_writes_them() {
        const HEAD: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n";
        let default = "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let local = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        check(&[], false, false);
        check(&[("route", HEAD)], false, false);
        check(&[("route", &format!("{HEAD}{local}"))], false, true);
        check(&[("route", &format!("{HEAD}{default}{local}"))], true, true);
        let v6_default = format!(
            "{NOWHERE} 00 {NOWHERE} 00 fe800000000000000000000000000001 00000400 00000001 \
             00000000 00000003     eth0\n"
        );
        let v6_none =
            format!("{NOWHERE} 00 {NOWHERE} 00 {NOWHERE} ffffffff 00000001 0 00200200       lo\n");
        check(&[("ipv6_route", &v6_none)], false, false);
        check(&[("ipv6_route", &v6_default)], true, false);
        let own = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let link = "fe80000000000000ba27ebfffe000001 02 40 20 80     eth0\n";
        let global = "fd000000000000000000000000000007 02 40 00 80     eth0\n";
        check(&[("if_inet6", &format!("{own}{link}"))], false, false);
        check(&[("if_inet6", &format!("{own}{link}{global}"))], false, true);
    }
}
