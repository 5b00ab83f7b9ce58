//! `serve`: the daemon, with signals, logs and the sockets that systemd hands over.

use std::net::TcpListener;

use anyhow::Context;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::{ConfigArgs, Ended, log, runtime};
use crate::daemon::{self, Given, Reread};
use crate::systemd;

/// Two: narinfos are answered from memory, and what takes time runs on other threads. More would
/// take the cores of a Pi from its codecs, one alone would wait behind a slow TLS handshake.
const WORKER_THREADS: usize = 2;

/// Threads for codecs and name resolution. What they hold in memory is bounded by permits; this
/// only bounds their stacks.
const BLOCKING_THREADS_MAX: usize = 128;

/// `FileDescriptorName=` of the sockets on which TLS is spoken.
const TLS_SOCKET_NAME: &str = "https";

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<Ended> {
    let config = args.load()?;
    log::start()?;
    // Before the runtime: it changes the environment, which is sound on one thread only.
    let sockets = systemd::inherited_by_name().context("take over inherited sockets")?;
    let mut builder = Builder::new_multi_thread();
    builder
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("snowberry");
    let runtime = runtime::started(&mut builder)?;
    let stop = CancellationToken::new();
    let (tls_sockets, sockets) = split(sockets);
    let again = args.clone();
    let reread: Reread = Box::new(move || Ok(again.load()?));
    let given = Given { reread: Some(reread), disk: None, sockets, tls_sockets };
    let ended = runtime::wait(&runtime, async {
        let daemon = daemon::run(config, given, stop.clone(), drop);
        tokio::select! {
            ended = Box::pin(daemon) => ended,
            signals = daemon::second_signal(stop.clone()) => {
                signals.and(Err(anyhow::anyhow!("ended at once by a second signal")))
            }
        }
    });
    // A codec or a resolver that still runs must not hold up the end.
    runtime.shutdown_background();
    ended.map(|()| Ended::Well)
}

/// Those for TLS, which the unit names so, and the others.
fn split(sockets: Vec<(String, TcpListener)>) -> (Vec<TcpListener>, Vec<TcpListener>) {
    let (tls, plain): (Vec<_>, Vec<_>) =
        sockets.into_iter().partition(|(name, _)| name == TLS_SOCKET_NAME);
    let bare = |sockets: Vec<(String, TcpListener)>| {
        sockets.into_iter().map(|(_, socket)| socket).collect()
    };
    (bare(tls), bare(plain))
}
