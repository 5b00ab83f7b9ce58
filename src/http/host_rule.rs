//! The Host rule: pages of people are answered only under names that no stranger's DNS can point
//! here (DNS rebinding).

use std::net::{IpAddr, Ipv6Addr};

use hyper::Request;
use hyper::header::HOST;

/// The host that a request names, when it names exactly one: header and absolute URI must agree.
pub(super) fn host_of<B>(request: &Request<B>) -> Option<&str> {
    let mut headers = request.headers().get_all(HOST).iter();
    let header = headers.next().map(|value| value.to_str().unwrap_or(""));
    if headers.next().is_some() {
        return None;
    }
    let authority = request.uri().authority().map(hyper::http::uri::Authority::as_str);
    match (header, authority) {
        (Some(header), Some(authority)) => header.eq_ignore_ascii_case(authority).then_some(header),
        (header, authority) => header.or(authority),
    }
}

/// Whether this Host is an address, `localhost`, `*.local` or one of `names`.
pub(super) fn is_ours(host: &str, names: &[String]) -> bool {
    let Some(host) = without_port(host) else { return false };
    if let Some(v6) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return v6.parse::<Ipv6Addr>().is_ok();
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let is = |name: &str| host.eq_ignore_ascii_case(name.strip_suffix('.').unwrap_or(name));
    host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4())
        || is("localhost")
        || is_local(host)
        || names.iter().any(|name| is(name))
}

/// Whether this Host is a multicast DNS name, which Nix on Linux cannot resolve.
pub(super) fn is_mdns(host: &str) -> bool {
    without_port(host).is_some_and(|host| is_local(host.strip_suffix('.').unwrap_or(host)))
}

/// `<something>.local`: names that are asked of the LAN itself.
fn is_local(host: &str) -> bool {
    let name = host.len().checked_sub(".local".len()).and_then(|at| host.split_at_checked(at));
    name.is_some_and(|(name, tail)| {
        let fits = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.';
        !name.is_empty() && name.bytes().all(fits) && tail.eq_ignore_ascii_case(".local")
    })
}

fn without_port(host: &str) -> Option<&str> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        Some(_) | None => (host, ""),
    };
    port.bytes().all(|c| c.is_ascii_digit()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_local_names_and_named_hosts_are_ours() {
        let names = ["cache.example.org".to_owned()];
        for host in [
            "192.168.1.7",
            "192.168.1.7:8500",
            "[::1]",
            "[fe80::1]:80",
            "localhost",
            "LOCALHOST:8500",
            "snowberry.local",
            "Snowberry.Local.:80",
            "a.b.local",
            "cache.example.org",
            "cache.example.org.:443",
            "CACHE.example.org:80",
        ] {
            assert!(is_ours(host, &names), "{host}");
        }
        for host in [
            "",
            ":80",
            "evil.example.org",
            "snowberry",
            "snowberry.local.evil.org",
            "evillocal",
            ".local",
            "local",
            "localhost.evil.org",
            "192.168.1.7.evil.org",
            "192.168.1.7:80:80",
            "[::1",
            "[evil.org]",
            "::1",
            "snowberry.local:http",
            "a b.local",
            "a@b.local",
            "a/b.local",
            "<script>.local",
        ] {
            assert!(!is_ours(host, &names), "{host}");
        }
    }

    #[test]
    fn mdns_names_are_known() {
        assert!(is_mdns("snowberry.local:80"));
        assert!(is_mdns("snowberry.local."));
        assert!(!is_mdns("192.168.1.7:80"));
        assert!(!is_mdns("localhost"));
    }

    #[test]
    fn a_request_names_one_host_or_none() {
        let host = |uri: &str, headers: &[&str]| {
            let mut request = Request::builder().uri(uri);
            for header in headers {
                request = request.header(HOST, *header);
            }
            host_of(&request.body(()).expect("a request")).map(str::to_owned)
        };
        assert_eq!(host("/", &["a.local"]).as_deref(), Some("a.local"));
        assert_eq!(host("/", &[]), None);
        assert_eq!(host("/", &["a.local", "b.local"]), None);
        assert_eq!(host("http://a.local/", &[]).as_deref(), Some("a.local"));
        assert_eq!(host("http://a.local/", &["A.local"]).as_deref(), Some("A.local"));
        assert_eq!(host("http://a.local/", &["evil.org"]), None);
    }
}
