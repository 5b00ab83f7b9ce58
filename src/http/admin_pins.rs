//! What people say of closures on the admin socket: pins, and what is fetched ahead.
//!
//! `POST /pin[?name=NAME]`, `POST /unpin?name=NAME`, `GET /pins`, `POST /prefetch[?limit=BYTES]`.
//! The paths come as keys, one a line.

use std::error::Error;

use hyper::body::Incoming;
use serde_json::{Value, json};

use super::admin::{done, failed, sent};
use super::long::{Teller, going};
use super::reply::Reply;
use crate::cache::{Cache, Errand, Fetched, PinMade, PinShown, Step};
use crate::nix::StorePathHash;

/// Slower than this an upstream takes the connection for dead.
const LIMIT_BYTES_MIN: u64 = 16 * 1024;

/// What a query says of a name.
pub(super) fn find(query: &str, wanted: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
}

/// The keys that came with a command.
pub(super) async fn keys(body: Incoming) -> Result<Vec<StorePathHash>, Reply> {
    let text = sent(body).await?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Result<Vec<_>, _> = lines.map(StorePathHash::parse).collect();
    keys.map_err(|_| failed("what came is not the hashes of store paths, one a line"))
}

/// An error with its causes, as one sentence.
pub(super) fn sentence(error: &Errand) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

pub(super) async fn pin(cache: &Cache, query: &str, body: Incoming) -> Reply {
    let keys = match keys(body).await {
        Ok(keys) => keys,
        Err(reply) => return reply,
    };
    let (cache, name) = (cache.clone(), find(query, "name"));
    going(|teller| async move {
        let told = |step| tell(&teller, step);
        let made = Box::pin(cache.pin(name.as_deref(), &keys, told)).await;
        made.map(|made| pin_made(&made)).map_err(|error| sentence(&error))
    })
}

pub(super) async fn unpin(cache: &Cache, query: &str) -> Reply {
    let Some(name) = find(query, "name") else { return failed("no pin is named") };
    match cache.unpin(&name).await {
        Ok(true) => done(&json!({"unpinned": name})),
        Ok(false) => failed(&unknown(&name, cache.pins().await.unwrap_or_default())),
        Err(error) => failed(&sentence(&error)),
    }
}

fn unknown(name: &str, pins: Vec<PinShown>) -> String {
    let mut names: Vec<String> = pins.into_iter().map(|pin| pin.name).collect();
    names.dedup();
    if names.is_empty() {
        return format!("there is no pin {name:?}, nor any other");
    }
    format!("there is no pin {name:?}; there are: {}", names.join(", "))
}

pub(super) async fn pins(cache: &Cache) -> Reply {
    match cache.pins().await {
        Ok(pins) => {
            let pins: Vec<Value> = pins.iter().map(shown).collect();
            let pinned_bytes = cache.store_figures().pinned_bytes;
            done(&json!({"pins": pins, "pinned_bytes": pinned_bytes}))
        }
        Err(error) => failed(&sentence(&error)),
    }
}

pub(super) async fn prefetch(cache: &Cache, query: &str, body: Incoming) -> Reply {
    let limit = match find(query, "limit").map(|limit| limit.parse::<u64>()) {
        None => None,
        Some(Ok(limit)) if limit >= LIMIT_BYTES_MIN => Some(limit),
        Some(_) => return failed("a limit is at least 16 KiB a second"),
    };
    let keys = match keys(body).await {
        Ok(keys) => keys,
        Err(reply) => return reply,
    };
    let cache = cache.clone();
    going(|teller| async move {
        let told = |step| tell(&teller, step);
        let came = Box::pin(cache.prefetch(&keys, limit, told)).await;
        came.map(|came| fetched(&came)).map_err(|error| sentence(&error))
    })
}

fn tell(teller: &Teller, step: Step) {
    let (done, of) = step.things;
    let mut told = json!({"what": step.what, "done": done, "of": of});
    if let (Some((done, of)), Some(told)) = (step.bytes, told.as_object_mut()) {
        told.insert("done_bytes".to_owned(), done.into());
        told.insert("of_bytes".to_owned(), of.into());
    }
    teller.tell(told);
}

fn pin_made(made: &PinMade) -> Value {
    json!({
        "name": made.name, "paths": made.paths, "bytes": made.bytes,
        "fetched_nars": made.fetched, "fetched_bytes": made.fetched_bytes,
    })
}

fn shown(pin: &PinShown) -> Value {
    json!({
        "name": pin.name, "roots": pin.roots, "state": if pin.holds { "holds" } else { "coming" },
        "since": pin.since_s, "paths": pin.paths, "missing": pin.missing, "bytes": pin.bytes,
        "alone_bytes": pin.alone_bytes,
    })
}

fn fetched(came: &Fetched) -> Value {
    let lacks: Vec<String> = came.lacks.iter().map(ToString::to_string).collect();
    json!({
        "paths": came.paths, "fetched_nars": came.nars, "fetched_bytes": came.bytes,
        "held_nars": came.held, "lacking": came.lack_count, "lacks": lacks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_an_unknown_pin_is_told_those_there_are() {
        let pin = |name: &str| PinShown {
            name: name.into(),
            roots: Vec::new(),
            holds: true,
            since_s: 0,
            paths: 0,
            missing: 0,
            bytes: 0,
            alone_bytes: 0,
        };
        assert_eq!(unknown("x", Vec::new()), "there is no pin \"x\", nor any other");
        let told = unknown("x", vec![pin("a"), pin("a"), pin("b")]);
        assert_eq!(told, "there is no pin \"x\"; there are: a, b");
    }
}
