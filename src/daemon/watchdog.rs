//! Signs of life for systemd: given only while the cache does what it is there for. Connections are
//! taken and answered, and the store's writer moves, or is declared degraded. The unit's
//! `WatchdogSec=` is minutes, because cards stand still for tens of seconds and are well again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::near;
use crate::http::Crowd;
use crate::store::Store;
use crate::systemd;

/// Looks within the time after which systemd wants a sign of life: what is wrong is in the log some
/// times before the service is started again.
const LOOKS: u32 = 6;

/// What a question of our own to this machine may take, which is busy at its worst.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// What is asked: an answer that needs no store. On a socket with TLS it is an error of the client,
/// and an answer as good as any.
const QUESTION: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// What is watched.
pub(super) struct Watched {
    /// An address on which connections are taken.
    pub(super) address: Option<SocketAddr>,
    pub(super) crowd: Crowd,
    pub(super) store: Store,
}

/// Looks after all of it until stopped. `allowed` is after how long without a sign of life the
/// supervisor starts the service again.
pub(super) async fn run(
    watched: Watched,
    allowed: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let every = allowed / LOOKS;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match watched.look(every).await {
            Ok(()) => systemd::alive(),
            Err(why) => warn!(%why, "no sign of life for the watchdog"),
        }
    }
    Ok(())
}

/// Why no sign of life is given.
#[derive(Debug, thiserror::Error)]
pub(super) enum Still {
    /// The writer has been at one thing since the last look.
    #[error("the store's writer has not moved for {} s", .0.as_secs())]
    Writer(Duration),
    /// Nothing was said to a connection of our own.
    #[error("connections are not answered: {0}")]
    Connections(io::Error),
}

impl Watched {
    /// Looks once. A writer that stands still for longer than `every` does not move.
    pub(super) async fn look(&self, every: Duration) -> Result<(), Still> {
        let stands_for = self.store.writer_stands_for();
        if stands_for > every {
            return Err(Still::Writer(stands_for));
        }
        let Some(address) = self.address else { return Ok(()) };
        let asked = timeout(ANSWER_WAIT, ask(near(address))).await;
        match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(()) => Ok(()),
            // All places are taken: clients keep it busy, and a start would only cut them.
            Err(_) if self.crowd.is_full() => Ok(()),
            Err(error) => Err(Still::Connections(error)),
        }
    }
}

/// Whether a connection is taken: that it is closed without a word says so too.
async fn ask(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(QUESTION).await?;
    match stream.read(&mut [0; 64]).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tempfile::TempDir;
    use tokio::net::TcpListener;

    use super::*;
    use crate::metrics::Metrics;
    use crate::store::disk::Folder;
    use crate::store::disk::fault::{Call, Faulty};
    use crate::store::{self, State};

    const EVERY: Duration = Duration::from_millis(100);

    /// For what comes soon, on a busy machine.
    const WAIT: Duration = Duration::from_secs(20);

    struct World {
        disk: Faulty,
        watched: Watched,
        _folder: TempDir,
    }

    async fn world(address: Option<SocketAddr>) -> World {
        let folder = TempDir::new().unwrap();
        let disk = Faulty::new(Folder { path: folder.path().to_owned() });
        let config = store::Config::default();
        let store = Store::start(config, Arc::new(disk.clone()), Metrics::new()).unwrap();
        assert_eq!(store.first_opened().await, State::Open);
        World {
            disk,
            watched: Watched { address, crowd: Crowd::default(), store },
            _folder: folder,
        }
    }

    #[tokio::test]
    async fn a_writer_that_waits_is_alive_and_one_that_stands_still_is_not() {
        let world = world(None).await;
        let watched = &world.watched;
        tokio::time::sleep(2 * EVERY).await;
        watched.look(EVERY).await.expect("a writer with nothing to do");
        world.disk.shut(Call::Sync);
        let store = watched.store.clone();
        let mut asking = tokio::task::JoinSet::new();
        let body = bytes::Bytes::from_static(b"x");
        watched.store.keep_document("log/x", body, store::Origin::Ours).await.unwrap();
        asking.spawn(async move { store.flush().await });
        while world.disk.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(2 * EVERY).await;
        let still = watched.look(EVERY).await.expect_err("a writer that stands still");
        assert!(matches!(still, Still::Writer(stood) if stood > EVERY), "{still}");
        world.disk.well();
        asking.join_next().await.unwrap().unwrap().unwrap();
        // The answer came before the writer was done with all of it.
        let moves_on = async {
            while watched.look(EVERY).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WAIT, moves_on).await.expect("a writer that moved on");
        watched.store.close().await;
    }

    #[tokio::test]
    async fn a_degraded_store_is_no_reason_to_start_again() {
        let world = world(None).await;
        let store = &world.watched.store;
        world.disk.pull_plug();
        let is_lost = async {
            while store.state() == State::Open {
                let body = bytes::Bytes::from_static(b"x");
                drop(store.keep_document("log/x", body, store::Origin::Ours).await);
                drop(store.flush().await);
            }
        };
        tokio::time::timeout(WAIT, is_lost).await.expect("a store that is lost");
        world.watched.look(EVERY).await.expect("a degraded store");
        world.watched.store.close().await;
    }

    #[tokio::test]
    async fn connections_that_nobody_answers_are_no_life() {
        // What the system takes into its queue nobody answers.
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let world = world(Some(listener.local_addr().unwrap())).await;
        tokio::time::pause();
        let still = world.watched.look(EVERY).await.expect_err("a listener that is left alone");
        tokio::time::resume();
        assert!(matches!(still, Still::Connections(_)), "{still}");
        let mut answering = tokio::task::JoinSet::new();
        answering.spawn(async move {
            loop {
                drop(listener.accept().await.unwrap());
            }
        });
        world.watched.look(EVERY).await.expect("connections that are taken");
        world.watched.store.close().await;
    }
}
