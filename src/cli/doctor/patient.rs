//! The cache that is looked at: the one that was named, else the one that was joined, else the one
//! that is heard.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::advice::Ways;
use crate::forward::joined::Joined;
use crate::mdns::Found;
use crate::pinned::CaFingerprint;

/// Where plain HTTP is unless somebody says otherwise.
const HTTP_PORT: u16 = 80;

/// What multicast DNS resolves.
const LOCAL: &str = ".local";

/// All that is known of a cache before it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Patient {
    /// Its name, with `.local` where it is found so, or its address.
    pub(super) host: String,
    /// The name that its certificate has.
    pub(super) tls_name: String,
    /// Its other names.
    pub(super) names: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) port: u16,
    pub(super) tls_port: Option<u16>,
    /// What this machine holds on to.
    pub(super) ca: Option<(PathBuf, CaFingerprint)>,
    /// What is said to the house.
    pub(super) ca_said: Option<CaFingerprint>,
    pub(super) public_key: Option<String>,
}

impl Patient {
    /// `HOST` or `HOST:PORT`, with what was joined or is heard of it.
    pub(super) fn named(text: &str, joined: Option<&Joined>, heard: &[Found]) -> Self {
        let (host, port) = split(text);
        let host = host.to_ascii_lowercase();
        if let Some(joined) = joined.filter(|it| it.host == host || local(&it.name) == host) {
            let mut patient = Self::joined(joined, heard);
            patient.port = port.unwrap_or(patient.port);
            return patient;
        }
        if let Some(found) = heard.iter().find(|it| is(it, &host)) {
            let mut patient = Self::heard(found);
            patient.port = port.unwrap_or(patient.port);
            return patient;
        }
        let addresses = host.parse().into_iter().collect();
        let port = port.unwrap_or(HTTP_PORT);
        let (names, ca, ca_said) = (Vec::new(), None, None);
        let (tls_name, tls_port, public_key) = (host.clone(), None, None);
        Self { host, tls_name, names, addresses, port, tls_port, ca, ca_said, public_key }
    }

    /// The joined one where it is now, known by its CA: it may have another name today.
    pub(super) fn joined(joined: &Joined, heard: &[Found]) -> Self {
        let digest = joined.ca_sha256.map(CaFingerprint);
        let by_ca =
            heard.iter().find(|it| digest.is_some() && it.ca_sha256 == digest.map(|it| it.0));
        let by_name = || heard.iter().find(|it| it.name == joined.name);
        let now = by_ca.or_else(by_name);
        // Where it is heard now comes first; what was known then may still be true.
        let mut addresses = now.map(|it| it.addresses.clone()).unwrap_or_default();
        addresses.extend(joined.host.parse::<IpAddr>());
        addresses.extend(&joined.addresses);
        let mut seen = std::collections::HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        let mut names = vec![local(&joined.name)];
        names.extend(now.map(|it| local(&it.name)));
        names.retain(|name| *name != joined.host);
        names.dedup();
        Self {
            host: joined.host.clone(),
            tls_name: local(&joined.name),
            names,
            addresses,
            port: joined.port,
            tls_port: joined.tls_port,
            ca: joined.ca_file.clone().zip(digest),
            ca_said: now.and_then(|it| it.ca_sha256).map(CaFingerprint),
            public_key: joined.public_key.as_ref().map(ToString::to_string),
        }
    }

    pub(super) fn heard(found: &Found) -> Self {
        Self {
            host: local(&found.name),
            tls_name: local(&found.name),
            names: Vec::new(),
            addresses: found.addresses.clone(),
            port: found.port,
            tls_port: found.tls_port,
            ca: None,
            ca_said: found.ca_sha256.map(CaFingerprint),
            public_key: found.public_key.clone(),
        }
    }

    /// Whether Nix on Linux cannot resolve it by itself.
    pub(super) fn is_local(&self) -> bool {
        self.host.ends_with(LOCAL)
    }

    pub(super) fn ways(&self, forward: &[SocketAddr]) -> Ways {
        let mut names = self.names.clone();
        names.push(self.host.clone());
        let ports = [Some(self.port), self.tls_port].into_iter().flatten().collect();
        Ways { forward: forward.to_vec(), names, addresses: self.addresses.clone(), ports }
    }
}

fn local(name: &str) -> String {
    format!("{name}{LOCAL}")
}

fn is(found: &Found, host: &str) -> bool {
    local(&found.name) == host || host.parse().is_ok_and(|it: IpAddr| found.addresses.contains(&it))
}

/// A name or an address, with a port or without; an IPv6 address with a port is in brackets.
fn split(text: &str) -> (&str, Option<u16>) {
    let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (text, None),
    };
    let host = if port.is_some() { host } else { text };
    (host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, address: &str, ca: u8) -> Found {
        Found {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            port: 80,
            tls_port: Some(443),
            ca_sha256: Some([ca; 32]),
            public_key: None,
            store_dir: "/nix/store".into(),
            priority: 30,
        }
    }

    fn joined() -> Joined {
        let text = format!(
            "name = \"snowberry\"\nhost = \"snowberry.local\"\nport = 80\ntls-port = 443\n\
             ca-file = \"/etc/snowberry/ca.pem\"\nca-sha256 = \"{}\"\n\
             public-key = \"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"\n\
             addresses = [\"192.168.1.20\"]\nlater = 1\n",
            "a7".repeat(32)
        );
        Joined::parse(&text).unwrap()
    }

    #[test]
    fn hosts_are_split_from_ports() {
        let check = |text: &str, host: &str, port: Option<u16>| {
            assert_eq!(split(text), (host, port), "{text}");
        };
        check("snowberry.local", "snowberry.local", None);
        check("http://snowberry.local:8500/", "snowberry.local", Some(8500));
        check("192.168.1.2:80", "192.168.1.2", Some(80));
        check("fd00::2", "fd00::2", None);
        check("[fd00::2]:80", "fd00::2", Some(80));
        check("[fd00::2]", "fd00::2", None);
    }

    #[test]
    fn the_joined_cache_is_known_by_its_ca_under_whatever_name() {
        let heard =
            [found("snowberry", "192.168.1.9", 1), found("snowberry-2", "192.168.1.30", 0xa7)];
        let patient = Patient::joined(&joined(), &heard);
        let shown: Vec<String> = patient.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.168.1.30", "192.168.1.20"]);
        assert_eq!(patient.names, ["snowberry-2.local"]);
        assert_eq!(patient.ca.unwrap().1, CaFingerprint([0xa7; 32]));
        let silent = Patient::joined(&joined(), &[]);
        assert_eq!((silent.host.as_str(), silent.addresses.len()), ("snowberry.local", 1));
        assert_eq!(silent.tls_name, "snowberry.local");
        // Another one that has taken its name shows another CA, which is told then.
        let other = Patient::joined(&joined(), &heard[..1]);
        assert_eq!(other.ca_said, Some(CaFingerprint([1; 32])));
    }

    #[test]
    fn what_is_named_is_taken_even_where_another_one_was_joined() {
        let heard = [found("attic", "192.168.1.9", 1)];
        let check = |text: &str| Patient::named(text, Some(&joined()), &heard);
        assert!(check("snowberry.local").ca.is_some());
        assert_eq!(check("attic.local:8080").port, 8080);
        assert_eq!(check("192.168.1.9").host, "attic.local");
        let stranger = check("10.0.0.1:8500");
        assert_eq!((stranger.port, stranger.addresses.len(), stranger.ca), (8500, 1, None));
        assert!(check("cache.example").addresses.is_empty());
    }
}
