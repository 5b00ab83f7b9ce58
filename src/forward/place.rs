//! Where a cache is, and which caches count as those of this house.

use std::net::IpAddr;

use super::joined::Joined;

/// Where one cache is and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// The name or address that it is asked under, and that its certificate must have.
    pub(super) host: String,
    /// The port.
    pub(super) port: u16,
    /// Over TLS, pinned.
    pub(super) is_tls: bool,
    /// Where it is; empty: the system resolves the host.
    pub(super) addresses: Vec<IpAddr>,
    /// Whether somebody chose this very cache. One that merely announced itself gets no token over
    /// plain HTTP: anybody on a network can announce.
    pub(super) is_chosen: bool,
}

/// What mDNS says of one cache, as far as it counts here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announced {
    /// The host name, without `.local`.
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) port: u16,
    pub(super) tls_port: Option<u16>,
    pub(super) ca_sha256: Option<[u8; 32]>,
    pub(super) store_dir: String,
}

/// The cache that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// Over TLS.
    pub is_tls: bool,
    /// Name or address, an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Fixed {
    /// `http(s)://HOST[:PORT]`, with at most a slash behind it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not http://HOST[:PORT] or https://HOST[:PORT]");
        let url = url::Url::parse(text).map_err(|_| wrong())?;
        let is_tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let is_bare = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let (Some(host), Some(port), true) = (url.host_str(), url.port_or_known_default(), is_bare)
        else {
            return Err(wrong());
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { is_tls, host, port })
    }
}

/// What decides which caches are those of this house.
#[derive(Debug, Clone)]
pub(super) struct House {
    pub(super) fixed: Option<Fixed>,
    pub(super) joined: Option<Joined>,
    /// Plain HTTP with whoever announces itself.
    pub(super) plain: bool,
    /// The fingerprints of the pinned CAs.
    pub(super) pins: Vec<[u8; 32]>,
    pub(super) store_dir: String,
}

impl House {
    /// Whether somebody may count who announces itself: else nobody waits for announcements.
    pub(super) fn may_find(&self) -> bool {
        let is_local = |fixed: &Fixed| fixed.host.to_ascii_lowercase().ends_with(".local");
        match &self.fixed {
            Some(fixed) => is_local(fixed),
            None => self.plain || self.joined.is_some() || !self.pins.is_empty(),
        }
    }

    /// All caches that may be asked, the best first.
    pub(super) fn places(&self, announced: &[Announced]) -> Vec<Place> {
        let known = || announced.iter().filter(|it| it.store_dir == self.store_dir);
        if let Some(fixed) = &self.fixed {
            return vec![self.fixed_place(fixed, known())];
        }
        let own = self.joined.as_ref().map(|joined| self.joined_place(joined, known()));
        let mut places: Vec<Place> = own.into_iter().collect();
        for found in known().filter(|found| !found.addresses.is_empty()) {
            let is_known = places.iter().any(|place| place.host == local(&found.name));
            let pinned = found.ca_sha256.is_some_and(|sum| self.pins.contains(&sum));
            let (port, is_tls) = match (found.tls_port.filter(|_| pinned), self.plain) {
                (_, true) => (found.port, false),
                (Some(port), false) => (port, true),
                (None, false) => continue,
            };
            if !is_known {
                places.push(Place {
                    host: local(&found.name),
                    port,
                    is_tls,
                    addresses: sorted(found.addresses.clone()),
                    is_chosen: false,
                });
            }
        }
        places
    }

    fn fixed_place<'a>(
        &self,
        fixed: &Fixed,
        announced: impl Iterator<Item = &'a Announced>,
    ) -> Place {
        let addresses = match fixed.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.addresses_of(&fixed.host, announced),
        };
        let Fixed { is_tls, host, port } = fixed.clone();
        Place { host, port, is_tls, addresses, is_chosen: true }
    }

    fn joined_place<'a>(
        &self,
        joined: &Joined,
        announced: impl Iterator<Item = &'a Announced>,
    ) -> Place {
        let host = local(&joined.name);
        let announced: Vec<&Announced> = announced.collect();
        // Ports move with a new configuration of the cache, and are announced anew.
        let now = announced.iter().find(|found| local(&found.name) == host);
        let tls_port = joined.tls_port.filter(|_| !self.plain);
        let port = match tls_port {
            Some(port) => now.and_then(|found| found.tls_port).unwrap_or(port),
            None => now.map_or(joined.port, |found| found.port),
        };
        let addresses = self.addresses_of(&host, announced.into_iter());
        Place { host, port, is_tls: tls_port.is_some(), addresses, is_chosen: true }
    }

    /// What is announced for a name, else where it was when it was joined.
    fn addresses_of<'a>(
        &self,
        host: &str,
        mut announced: impl Iterator<Item = &'a Announced>,
    ) -> Vec<IpAddr> {
        let is = |name: &str| host.eq_ignore_ascii_case(&local(name));
        if let Some(found) = announced.find(|found| is(&found.name)) {
            return sorted(found.addresses.clone());
        }
        let joined = self.joined.as_ref();
        let joined = joined.filter(|joined| is(&joined.name) || joined.host == host);
        joined.map(|joined| joined.addresses.clone()).unwrap_or_default()
    }
}

