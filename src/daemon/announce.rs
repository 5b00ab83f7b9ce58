//! Says to the house where this cache is, for as long as the daemon runs.

use std::error::Error;
use std::net::SocketAddr;

use tracing::warn;

use crate::config::Config;
use crate::daemon::OwnKeys;
use crate::http::{self, tls::Identity};
use crate::mdns::{Announced, Announcer};

/// `None` when it cannot be said: the cache serves who knows its address all the same.
pub(super) fn start(
    config: &Config,
    (plain, tls): (&[SocketAddr], &[SocketAddr]),
    keys: &OwnKeys,
    secured: Option<&(Identity, u16)>,
) -> Option<Announcer> {
    let reachable = plain.iter().find(|address| !address.ip().to_canonical().is_loopback());
    let announced = Announced {
        name: config.name.clone(),
        port: reachable.or(plain.first())?.port(),
        tls_port: secured.map(|(_, port)| *port),
        ca_sha256: secured.and_then(|(identity, _)| identity.ca_sha256()),
        public_key: keys.public().first().map(ToString::to_string),
        store_dir: config.store_dir.as_str().to_owned(),
        priority: http::PRIORITY,
    };
    let told = Announcer::start(&config.mdns, announced, &[plain, tls].concat());
    told.inspect_err(|error| {
        warn!(error = error as &dyn Error, "the house is not told where this cache is");
    })
    .ok()
}
