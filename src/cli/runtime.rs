//! Runtimes of commands. Whatever a command waits for, it waits through one function: a copy of
//! tokio's loop for each command is 4 KiB of program.

use std::pin::{Pin, pin};

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

/// A runtime of the command's own thread.
pub(super) fn one_thread() -> anyhow::Result<Runtime> {
    started(&mut Builder::new_current_thread())
}

/// The runtime of a builder that says how many threads.
pub(super) fn started(builder: &mut Builder) -> anyhow::Result<Runtime> {
    builder.enable_all().build().context("start the runtime")
}

/// Waits on `runtime` until the work has ended.
pub(super) fn wait<T>(runtime: &Runtime, work: impl Future<Output = T>) -> T {
    let mut ended = None;
    {
        let work: Pin<&mut dyn Future<Output = ()>> = pin!(async { ended = Some(work.await) });
        runtime.block_on(work);
    }
    ended.expect("the loop ends when the work has")
}

/// Waits for the work on a runtime that is there for it alone.
pub(super) fn alone<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(wait(&one_thread()?, work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_work_returns_is_returned() {
        let runtime = one_thread().unwrap();
        assert_eq!(
            wait(&runtime, async {
                tokio::task::yield_now().await;
                7
            }),
            7
        );
        assert_eq!(wait(&runtime, async { "again" }), "again");
        assert_eq!(alone(async { [1, 2] }).unwrap(), [1, 2]);
    }
}
