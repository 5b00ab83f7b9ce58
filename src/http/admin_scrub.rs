//! `POST /scrub[?repair=true]` on the admin socket, which takes long, and `GET /scrub`.

use std::error::Error as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tracing::info;

use super::admin::done;
use super::long::{Teller, going};
use super::reply::Reply;
use crate::cache::{Cache, ScrubError, ScrubIs, ScrubProgress, ScrubState, Unrepaired};

/// The scrub in status and commands. Names and units are a contract.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ScrubStatus {
    pub(super) state: &'static str,
    pub(super) checked_bytes: u64,
    pub(super) of_bytes: u64,
    pub(super) last_done_s: Option<u64>,
    pub(super) found: u64,
    pub(super) repaired: u64,
    /// NARs that were withdrawn for their bytes and are not here again, ...
    pub(super) unrepaired: u64,
    /// ... and some of them by their names.
    pub(super) unrepaired_paths: Vec<UnrepairedPath>,
}

/// A path whose NAR was withdrawn and could not be had again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct UnrepairedPath {
    pub(super) name: String,
    pub(super) since_s: u64,
}

impl From<ScrubState> for ScrubStatus {
    fn from(state: ScrubState) -> Self {
        let ScrubState { is, checked_bytes, of_bytes, last_done_s, found, repaired, .. } = state;
        let Unrepaired { count, named } = state.unrepaired;
        let path =
            |(name, since): (String, Duration)| UnrepairedPath { name, since_s: since.as_secs() };
        let state = match is {
            ScrubIs::Idle => "idle",
            ScrubIs::Running => "running",
            ScrubIs::Off => "off",
        };
        Self {
            state,
            checked_bytes,
            of_bytes,
            last_done_s,
            found,
            repaired,
            unrepaired: count,
            unrepaired_paths: named.into_iter().map(path).collect(),
        }
    }
}

/// How it is.
pub(super) fn state(cache: &Cache) -> Reply {
    done(&serde_json::to_value(ScrubStatus::from(cache.scrub_state())).unwrap_or_default())
}

/// Reads everything now.
pub(super) fn scrub(cache: &Cache, query: &str) -> Reply {
    let repairs = url::form_urlencoded::parse(query.as_bytes())
        .any(|(name, value)| name == "repair" && value == "true");
    let cache = cache.clone();
    going(move |teller| async move { run(&cache, repairs, teller).await })
}

async fn run(cache: &Cache, repairs: bool, teller: Teller) -> Result<Value, String> {
    info!(repairs, "told to read everything that is stored");
    let tell = |progress| teller.tell(words(progress));
    let found = Box::pin(cache.scrub(repairs, tell)).await.map_err(|error| sentence(&error))?;
    Ok(json!({
        "resumed": found.resumed,
        "checked": found.checked,
        "passed_over": found.passed_over,
        "found": found.found,
        "repaired": found.repaired,
        "unrepaired": found.unrepaired,
    }))
}

fn words(progress: ScrubProgress) -> Value {
    match progress {
        ScrubProgress::Index => json!({"what": "reading the index"}),
        ScrubProgress::Nars { done_bytes, of_bytes, found: 0 } => {
            json!({"what": "reading", "done_bytes": done_bytes, "of_bytes": of_bytes})
        }
        ScrubProgress::Nars { done_bytes, of_bytes, found } => {
            let what = format!("reading, {found} damaged");
            json!({"what": what, "done_bytes": done_bytes, "of_bytes": of_bytes})
        }
        ScrubProgress::Repairs { done, of } => {
            json!({"what": "fetching again", "done": done, "of": of})
        }
    }
}

fn sentence(error: &ScrubError) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
