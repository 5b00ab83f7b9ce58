//! The life of the writer's thread: the store is opened, written, and opened again when it was lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::Command;
use super::open::{self, Opened};
use super::queue::Popped;
use super::shared::{Shared, sentence};
use super::writer::Writer;
use super::{Error, lock};

/// The first wait before the store is opened again, doubled with each failure ...
const REOPEN_FIRST: Duration = Duration::from_secs(1);

/// ... up to this: a disk that is plugged in again is found within a minute.
const REOPEN_MAX: Duration = Duration::from_mins(1);

/// How a session ended.
pub(super) enum End {
    Closed,
    Lost(Arc<str>),
}

/// The thread's life: open, run, and again.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut wait = REOPEN_FIRST;
    loop {
        let reason = match catch_unwind(AssertUnwindSafe(|| open::open(shared))) {
            Ok(Ok(opened)) => {
                let since = Instant::now();
                let ended = live(shared, opened);
                // One that is lost as soon as it is open is no better than one that does not open.
                if since.elapsed() > REOPEN_MAX {
                    wait = REOPEN_FIRST;
                }
                match ended {
                    End::Closed => break,
                    End::Lost(reason) => reason,
                }
            }
            Ok(Err(fault)) => sentence(&fault),
            Err(_panic) => "opening the store failed badly; the log says more".into(),
        };
        tracing::error!(%reason, retry_s = wait.as_secs(), "store is degraded");
        shared.degraded(reason.clone());
        if !rest(shared, wait, &reason) {
            break;
        }
        wait = (wait * 2).min(REOPEN_MAX);
    }
    shared.closed();
    shared.commands.close();
    while let Popped::Item(command) = shared.commands.pop(Some(Duration::ZERO)) {
        refuse(command, Error::Closing);
    }
    shared.index_jobs.close();
    shared.row_jobs.close();
}

fn refuse(command: Command, error: Error) {
    match command {
        Command::In(_, act) => act.refuse(error),
        Command::Lost { .. } | Command::Close => {}
    }
}

/// Waits for the next attempt, refusing what is asked meanwhile. False: it is the end.
fn rest(shared: &Shared, wait: Duration, reason: &Arc<str>) -> bool {
    let until = Instant::now() + wait;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match shared.commands.pop(Some(left)) {
            Popped::Item(Command::Close) | Popped::Closed => return false,
            Popped::Item(command) => refuse(command, Error::Degraded(reason.clone())),
            Popped::TimedOut => return true,
        }
    }
}

/// One session, from its opening to its end; a panic is a failure of the disk.
fn live(shared: &Arc<Shared>, opened: Opened) -> End {
    let session = opened.session.clone();
    let mut writer = Writer::new(shared.clone(), opened);
    writer.observe_disk();
    shared.history.opened(&session.index);
    shared.opened(session.clone());
    let ended = catch_unwind(AssertUnwindSafe(|| writer.run()));
    session.end();
    let end = match ended {
        Ok(Ok(End::Closed)) => End::Closed,
        Ok(Ok(End::Lost(reason))) => End::Lost(reason),
        Ok(Err(fault)) => End::Lost(sentence(&fault)),
        Err(_panic) => End::Lost("the writer of the store failed badly; the log says more".into()),
    };
    let reason: Arc<str> = match &end {
        End::Closed => {
            shared.closed();
            "the store is closing".into()
        }
        End::Lost(reason) => {
            shared.degraded(reason.clone());
            reason.clone()
        }
    };
    let fills: Vec<_> = lock(&session.fills).drain().collect();
    for (_, fill) in fills {
        fill.lost(reason.clone());
    }
    writer.refuse_all(&reason);
    session.segments.close_all();
    if let Err(fault) = session.index.close() {
        tracing::warn!(fault = %sentence(&fault), "index did not close cleanly");
    }
    end
}
