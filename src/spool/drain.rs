//! The drainer's life: one at a time for a folder, awake when something comes, until it is to stop.

use std::fs::File;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::drainer::{Drainer, LOOK_WAIT};
use super::folder::Folder;
use super::watch::Watch;
use super::{Config, Error, with_causes};

/// How often a drainer that waits for another one asks whether that has ended.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// How often a `status` that looks may get in the way of taking the lock, each for an instant.
const LOCK_TRIES: usize = 5;

/// Between those.
const LOCK_REST: Duration = Duration::from_millis(100);

/// The same where the kernel does not tell: a listing of one small folder.
const POLL_WAIT: Duration = Duration::from_secs(15);

/// The drainer of one spool folder.
#[derive(Debug)]
pub struct Spool {
    config: Config,
    there: Option<watch::Receiver<bool>>,
}

/// What a drainer that ran once left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// Nothing waits.
    Nothing,
    /// So many paths wait, and perhaps why.
    Waiting(usize, Option<String>),
    /// So many paths were dropped, and nothing else waits.
    Dropped(u64),
    /// Another one drains.
    ToAnother,
}

impl Spool {
    /// Makes the folder unless it is there.
    pub fn open(config: Config) -> Result<Self, Error> {
        Folder::new(&config).make()?;
        Ok(Self { config, there: None })
    }

    /// Drains only while this is true, and at once when it becomes true: who knows whether the
    /// cache is there spares many tries.
    #[must_use]
    pub fn while_there(mut self, there: watch::Receiver<bool>) -> Self {
        self.there = Some(there);
        self
    }

    /// Drains until it is to stop, whatever goes wrong.
    pub async fn run(self, stop: CancellationToken) {
        let Self { config, mut there } = self;
        let Some(_lock) = lock_in_time(&Folder::new(&config), &stop).await else { return };
        let mut news = Watch::of(&config.path);
        info!(spool = %config.path.display(), to = %config.to, "the spool is drained");
        let mut drainer = Drainer::new(config);
        while !stop.is_cancelled() {
            let is_there = there.as_mut().is_none_or(|there| *there.borrow_and_update());
            drainer.step(&stop, is_there).await;
            let rest = drainer.rest().min(if news.sees() { LOOK_WAIT } else { POLL_WAIT });
            let came = async {
                let told = match &mut there {
                    Some(there) => there.changed().await.is_ok(),
                    None => false,
                };
                // Whoever told it has ended: so will we.
                if !told {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(rest) => {}
                () = news.news() => {}
                () = came => drainer.hurry(),
            }
        }
    }

    /// Tries everything that waits once, whatever it rests for.
    pub async fn once(self, stop: &CancellationToken) -> Result<Left, Error> {
        let folder = Folder::new(&self.config);
        let Some(_lock) = lock(&folder).await? else { return Ok(Left::ToAnother) };
        let mut drainer = Drainer::new(self.config);
        drainer.hurry();
        let dropped_before = drainer.dropped_count();
        drainer.step(stop, true).await;
        let dropped = drainer.dropped_count() - dropped_before;
        Ok(match (folder.entries()?.len(), dropped) {
            (0, 0) => Left::Nothing,
            (0, dropped) => Left::Dropped(dropped),
            (waiting, _) => Left::Waiting(waiting, drainer.why()),
        })
    }
}

async fn lock(folder: &Folder) -> Result<Option<File>, Error> {
    for _ in 0..LOCK_TRIES {
        if let Some(lock) = folder.lock()? {
            return Ok(Some(lock));
        }
        sleep(LOCK_REST).await;
    }
    Ok(None)
}

/// The lock, once nobody else drains; `None` when it is to stop before.
async fn lock_in_time(folder: &Folder, stop: &CancellationToken) -> Option<File> {
    let mut is_told = false;
    loop {
        let told = match lock(folder).await {
            Ok(Some(lock)) => return Some(lock),
            Ok(None) => "another process drains it".to_owned(),
            Err(error) => with_causes(&error),
        };
        if !std::mem::replace(&mut is_told, true) {
            warn!(spool = %folder.path().display(), reason = %told, "the spool is not drained");
        }
        if timeout(LOCK_WAIT, stop.cancelled()).await.is_ok() {
            return None;
        }
    }
}
