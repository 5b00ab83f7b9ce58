//! What paths refer to, as the cache says it, in an order in which references come first.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::sleep;

use crate::cli::paths::Named;
use crate::cli::progress::{At, Progress};
use crate::nix::{NarInfo, StoreDir, StorePath, StorePathHash};
use crate::upstream::Upstream;

/// narinfos that are asked for at once: as Nix asks.
const ASKED_MAX: usize = 16;

/// Paths of one export: ten times those of the largest closures.
const PATHS_MAX: usize = 1_000_000;

/// How often a question is asked that comes to nothing for now: a cache whose upstream is slow is slow
/// itself, and after some such answers it is left alone for some seconds.
const TRIES_MAX: usize = 10;

/// How long to rest before it is asked again.
pub(super) const REST: Duration = Duration::from_secs(2);

/// What is to be copied.
#[derive(Debug, Default)]
pub(super) struct Closure {
    /// References before what refers to them; each with all of its own.
    pub(super) paths: Vec<NarInfo>,
    /// What cannot be copied, and why.
    pub(super) left: Vec<(String, String)>,
}

/// Asks for all of it.
pub(super) async fn walk(
    source: &Upstream,
    named: Vec<Named>,
    store_dir: &StoreDir,
    progress: &mut Progress,
) -> anyhow::Result<Closure> {
    let roots: Vec<StorePathHash> = named.iter().map(|(key, _)| *key).collect();
    let mut names: HashMap<StorePathHash, String> = named.into_iter().collect();
    let mut wave = roots.clone();
    let mut found = HashMap::new();
    while !wave.is_empty() {
        let asking = stream::iter(wave.iter().map(|key| ask(source, *key, store_dir)));
        let mut answers = asking.buffer_unordered(ASKED_MAX);
        let mut next = Vec::new();
        while let Some((key, narinfo)) = answers.try_next().await? {
            let Some(narinfo) = narinfo else { continue };
            for reference in &narinfo.references {
                let shown = || store_dir.join(reference);
                names.entry(reference.hash()).or_insert_with(|| {
                    next.push(reference.hash());
                    shown()
                });
            }
            found.insert(key, narinfo);
            let done = u64::try_from(found.len()).unwrap_or(u64::MAX);
            let of = u64::try_from(names.len()).unwrap_or(u64::MAX);
            let what = "looking for what they refer to".to_owned();
            progress.at(&At { what, bytes: None, things: Some((done, Some(of))) });
        }
        anyhow::ensure!(names.len() <= PATHS_MAX, "these are more than {PATHS_MAX} paths");
        drop(answers);
        wave = next;
    }
    Ok(in_order(&roots, found, &names))
}

async fn ask(
    source: &Upstream,
    key: StorePathHash,
    store_dir: &StoreDir,
) -> anyhow::Result<(StorePathHash, Option<NarInfo>)> {
    let mut tries = 1;
    let text = loop {
        match source.narinfo(key).await {
            Ok(text) => break text,
            Err(error) if error.is_transient() && tries < TRIES_MAX => {
                tries += 1;
                sleep(REST).await;
            }
            Err(error) => return Err(error).with_context(|| format!("ask for {key}.narinfo")),
        }
    };
    let Some(text) = text else { return Ok((key, None)) };
    let narinfo = NarInfo::parse(&text, store_dir);
    let narinfo = narinfo.with_context(|| format!("read what the cache says of {key}"))?;
    anyhow::ensure!(
        narinfo.store_path.hash() == key,
        "the cache has another path's narinfo for {key}"
    );
    Ok((key, Some(narinfo)))
}

/// References first. What refers to something that is absent is left out, and so is what refers to
/// that.
fn in_order(
    roots: &[StorePathHash],
    mut found: HashMap<StorePathHash, NarInfo>,
    names: &HashMap<StorePathHash, String>,
) -> Closure {
    let mut closure = Closure::default();
    let mut done: HashMap<StorePathHash, bool> = HashMap::new();
    let mut open: HashSet<StorePathHash> = HashSet::new();
    let mut stack: Vec<StorePathHash> = roots.iter().rev().copied().collect();
    let name = |key: &StorePathHash| names.get(key).cloned().unwrap_or_else(|| key.to_string());
    while let Some(key) = stack.last().copied() {
        if done.contains_key(&key) {
            stack.pop();
            continue;
        }
        let Some(narinfo) = found.get(&key) else {
            closure.left.push((name(&key), "the cache has it not".to_owned()));
            done.insert(key, false);
            continue;
        };
        // What is open already refers to it in turn: no order has both first.
        let references = narinfo.references.iter().map(StorePath::hash);
        let waits: Vec<_> = references
            .clone()
            .filter(|other| *other != key && !done.contains_key(other) && !open.contains(other))
            .collect();
        if open.insert(key) && !waits.is_empty() {
            stack.extend(waits);
            continue;
        }
        let lacks =
            references.filter(|other| *other != key).find(|other| done.get(other) == Some(&false));
        if let Some(lacks) = lacks {
            let why = format!("it refers to {}, which is not there", name(&lacks));
            closure.left.push((name(&key), why));
        } else if let Some(narinfo) = found.remove(&key) {
            closure.paths.push(narinfo);
            done.insert(key, true);
            continue;
        }
        done.insert(key, false);
    }
    closure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::{Compression, NarHash};

    fn path(name: &str) -> StorePath {
        let mut hash = [0; 20];
        hash.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        StorePath::parse(&format!("{}-{name}", StorePathHash::from_bytes(hash))).unwrap()
    }

    fn narinfo(name: &str, references: &[&str]) -> NarInfo {
        NarInfo {
            store_path: path(name),
            url: "nar/x".into(),
            compression: Compression::Zstd,
            file_hash: None,
            file_size: None,
            nar_hash: NarHash::from_bytes([1; 32]),
            nar_size: 1,
            references: references.iter().map(|name| path(name)).collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        }
    }

    /// `"app: lib libc"` for each path; the names in order, and of those that are left.
    fn check(paths: &[&str], roots: &[&str], wanted: &[&str], left: &[&str]) {
        let mut found = HashMap::new();
        for text in paths {
            let (name, references) = text.split_once(':').unwrap();
            let references: Vec<_> = references.split_whitespace().collect();
            found.insert(path(name).hash(), narinfo(name, &references));
        }
        let roots: Vec<_> = roots.iter().map(|name| path(name).hash()).collect();
        let names = ["app", "lib", "libc", "doc", "other"];
        let names = names.iter().map(|name| (path(name).hash(), (*name).to_owned())).collect();
        let closure = in_order(&roots, found, &names);
        let order: Vec<_> = closure.paths.iter().map(|path| path.store_path.name()).collect();
        assert_eq!(order, wanted);
        let found: Vec<_> = closure.left.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, left);
    }

    #[test]
    fn references_come_first_and_each_comes_once() {
        check(
            &["app: lib app libc", "lib: libc", "libc: libc", "doc:"],
            &["app", "doc"],
            &["libc", "lib", "app", "doc"],
            &[],
        );
        check(&["lib: libc", "libc: lib"], &["lib"], &["libc", "lib"], &[]);
    }

    #[test]
    fn what_lacks_a_reference_is_left_out_with_all_that_needs_it() {
        check(
            &["app: lib", "lib: libc", "doc:"],
            &["app", "doc"],
            &["doc"],
            &["libc", "lib", "app"],
        );
        check(&["doc:"], &["other", "doc"], &["doc"], &["other"]);
    }
}
