//! The TLS side of the daemon: its sockets, its identity, and the task that keeps the certificate
//! right.

use std::error::Error as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::listen::listen;
use super::{KEY_WAIT, names};
use crate::config::Config;
use crate::http::tls::{CaState, Change, Error, Identity, ca_state};
use crate::mdns;
use crate::store::{self, Store};

/// How often names, addresses and the end of the certificate are looked at, and files of the
/// configuration for a change: a new address serves https ten seconds later at most. A look
/// costs microseconds and reads no disk (files are in the page cache).
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Where TLS is spoken, and by whom.
pub(super) struct Tls {
    pub(super) listeners: Vec<TcpListener>,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) identity: Identity,
}

impl Tls {
    /// Who is shown, and the port where.
    pub(super) fn shown(&self) -> Option<(Identity, u16)> {
        Some((self.identity.clone(), self.addresses.first()?.port()))
    }
}

/// The sockets that were handed over and the configured ones; `None` without any: no TLS.
pub(super) async fn open(
    config: &Config,
    handed: Vec<std::net::TcpListener>,
) -> anyhow::Result<Option<Tls>> {
    if config.tls.listen.is_empty() && handed.is_empty() {
        return Ok(None);
    }
    let (listeners, addresses) = listen(Some(&config.tls.listen), handed).await?;
    let identity = match &config.tls.files {
        Some(files) => Identity::of_files(&files.certificate, &files.key),
        None => Identity::own(&config.state_dir),
    };
    Ok(Some(Tls { listeners, addresses, identity }))
}

/// Looks after the certificate: at once, then again and again, and when the cache gets another
/// label on the network.
pub(super) struct Keeper {
    identity: Identity,
    store: Store,
    name: String,
    names: Vec<String>,
    chosen_interfaces: mdns::Config,
    label: Option<watch::Receiver<String>>,
    /// Whether one of our own is still to be made.
    has_no_ca: bool,
    told: Option<String>,
}

/// The first look, which the first clients wait for: at a first start for the store too, because no CA
/// is made without it, and what is announced to the house has the CA in it.
pub(super) async fn first_look(keeper: Option<Keeper>) -> Option<Keeper> {
    let mut keeper = keeper?;
    if keeper.has_no_ca {
        // Whatever comes of it, the look tells.
        drop(tokio::time::timeout(KEY_WAIT, keeper.store.first_opened()).await);
    }
    keeper.look().await;
    Some(keeper)
}

impl Keeper {
    pub(super) fn new(identity: &Identity, store: &Store, config: &Config) -> Self {
        Self {
            identity: identity.clone(),
            store: store.clone(),
            name: config.name.clone(),
            names: config.names.clone(),
            chosen_interfaces: config.mdns.clone(),
            label: None,
            has_no_ca: config.tls.files.is_none()
                && matches!(ca_state(&config.state_dir), Ok(CaState::NotYet)),
            told: None,
        }
    }

    /// Has the label that the cache takes on the network in its certificates.
    pub(super) fn following(self, label: Option<watch::Receiver<String>>) -> Self {
        Self { label, ..self }
    }

    /// One look. Whatever is wrong is told and no reason to end: plain HTTP goes on.
    pub(super) async fn look(&mut self) {
        let label = self.label.as_mut().map(|label| label.borrow_and_update().clone());
        let (identity, name, more) = (self.identity.clone(), self.name.clone(), self.names.clone());
        let chosen = self.chosen_interfaces.clone();
        let may_make_ca = matches!(self.store.state(), store::State::Open);
        let looked = tokio::task::spawn_blocking(move || {
            let names = names::of_cache(label.as_deref(), &name, &more, &chosen);
            identity.refresh(&names, may_make_ca, SystemTime::now())
        });
        match looked.await.context("look at the certificate").map_err(|error| format!("{error:#}"))
        {
            Ok(Ok(change)) => self.tell_change(change),
            Ok(Err(Error::NotNow)) => {
                if self.is_new("not now") {
                    warn!("no CA is made while the store is not open, it will be tried again");
                }
            }
            Ok(Err(failed)) => {
                let mut text = failed.to_string();
                let mut cause = failed.source();
                while let Some(source) = cause {
                    text = format!("{text}: {source}");
                    cause = source.source();
                }
                self.tell_trouble(&text);
            }
            Err(panicked) => self.tell_trouble(&panicked),
        }
    }

    /// Until stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut may_change = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
                changed = change(&mut self.label), if may_change => may_change = changed,
            }
            self.look().await;
        }
    }

    fn tell_change(&mut self, change: Change) {
        let ca = self.identity.ca().map(|ca| ca.to_string()).unwrap_or_default();
        match change {
            Change::None => return,
            Change::Loaded => info!(ca, "certificate loaded"),
            Change::Made => info!(ca, "certificate made"),
        }
        self.told = None;
    }

    fn tell_trouble(&mut self, trouble: &str) {
        if self.is_new(trouble) {
            error!(error = trouble, "the certificate of this cache cannot be renewed or read");
        }
    }

    /// A trouble is told once, and again only when it is another one.
    fn is_new(&mut self, trouble: &str) -> bool {
        let is_new = self.told.as_deref() != Some(trouble);
        self.told = Some(trouble.to_owned());
        is_new
    }
}

/// Waits for another label; `false` when there will be none.
async fn change(label: &mut Option<watch::Receiver<String>>) -> bool {
    match label {
        Some(label) => label.changed().await.is_ok(),
        None => false,
    }
}
