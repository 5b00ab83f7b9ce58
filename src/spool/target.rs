//! The `/push` side of a cache, where no upstream answers for it.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

/// Where paths are pushed to: `http(s)://HOST[:PORT]/.../push`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(Url);

/// Why a text is no such URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No URL at all.
    #[error("{0:?} is no URL")]
    NoUrl(String),
    /// Another scheme.
    #[error(
        "a cache is pushed to over http:// or https://; `nix copy` itself writes to the others"
    )]
    Scheme,
    /// A user or a password in it.
    #[error("a token in the URL would be seen by every user of this machine: give a token file")]
    Token,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let mut url = Url::parse(text).map_err(|_| TargetError::NoUrl(text.to_owned()))?;
        if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
            return Err(TargetError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetError::Token);
        }
        url.set_query(None);
        url.set_fragment(None);
        let path = url.path().trim_end_matches('/');
        let path = if path.ends_with("/push") { path.to_owned() } else { format!("{path}/push") };
        url.set_path(&path);
        Ok(Self(url))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Target {
    /// The path of the URL, which ends in `/push`.
    pub fn path(&self) -> &str {
        self.0.path()
    }

    /// The host as netrc has it: an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        let host = self.0.host_str().unwrap_or_default();
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// `HOST[:PORT]`, as a request names it.
    pub fn authority(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        match self.0.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// Host and port to connect to.
    pub(super) fn place(&self) -> (&str, u16) {
        (self.host(), self.0.port_or_known_default().unwrap_or(80))
    }

    /// Whether it is asked over plain http.
    pub fn is_plain(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// Whether it is reached as it is named: neither a resolver nor a proxy comes between.
    pub(super) fn is_direct(&self) -> bool {
        match self.0.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_written_to_below_push_and_its_url_shows_no_token() {
        let check = |url: &str, wanted: &str| {
            assert_eq!(url.parse::<Target>().unwrap().to_string(), wanted);
        };
        check("http://127.0.0.1:8500", "http://127.0.0.1:8500/push");
        check("http://snowberry.local/", "http://snowberry.local/push");
        check("https://h.example/push/?compression=xz", "https://h.example/push");
        check("https://h.example/cache", "https://h.example/cache/push");
        for wrong in ["s3://nix-cache", "file:///x", "h.example", "http://me:token@h.example"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn it_is_known_where_to_connect_and_what_netrc_calls_it() {
        let check = |url: &str, host: &str, authority: &str, port: u16, direct: bool| {
            let target: Target = url.parse().unwrap();
            assert_eq!((target.host(), target.authority().as_str()), (host, authority));
            assert_eq!((target.place(), target.is_direct()), ((host, port), direct), "{url}");
        };
        check("http://127.0.0.1:8501", "127.0.0.1", "127.0.0.1:8501", 8501, true);
        check("http://[::1]:8501/push", "::1", "[::1]:8501", 8501, true);
        check("http://localhost", "localhost", "localhost", 80, true);
        check("http://snowberry.local", "snowberry.local", "snowberry.local", 80, false);
        check("https://192.168.1.5", "192.168.1.5", "192.168.1.5", 443, false);
    }
}
