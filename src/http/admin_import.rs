//! `POST /import?dir=PATH[&trusted-key=KEY...]` on the admin socket, which takes long; the paths come
//! with it, a hash a line, or all of the folder is meant.

use std::error::Error as _;

use serde_json::{Value, json};

use super::admin::failed;
use super::long::{Teller, going};
use super::reply::Reply;
use crate::cache::{Cache, ImportPlan};
use crate::nix::{PublicKey, StorePathHash};

/// Takes what is in a folder of this machine.
pub(super) fn import(cache: &Cache, query: &str, sent: &str) -> Reply {
    let plan = match plan(query, sent) {
        Ok(plan) => plan,
        Err(sentence) => return failed(&sentence),
    };
    let cache = cache.clone();
    going(move |teller| async move { run(&cache, plan, teller).await })
}

fn plan(query: &str, sent: &str) -> Result<ImportPlan, String> {
    let (mut dir, mut keys) = (None, Vec::new());
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "dir" => dir = Some(value.into_owned().into()),
            "trusted-key" => {
                let key = PublicKey::parse(&value);
                keys.push(key.map_err(|error| format!("{value:?} is no public key: {error}"))?);
            }
            _ => return Err("only dir and trusted-key are understood".to_owned()),
        }
    }
    let paths = sent.lines().map(|line| StorePathHash::parse(line.trim()));
    let paths: Result<Vec<_>, _> = paths.collect();
    let paths = paths.map_err(|error| format!("what came is no list of paths: {error}"))?;
    Ok(ImportPlan { dir: dir.ok_or("no dir is named")?, keys, paths })
}

async fn run(cache: &Cache, plan: ImportPlan, teller: Teller) -> Result<Value, String> {
    let imported = Box::pin(cache.import(plan, |at| {
        teller
            .tell(json!({"what": "taking", "done": at.done, "of": at.of, "done_bytes": at.bytes}));
    }));
    let imported = imported.await.map_err(|error| match error.source() {
        // What the system says is part of the sentence already.
        Some(cause) if !cause.is::<std::io::Error>() => format!("{error}: {cause}"),
        Some(_) | None => error.to_string(),
    })?;
    let refused = imported.refused.names.iter();
    Ok(json!({
        "taken": imported.taken,
        "taken_bytes": imported.taken_bytes,
        "there": imported.there,
        "refused_count": imported.refused.count,
        "refused": refused.map(|(path, why)| json!({"path": path, "why": why})).collect::<Vec<_>>(),
        "missing_count": imported.missing.count,
        "missing": imported.missing.names,
    }))
}
