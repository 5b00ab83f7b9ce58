//! Logs: one event a line on stderr, as plain as the reader wants them.

use std::io::{self, IsTerminal as _};

use anyhow::Context;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging; `$SNOWBERRY_LOG` is the filter. The journal keeps time by itself and shows
/// colours as garbage.
pub(super) fn start() -> anyhow::Result<()> {
    let filter = match std::env::var("SNOWBERRY_LOG") {
        Ok(filter) if !filter.is_empty() => {
            filter.parse().with_context(|| format!("SNOWBERRY_LOG is {filter:?}"))?
        }
        Ok(_) | Err(_) => Targets::new().with_default(LevelFilter::INFO),
    };
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let colours = !in_journal
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colours);
    let lines = if in_journal { lines.without_time().boxed() } else { lines.boxed() };
    let started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    started.context("start logging")
}