fn local(name: &str) -> String {
    format!("{name}.local")
}

/// An order that does not change from one announcement to the next.
fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house() -> House {
        let store_dir = "/nix/store".to_owned();
        House { fixed: None, joined: None, plain: false, pins: Vec::new(), store_dir }
    }

    fn joined() -> Joined {
        Joined {
            name: "snowberry".into(),
            host: "192.168.1.20".into(),
            port: 80,
            tls_port: Some(443),
            ca_file: Some("/ca.pem".into()),
            ca_sha256: Some([1; 32]),
            public_key: None,
            addresses: vec!["192.168.1.20".parse().unwrap()],
        }
    }

    fn announced(name: &str, ca: u8) -> Announced {
        Announced {
            name: name.into(),
            addresses: vec!["192.168.1.30".parse().unwrap()],
            port: 8080,
            tls_port: Some(8443),
            ca_sha256: Some([ca; 32]),
            store_dir: "/nix/store".into(),
        }
    }

    fn check(house: &House, announced: &[Announced], wanted: &[&str]) {
        let places = house.places(announced);
        let shown: Vec<String> = places
            .iter()
            .map(|place| {
                let scheme = if place.is_tls { "https" } else { "http" };
                let addresses: Vec<String> =
                    place.addresses.iter().map(ToString::to_string).collect();
                format!("{scheme} {}:{} {}", place.host, place.port, addresses.join(","))
            })
            .collect();
        assert_eq!(shown, wanted);
    }

    #[test]
    fn without_a_join_only_plain_finds_anybody() {
        check(&house(), &[announced("snowberry", 1)], &[]);
        let plain = House { plain: true, ..house() };
        let found = [announced("snowberry", 1), announced("snowberry-2", 2)];
        let wanted =
            ["http snowberry.local:8080 192.168.1.30", "http snowberry-2.local:8080 192.168.1.30"];
        check(&plain, &found, &wanted);
        assert!(plain.places(&found).iter().all(|place| !place.is_chosen));
    }

    #[test]
    fn what_was_joined_is_where_it_was_or_where_it_says_now() {
        let house = House { joined: Some(joined()), pins: vec![[1; 32]], ..house() };
        check(&house, &[], &["https snowberry.local:443 192.168.1.20"]);
        let moved = [announced("snowberry", 1)];
        check(&house, &moved, &["https snowberry.local:8443 192.168.1.30"]);
        // A stranger with another CA is none of the house, one with the same is.
        check(&house, &[announced("x", 2)], &["https snowberry.local:443 192.168.1.20"]);
        let two = ["https snowberry.local:443 192.168.1.20", "https x.local:8443 192.168.1.30"];
        check(&house, &[announced("x", 1)], &two);
    }

    #[test]
    fn a_cache_of_another_store_directory_does_not_count() {
        let other = Announced { store_dir: "/gnu/store".into(), ..announced("snowberry", 1) };
        check(&House { plain: true, ..house() }, &[other], &[]);
    }

    #[test]
    fn a_fixed_cache_is_the_only_one() {
        let fixed = |text: &str| House { fixed: Some(Fixed::parse(text).unwrap()), ..house() };
        let found = [announced("snowberry", 1)];
        check(&fixed("http://192.168.1.7"), &found, &["http 192.168.1.7:80 192.168.1.7"]);
        check(&fixed("https://[fd00::7]:1/"), &found, &["https fd00::7:1 fd00::7"]);
        let named = ["https snowberry.local:443 192.168.1.30"];
        check(&fixed("https://snowberry.local"), &found, &named);
        check(&fixed("https://pi.lan"), &found, &["https pi.lan:443 "]);
    }

    #[test]
    fn only_a_bare_url_is_a_cache() {
        for text in ["ftp://x", "http://", "x", "http://x/push", "http://a:b@x", "http://x?y"] {
            assert!(Fixed::parse(text).is_err(), "{text}");
        }
    }
}
