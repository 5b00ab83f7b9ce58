//! What clients see: sockets, routes, replies.

use std::{io, path::PathBuf, pin::pin, sync::Arc, time::Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::nix::StoreDir;
use crate::push::{Push, tokens::Tokens};

mod server;
mod h2;
mod lan;
mod peers;
mod stall;
mod answer;
mod route;
mod front;
mod host_rule;
mod auth;
mod upload;
mod public_keys;
mod narinfo;
mod nar;
mod range;
mod status;
mod troubles;
mod words;
mod civil;
mod appliance;
mod machine;
mod page;
mod figures;
mod history;
mod ledger;
mod clients;
mod reply;
mod refusal;
mod body;
mod admin;
mod admin_waiting;
mod admin_pins;
mod admin_evict;
mod admin_scrub;
mod admin_import;
mod long;
pub mod tls;

#[cfg(test)]
mod tests;

pub use admin::{Admin, AdminSocket, Reloaded};
pub use clients::Clients;
pub use front::PRIORITY;
pub use lan::{Prefix, PrefixError};
pub use public_keys::PublicKeys;

use answer::Desk;
use lan::Lan;
use server::{Door, Limits, Server};

pub use server::{CONNECTIONS_MAX, Crowd};
use tls::Identity;

/// What the server needs to know of itself; put together by the daemon.
pub struct Site {
    /// The cache that answers.
    pub cache: Cache,
    /// The write side.
    pub push: Push,
    /// Who may write.
    pub tokens: Arc<Tokens>,
    /// Whether a token is taken over plain HTTP from other machines than this one.
    pub push_plain: bool,
    /// Every figure.
    pub metrics: Metrics,
    /// The cache's name (`snowberry`).
    pub name: String,
    /// The host label that this cache has in the house, without `.local`; `None` where it says
    /// none. Another than `name` where that is another machine's.
    pub local_name: Option<watch::Receiver<String>>,
    /// The public halves of this cache's own keys.
    pub public_keys: PublicKeys,
    /// Nix's store directory.
    pub store_dir: StoreDir,
    /// Host names besides addresses, `localhost` and `*.local` under which the page may be asked.
    pub names: Vec<String>,
    /// Who the server is over TLS, and the port where, when TLS is spoken at all.
    pub tls: Option<(Identity, u16)>,
    /// The port of plain HTTP.
    pub plain_port: Option<u16>,
    /// Address prefixes that may ask besides the LAN's own (`203.0.113.0/24`, `2001:db8::/32`).
    pub allow: Vec<String>,
    /// Who asked, and what for.
    pub clients: Clients,
    /// Whether the page shows that.
    pub page_clients: bool,
    /// Where the parts of the appliance tell how they are; a folder that is missing elsewhere.
    pub notes: PathBuf,
    /// When the daemon started.
    pub started: Instant,
}

/// Where connections come.
#[derive(Debug, Default)]
pub struct Listeners {
    /// With plain HTTP.
    pub plain: Vec<TcpListener>,
    /// With TLS.
    pub tls: Vec<TcpListener>,
    /// How many there are.
    pub crowd: Crowd,
}

/// Serves until `stop` is cancelled, then drains: no new connections, running answers get at most
/// the drain deadline. Returns when all have ended; fails at once on an invalid `allow`.
pub async fn serve(
    listeners: Listeners,
    site: Arc<Site>,
    stop: CancellationToken,
) -> io::Result<()> {
    let lan = Lan::new(&site.allow)
        .map_err(|invalid| io::Error::new(io::ErrorKind::InvalidInput, invalid))?;
    let acceptor = site.tls.as_ref().map(|(identity, _)| identity.acceptor());
    let mut doors: Vec<Door> =
        listeners.plain.into_iter().map(|listener| Door { listener, tls: None }).collect();
    if acceptor.is_some() {
        let door = |listener| Door { listener, tls: acceptor.clone() };
        doors.extend(listeners.tls.into_iter().map(door));
    }
    let desk = Arc::new(Desk::new(site));
    let answering = Arc::clone(&desk);
    let answer = move |request, ends| {
        let desk = Arc::clone(&answering);
        async move { desk.answer(request, ends).await }
    };
    let limits = Limits::of(listeners.crowd);
    let watching = desk.watch(stop.clone());
    let mut serving = pin!(Server::new(lan, limits, answer, stop).run(doors));
    tokio::select! {
        served = &mut serving => return served,
        () = watching => {}
    }
    serving.await
}
