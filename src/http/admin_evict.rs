//! Eviction on the admin socket.
//!
//! `GET /next-out?count=N[&to_bytes=N]`: what would go next, in its order. `POST /evict?to_bytes=N`,
//! or without it the keys of paths, one a line.

use hyper::body::Incoming;
use serde_json::{Value, json};

use super::admin::{done, failed};
use super::admin_pins::{find, keys, sentence};
use super::long::going;
use super::reply::Reply;
use crate::cache::{Cache, Evicted, EvictedPath, OutShown};

/// What is shown when nobody says how many.
const COUNT: usize = 5;

fn number(query: &str, name: &str) -> Result<Option<u64>, Reply> {
    let number = find(query, name).map(|number| number.parse::<u64>()).transpose();
    number.map_err(|_| failed("that is no number"))
}

pub(super) async fn next_out(cache: &Cache, query: &str) -> Reply {
    let (count, to_bytes) = match (number(query, "count"), number(query, "to_bytes")) {
        (Ok(count), Ok(to_bytes)) => (count, to_bytes),
        (Err(reply), _) | (_, Err(reply)) => return reply,
    };
    let used = cache.store_figures().used_bytes;
    // Without a size as many as are asked for, however little they take.
    let bytes = to_bytes.map_or(u64::MAX, |to_bytes| used.saturating_sub(to_bytes));
    let count = count.and_then(|count| usize::try_from(count).ok());
    let count = count.unwrap_or(if to_bytes.is_some() { usize::MAX } else { COUNT });
    match cache.next_out(bytes, count).await {
        Ok(outs) => {
            let frees: u64 = outs.iter().map(|out| out.bytes).sum();
            let kept = cache.kept_back_bytes();
            let outs: Vec<Value> = outs.iter().map(shown).collect();
            done(&json!({"next": outs, "bytes": frees, "used_bytes": used, "kept_bytes": kept}))
        }
        Err(error) => failed(&sentence(&error)),
    }
}

pub(super) async fn evict(cache: &Cache, query: &str, body: Incoming) -> Reply {
    let to_bytes = match number(query, "to_bytes") {
        Ok(to_bytes) => to_bytes,
        Err(reply) => return reply,
    };
    if let Some(to_bytes) = to_bytes {
        let cache = cache.clone();
        return going(|teller| async move {
            let told = |bytes: u64, count: usize| {
                teller.tell(json!({"what": "evicting", "done_bytes": bytes, "done": count}));
            };
            let evicted = cache.evict_to(to_bytes, told).await;
            evicted.map(|it| went(&it)).map_err(|error| sentence(&error))
        });
    }
    let keys = match keys(body).await {
        Ok(keys) => keys,
        Err(reply) => return reply,
    };
    if keys.is_empty() {
        return failed("neither a size nor a path is named");
    }
    let cache = cache.clone();
    going(|teller| async move {
        let (mut evicted, mut stays, mut absent) = (Evicted::default(), Vec::new(), Vec::new());
        for key in keys {
            match cache.evict_path(key).await.map_err(|error| sentence(&error))? {
                EvictedPath::Out(out) => {
                    evicted.count += 1;
                    evicted.bytes += out.bytes;
                    evicted.outs.push(out);
                }
                EvictedPath::NotHere => absent.push(key.to_string()),
                EvictedPath::Stays(why) => {
                    stays.push(json!({"key": key.to_string(), "why": why}));
                }
            }
            let told = json!({
                "what": "evicting", "done_bytes": evicted.bytes, "done": evicted.count,
            });
            teller.tell(told);
        }
        let mut told = went(&evicted);
        if let Some(told) = told.as_object_mut() {
            told.insert("stays".to_owned(), stays.into());
            told.insert("absent".to_owned(), absent.into());
        }
        Ok(told)
    })
}

fn went(evicted: &Evicted) -> Value {
    let outs: Vec<Value> = evicted.outs.iter().map(shown).collect();
    json!({
        "went": outs, "nars": evicted.count, "bytes": evicted.bytes,
        "left_bytes": evicted.left_bytes, "kept_bytes": evicted.kept_bytes,
    })
}

fn shown(out: &OutShown) -> Value {
    json!({
        "paths": out.paths, "bytes": out.bytes, "only_here": out.is_only_here,
        "unused_since": out.unused_since_s,
    })
}
