//! `POST /scrub[?repair=true]` on the admin socket, which takes long, and `GET /scrub`.

use std::error::Error as _;

use serde::Serialize;
use serde_json::{Value, json};
use tracing::info;

use super::admin::done;
use super::long::{Teller, going};
use super::reply::Reply;
use crate::cache::{Cache, ScrubError, ScrubIs, ScrubProgress, ScrubState, Unrepaired, WantedFor};

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
    /// ... so many of them because every upstream says that it has them not, ...
    pub(super) unrepaired_nowhere: u64,
    /// ... and some of both by their names, those first.
    pub(super) unrepaired_paths: Vec<UnrepairedPath>,
}

/// A path whose NAR was withdrawn and could not be had again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct UnrepairedPath {
    pub(super) name: String,
    pub(super) since_s: u64,
    /// Every upstream says that it has it not.
    pub(super) nowhere: bool,
}

impl ScrubStatus {
    /// Names and number of what is nowhere, or of what may still be had.
    pub(super) fn lost(&self, nowhere: bool) -> (Vec<&UnrepairedPath>, u64) {
        let named = self.unrepaired_paths.iter().filter(|path| path.nowhere == nowhere);
        let yet = self.unrepaired.saturating_sub(self.unrepaired_nowhere);
        (named.collect(), if nowhere { self.unrepaired_nowhere } else { yet })
    }
}

/// What is said behind so many names of all.
pub(super) fn and_more(named: usize, all: u64) -> String {
    match all.saturating_sub(u64::try_from(named).unwrap_or(u64::MAX)) {
        0 => String::new(),
        left => format!("and {left} more"),
    }
}

impl From<ScrubState> for ScrubStatus {
    fn from(state: ScrubState) -> Self {
        let ScrubState { is, checked_bytes, of_bytes, last_done_s, found, repaired, .. } = state;
        let Unrepaired { count, nowhere, named } = state.unrepaired;
        let path = |(name, wanted): (String, WantedFor)| {
            let (since_s, nowhere) = (wanted.since.as_secs(), wanted.is_nowhere);
            UnrepairedPath { name, since_s, nowhere }
        };
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
            unrepaired_nowhere: nowhere,
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
