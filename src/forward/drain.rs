//! The spool of this machine's builds, drained beside what Nix asks: through this very forwarder,
//! and only while the cache is there.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::hub::Hub;
use crate::spool::{self, Spool};

/// How often is looked whether there is a spool folder: the first build of a machine makes it.
const FOLDER_EVERY: Duration = Duration::from_secs(30);

/// How often the cache is looked for while builds wait and nobody asks: one probe, for a cache that
/// cannot announce itself.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Drains until it is to stop. `own` are the addresses of this forwarder.
pub(super) async fn run(
    hub: Arc<Hub>,
    config: spool::Config,
    own: Vec<SocketAddr>,
    stop: CancellationToken,
) {
    // Made by the hook, or by systemd: a machine that builds nothing has none.
    while !config.path.is_dir() {
        if stop.run_until_cancelled(tokio::time::sleep(FOLDER_EVERY)).await.is_none() {
            return;
        }
    }
    let opened = Spool::open(config.clone());
    let Ok(spool) = opened.inspect_err(|error| {
        warn!(error = error as &dyn StdError, "the spool cannot be used");
    }) else {
        return;
    };
    info!(path = %config.path.display(), to = %config.to, "draining the spool");
    if !is_own(&config.to.authority(), &own) {
        return spool.run(stop).await;
    }
    let spool = spool.while_there(hub.there());
    tokio::select! {
        () = spool.run(stop.clone()) => {}
        () = look(&hub, &config) => {}
    }
}

/// Whether an authority is one of these addresses.
fn is_own(authority: &str, own: &[SocketAddr]) -> bool {
    own.iter().any(|address| {
        authority == address.to_string() || authority == format!("localhost:{}", address.port())
    })
}

/// Has the cache looked for now and then, as long as something waits for it.
async fn look(hub: &Hub, config: &spool::Config) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let waits = spool::view(config).is_ok_and(|view| !view.entries.is_empty());
        if waits && !*hub.there().borrow() {
            hub.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_address_is_known_by_each_name() {
        let own = ["127.0.0.1:8501".parse().unwrap(), "[::1]:8501".parse().unwrap()];
        for authority in ["127.0.0.1:8501", "[::1]:8501", "localhost:8501"] {
            assert!(is_own(authority, &own), "{authority}");
        }
        for authority in ["127.0.0.1:8500", "snowberry.local", "localhost", "192.168.1.7:8501"] {
            assert!(!is_own(authority, &own), "{authority}");
        }
    }
}
