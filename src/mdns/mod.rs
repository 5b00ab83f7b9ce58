//! A cache is found by name in the house: announced as `<name>.local` and `_nix-cache._tcp.local`,
//! and browsed for. mdns-sd speaks the protocol, and only this folder names it. Knows nothing of
//! HTTP, keys or certificates beyond what it is told to say.

mod announce;
mod browse;
mod interfaces;
mod names;
mod speaker;
mod txt;

use std::net::IpAddr;

use serde::Deserialize;

pub use announce::Announcer;
pub use browse::Browser;
pub use interfaces::{PATTERN_WILDCARD, is_of_the_house};

/// The type of the service, as DNS-SD writes it.
pub const SERVICE_TYPE: &str = "_nix-cache._tcp.local.";

/// The `[mdns]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Whether mDNS is spoken at all.
    pub enabled: bool,
    /// Interfaces by name, with `*` at the end for any rest; `None` is every one of the LAN.
    pub interfaces: Option<Vec<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, interfaces: None }
    }
}

/// Why mDNS is not spoken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A thread or what it needs cannot be had.
    #[error("start a thread for mDNS")]
    Thread(#[source] std::io::Error),
    /// The speaker of the protocol refuses.
    #[error("speak mDNS")]
    Speak(#[source] mdns_sd::Error),
}

/// What a cache says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The host label that is wanted, without `.local`.
    pub name: String,
    /// Where plain HTTP is served.
    pub port: u16,
    /// Where TLS is served, if at all.
    pub tls_port: Option<u16>,
    /// SHA-256 of the DER of the CA, with TLS.
    pub ca_sha256: Option<[u8; 32]>,
    /// The cache's own key as `NAME:BASE64`.
    pub public_key: Option<String>,
    /// Nix's store directory.
    pub store_dir: String,
    /// As in `nix-cache-info`.
    pub priority: u32,
}

/// A cache of the house, as it announces itself. Anybody in the house can say this: who is trusted
/// is decided by the CA that `join` saw, not by this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its host label, without `.local`.
    pub name: String,
    /// Its addresses, IPv4 first, without IPv6 link-local ones.
    pub addresses: Vec<IpAddr>,
    /// Where it serves plain HTTP.
    pub port: u16,
    /// Where it serves TLS.
    pub tls_port: Option<u16>,
    /// SHA-256 of the DER of its CA.
    pub ca_sha256: Option<[u8; 32]>,
    /// Its own key as `NAME:BASE64`.
    pub public_key: Option<String>,
    /// Its store directory.
    pub store_dir: String,
    /// As in its `nix-cache-info`.
    pub priority: u32,
}
