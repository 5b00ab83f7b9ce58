//! Where an upstream's objects lie: URLs put together and judged. Pure.
//!
//! A narinfo's URL is not signed: it must not make us ask a host of the house, nor leave a cache
//! that is asked over TLS for one that is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Longest URL or name that is followed: servers take 8 KiB of request line, names are shorter.
const URL_LEN_MAX: usize = 4096;

/// An `http(s)` URL as the start of others: with a path that ends in a slash, without user data,
/// query (Nix keeps settings of the store there) and fragment.
pub(super) fn base(mut url: Url) -> Url {
    drop_user(&mut url);
    url.set_query(None);
    url.set_fragment(None);
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    url
}

/// Takes name and password out of an `http(s)` URL.
pub(super) fn drop_user(url: &mut Url) {
    let has_host = "an http or https URL has a host, and so can have user data";
    url.set_username("").expect(has_host);
    url.set_password(None).expect(has_host);
}

/// The URL of an object by its name, which must not lead out of the cache.
pub(super) fn object(base: &Url, name: &str) -> Result<Url, &'static str> {
    plain_name(name)?;
    let mut url = base.clone();
    url.path_segments_mut()
        .map_err(|()| "the upstream's URL has no path")?
        .pop_if_empty()
        .extend(name.split('/'));
    Ok(url)
}

/// Whether a name is a path below the cache: no empty segment, no dots, no control characters.
pub(super) fn plain_name(name: &str) -> Result<(), &'static str> {
    if name.len() > URL_LEN_MAX {
        return Err("the name is too long");
    }
    if name.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\') {
        return Err("the name has control characters");
    }
    if name.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err("the name leads out of the cache");
    }
    Ok(())
}

/// A narinfo's URL as Nix resolves it: relative to the cache, or absolute. What may be asked at
/// all is judged here, addresses that names stand for when connecting.
pub(super) fn nar(base: &Url, text: &str) -> Result<Url, &'static str> {
    if text.is_empty() || text.len() > URL_LEN_MAX {
        return Err("the URL is empty or too long");
    }
    if text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
        return Err("the URL has white space or control characters");
    }
    let mut url = base.join(text).map_err(|_| "the URL does not parse")?;
    url.set_fragment(None);
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL brings its own user data");
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err("the URL is neither http nor https");
    }
    if base.scheme() == "https" && url.scheme() != "https" {
        return Err("the URL leaves TLS");
    }
    if !same_host(base, &url) && url.scheme() != "https" {
        return Err("the URL is on another host and not https");
    }
    Ok(url)
}

/// Whether both are on one host, whatever the port.
pub(super) fn same_host(one: &Url, other: &Url) -> bool {
    one.host() == other.host()
}

/// Whether what is secret to `base` may be sent to `url`: the same server, or the same name's
/// https where base is http, on the usual ports.
pub(super) fn keeps_secrets(base: &Url, url: &Url) -> bool {
    if !same_host(base, url) {
        return false;
    }
    let ports = (base.port_or_known_default(), url.port_or_known_default());
    (base.scheme() == url.scheme() && ports.0 == ports.1)
        || (base.scheme() == "http" && url.scheme() == "https" && ports == (Some(80), Some(443)))
}

