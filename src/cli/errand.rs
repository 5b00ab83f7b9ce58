//! Commands that a running cache is at for a while: paths go there as keys, and how far it is is
//! shown.

use std::time::{SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use serde_json::Value;

use super::admin::{self, Reach};
use super::paths::Named;
use super::progress::{At, Progress};
use super::runtime;
use crate::config::Config;

/// Gives it and returns what was done.
pub(super) fn run(
    config: &Config,
    target: &str,
    named: &[Named],
    quiet: bool,
) -> anyhow::Result<Value> {
    let runtime = runtime::one_thread()?;
    let keys: Vec<String> = named.iter().map(|(key, _)| key.to_string()).collect();
    let sent = Bytes::from(keys.join("\n"));
    let mut progress = Progress::new(quiet);
    let told = |told: &Value| progress.at(&At::of(told));
    runtime::wait(&runtime, admin::follow(config, Reach::Machine, (target, sent), told))
}

/// A number of an answer; 0 where it is missing, so that versions may differ.
pub(super) fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or_default()
}

/// Text of an answer.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A list of an answer.
pub(super) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Seconds since a moment.
pub(super) fn since(then_s: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    now.saturating_sub(then_s)
}

/// `1 path`, `2 paths`.
pub(super) fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}
