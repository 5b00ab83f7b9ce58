//! Waits for news in the spool folder.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::folder::Folder;

/// Room for an event with the longest name, and then some.
const EVENTS_LEN: usize = 4096;

/// The kernel's word of what happens in a folder; without it, silence.
pub(super) struct Watch {
    events: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    /// Without a watch the drainer looks by itself after a while: a system may have no more.
    pub(super) fn of(folder: &Path) -> Self {
        let events = Self::open(folder);
        if let Err(error) = &events {
            warn!(folder = %folder.display(), error = error as &dyn std::error::Error,
                "the spool cannot be watched, it is looked at now and then");
        }
        Self { events: events.ok() }
    }

    /// Whether [`Self::news`] will come.
    pub(super) fn sees(&self) -> bool {
        self.events.is_some()
    }

    fn open(folder: &Path) -> std::io::Result<AsyncFd<OwnedFd>> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        inotify::add_watch(&events, folder, flags)?;
        #[allow(
            deprecated,
            reason = "unsound only for what may change its descriptor, not OwnedFd"
        )]
        AsyncFd::new(events)
    }

    /// Returns when an entry or an ask for a retry has come since it returned last.
    pub(super) async fn news(&mut self) {
        let Some(events) = &mut self.events else { return std::future::pending().await };
        loop {
            let read = match events.readable_mut().await {
                Ok(mut ready) => {
                    let read = drain(ready.get_inner());
                    ready.clear_ready();
                    read
                }
                Err(error) => Err(error),
            };
            match read {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "the spool cannot be watched any more, it is looked at now and then"
                    );
                    self.events = None;
                    return;
                }
            }
        }
    }
}

/// Reads all events that are there: whether one of them is news.
fn drain(events: &OwnedFd) -> std::io::Result<bool> {
    let mut room = [MaybeUninit::uninit(); EVENTS_LEN];
    let mut reader = inotify::Reader::new(events, &mut room);
    let mut is_news = false;
    loop {
        match reader.next() {
            // An event without a name says that events were lost.
            Ok(event) => {
                is_news |= event.file_name().is_none_or(|name| Folder::is_news(name.to_bytes()));
            }
            Err(Errno::AGAIN) => return Ok(is_news),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::spool::kit;

    #[tokio::test]
    async fn an_entry_is_news_and_our_own_files_are_not() {
        let (top, config) = kit::spool();
        let folder = Folder::new(&config);
        folder.make().unwrap();
        let mut watch = Watch::of(folder.path());
        assert!(watch.sees());
        for name in ["status.json", "lock", "cache"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(timeout(Duration::from_millis(50), watch.news()).await.is_err());
        folder.note(&kit::entry(1_795_000_000, "a")).unwrap();
        timeout(Duration::from_secs(5), watch.news()).await.unwrap();
        assert!(timeout(Duration::from_millis(50), watch.news()).await.is_err());
        folder.ask_retry().unwrap();
        timeout(Duration::from_secs(5), watch.news()).await.unwrap();
        drop(top);
    }
}
