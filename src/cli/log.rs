//! Logs: one event a line on stderr, as plain as the reader wants them.

use std::io::{self, IsTerminal as _};

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

/// Starts logging; `$SNOWBERRY_LOG` is the filter. The journal keeps time by itself and shows
/// colours as garbage.
pub(super) fn start() -> anyhow::Result<()> {
    let filter = match std::env::var("SNOWBERRY_LOG") {
        Ok(filter) if !filter.is_empty() => {
            EnvFilter::try_new(&filter).with_context(|| format!("SNOWBERRY_LOG is {filter:?}"))?
        }
        Ok(_) | Err(_) => EnvFilter::new("info"),
    };
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let colours = !in_journal
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && io::stderr().is_terminal();
    let lines = SubscriberBuilder::default()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours);
    let started = if in_journal { lines.without_time().try_init() } else { lines.try_init() };
    started.map_err(anyhow::Error::from_boxed).context("start logging")
}
