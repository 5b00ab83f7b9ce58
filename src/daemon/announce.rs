//! Says to the house where this cache is, for as long as the daemon runs.

use std::error::Error;
use std::net::SocketAddr;

use tracing::warn;

use crate::config::Config;
use crate::daemon::OwnKeys;
use crate::http;
use crate::mdns::{Announced, Announcer};

/// `plain` and `tls` are where it is asked, `tls` with the SHA-256 of the CA. `None` when it cannot
/// be said: the cache serves who knows its address all the same.
pub(super) fn start(
    config: &Config,
    (plain, tls): (&[SocketAddr], Option<(u16, Option<[u8; 32]>)>),
    listening: &[SocketAddr],
    keys: &OwnKeys,
) -> Option<Announcer> {
    let reachable = plain.iter().find(|address| !address.ip().to_canonical().is_loopback());
    let announced = Announced {
        name: config.name.clone(),
        port: reachable.or(plain.first())?.port(),
        tls_port: tls.map(|(port, _)| port),
        ca_sha256: tls.and_then(|(_, ca)| ca),
        public_key: keys.public().first().map(ToString::to_string),
        store_dir: config.store_dir.as_str().to_owned(),
        priority: http::PRIORITY,
    };
    let told = Announcer::start(&config.mdns, announced, listening);
    told.inspect_err(|error| {
        warn!(error = error as &dyn Error, "the house is not told where this cache is");
    })
    .ok()
}
