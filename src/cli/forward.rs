//! `forward`: the client's side, with signals, logs and the sockets that systemd hands over.

use anyhow::Context;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use super::{ConfigArgs, Ended, log, runtime};
use crate::config::{self, Surroundings};
use crate::{daemon, forward, systemd};

/// Names that are no mDNS names, and looks at the spool: a resolver that hangs leaves two for those.
const BLOCKING_THREADS_MAX: usize = 4;

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<Ended> {
    let mut surroundings = Surroundings::of_this_process();
    // The forwarder keeps no state: where a cache of its owner would is not asked.
    surroundings.home.get_or_insert_with(|| "/".into());
    let config = config::load(args.config.as_deref(), &args.set, &surroundings)?;
    log::start()?;
    // Before the runtime: it changes the environment, which is sound on one thread only.
    let sockets = systemd::inherited_sockets().context("take over inherited sockets")?;
    // One thread: it copies bytes between sockets, and each thread has its own heap and stack.
    let mut builder = Builder::new_current_thread();
    let runtime = runtime::started(builder.max_blocking_threads(BLOCKING_THREADS_MAX))?;
    let stop = CancellationToken::new();
    let ended = runtime::wait(&runtime, async {
        let forwarding = forward::run(config.forward, sockets, stop.clone());
        tokio::select! {
            ended = Box::pin(forwarding) => ended.map_err(anyhow::Error::from),
            signals = daemon::second_signal(stop.clone()) => {
                signals.and(Err(anyhow::anyhow!("ended at once by a second signal")))
            }
        }
    });
    // A resolver that still runs must not hold up the end.
    runtime.shutdown_background();
    ended.map(|()| Ended::Well)
}