/// The address that a URL names without any resolving.
pub(super) fn literal_address(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

/// Whether an address is of a house or a machine and not of the internet.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || a == 0
        || a >= 240
        // Shared by carriers and by overlay networks.
        || (a == 100 && (64..128).contains(&b))
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4() {
        // Mapped and compatible addresses; `::` and `::1` are among them.
        return v4.octets() == [0, 0, 0, 1] || is_private_v4(v4);
    }
    let [first, second, .., seventh, eighth] = address.segments();
    if (first, second) == (0x64, 0xff9b) {
        let [a, b] = seventh.to_be_bytes();
        let [c, d] = eighth.to_be_bytes();
        return is_private_v4(Ipv4Addr::new(a, b, c, d));
    }
    address.is_multicast() || address.is_unique_local() || address.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_base_keeps_its_prefix_and_nothing_else() {
        let check = |text: &str, wanted: &str| assert_eq!(base(url(text)).as_str(), wanted);
        check("https://h.example", "https://h.example/");
        check("https://h.example/a/b", "https://h.example/a/b/");
        check("https://h.example/a/b/", "https://h.example/a/b/");
        check("https://me:pw@h.example:8443/a?priority=3#x", "https://h.example:8443/a/");
    }

    #[test]
    fn names_stay_below_the_cache_and_are_encoded() {
        let base = base(url("https://h.example/a"));
        let check = |name: &str, wanted: &str| {
            assert_eq!(object(&base, name).unwrap().as_str(), wanted, "{name}");
        };
        check("x.narinfo", "https://h.example/a/x.narinfo");
        check("log/x y%.drv", "https://h.example/a/log/x%20y%25.drv");
        check("realisations/sha256:0!out.doi", "https://h.example/a/realisations/sha256:0!out.doi");
        check("log/a?b#c", "https://h.example/a/log/a%3Fb%23c");
        for name in ["../x", "a/../../x", "/etc/passwd", "", "a//b", "a/./b", "a\r\nb"] {
            assert!(object(&base, name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn narinfo_urls_are_resolved_as_nix_does() {
        let base = base(url("https://h.example/a"));
        let check = |text: &str, wanted: &str| {
            assert_eq!(nar(&base, text).unwrap().as_str(), wanted, "{text}");
        };
        check("nar/x.nar.xz", "https://h.example/a/nar/x.nar.xz");
        check("nar/x.nar?hash=0%2B", "https://h.example/a/nar/x.nar?hash=0%2B");
        check("nar/a%2Bb.nar", "https://h.example/a/nar/a%2Bb.nar");
        check("../nar/x.nar", "https://h.example/nar/x.nar");
        check("https://cdn.example/x?t=1", "https://cdn.example/x?t=1");
        check("https://h.example:444/x", "https://h.example:444/x");
    }

    #[test]
    fn narinfo_urls_that_lead_astray_are_refused() {
        let tls = base(url("https://h.example/a"));
        let plain = base(url("http://h.example/a"));
        for text in [
            "",
            "file:///etc/passwd",
            "ftp://h.example/x",
            "http://h.example/x",
            "http://cdn.example/x",
            "https://me:pw@h.example/x",
            "nar/a b",
            "nar/a\nb",
        ] {
            assert!(nar(&tls, text).is_err(), "{text:?}");
        }
        assert!(nar(&plain, "http://cdn.example/x").is_err());
        assert!(nar(&plain, "//cdn.example/x").is_err());
        assert!(nar(&plain, "http://h.example:81/x").is_ok());
        assert!(nar(&plain, "https://cdn.example/x").is_ok());
    }

    #[test]
    fn secrets_go_to_their_server_only() {
        let check = |base: &str, other: &str, wanted: bool| {
            assert_eq!(keeps_secrets(&url(base), &url(other)), wanted, "{base} {other}");
        };
        check("https://h.example", "https://h.example:443/x", true);
        check("http://h.example", "https://h.example/x", true);
        check("https://h.example", "https://h.example:444/x", false);
        check("https://h.example", "http://h.example/x", false);
        check("https://h.example", "https://h.example.evil/x", false);
        check("http://h.example:8080", "https://h.example/x", false);
    }

    #[test]
    fn private_addresses_are_known() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:192.168.1.1",
            "64:ff9b::a00:1",
            "ff02::fb",
        ] {
            assert!(is_private(text.parse().unwrap()), "{text}");
        }
        for text in
            ["151.101.1.91", "100.128.0.1", "172.32.0.1", "2a04:4e42::731", "::ffff:8.8.8.8"]
        {
            assert!(!is_private(text.parse().unwrap()), "{text}");
        }
    }
}
