//! A narinfo and a NAR as Nix would ask for them, with the time that each takes.

use std::path::Path;
use std::time::Duration;

use super::reach::{Answer, Bounds, Door};
use crate::nix::{StoreDir, StorePath};
use crate::units::ByteSize;

/// Paths of this machine's store that are asked for until the cache has one.
const ASKED_MAX: usize = 8;

/// Entries of the store that are looked at to find them; a store has a hundred thousand.
const LOOKED_AT_MAX: usize = 256;

/// The longest narinfo of a path with thousands of references.
const NARINFO_LEN_MAX: usize = 1 << 20;

/// What is read of a NAR to see how fast it comes: a second of a good Wi-Fi.
const NAR_READ_MAX: u64 = 32 << 20;

/// Longer than the cache itself lets a narinfo take.
const NARINFO_SLOW: Duration = Duration::from_millis(2500);

const NOTHING_READ: Bounds = Bounds { read_max: NAR_READ_MAX, kept_max: 0 };

/// What was tried; the second is nothing when there was no NAR to ask for.
pub(super) struct Tried {
    pub(super) narinfo: Result<String, String>,
    pub(super) nar: Option<Result<String, String>>,
}

/// Asks for these paths, one after the other, until the cache has one.
pub(super) async fn run(door: &Door, paths: &[StorePath]) -> Tried {
    let mut slowest = Duration::ZERO;
    for path in paths.iter().take(ASKED_MAX) {
        let bounds = Bounds { read_max: NAR_READ_MAX, kept_max: NARINFO_LEN_MAX };
        let told = match door.get(&format!("/{}.narinfo", path.hash()), bounds).await {
            Ok(told) => told,
            Err(error) => return Tried { narinfo: Err(error), nar: None },
        };
        slowest = slowest.max(told.took);
        match told.status {
            200 => return whole(door, path, &told).await,
            404 => {}
            other => {
                let wrong = format!("{path}: the answer was {other}, which stops some Nix clients");
                return Tried { narinfo: Err(wrong), nar: None };
            }
        }
    }
    let asked = paths.len().min(ASKED_MAX);
    let narinfo = if asked == 0 {
        Ok("nothing is in this machine's store to ask for".to_owned())
    } else {
        quick(slowest, &format!("none of {asked} paths of this machine is known there"))
    };
    Tried { narinfo, nar: None }
}

async fn whole(door: &Door, path: &StorePath, told: &Answer) -> Tried {
    let narinfo = quick(told.took, &format!("{path} is known there"));
    let text = String::from_utf8_lossy(&told.body);
    let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).map(str::trim);
    let Some(url) = url.filter(|url| !url.contains("://")) else {
        return Tried { narinfo, nar: Some(Err(format!("{path}: its narinfo has no URL"))) };
    };
    let nar = match door.get(&format!("/{url}"), NOTHING_READ).await {
        Ok(told) if told.status == 200 => Ok(speed(&told)),
        Ok(told) => Err(format!(
            "the answer was {}: the cache knows {path} and cannot have it now, look at its page \
             for its upstreams",
            told.status
        )),
        Err(error) => Err(error),
    };
    Tried { narinfo, nar: Some(nar) }
}

fn quick(took: Duration, text: &str) -> Result<String, String> {
    let text = format!("{text}, said in {} ms", took.as_millis());
    if took <= NARINFO_SLOW {
        Ok(text)
    } else {
        Err(format!("{text}: that is too slow for a build"))
    }
}

fn speed(told: &Answer) -> String {
    let first_ms = told.head_took.as_millis();
    let read = ByteSize(told.len);
    let per_s = u128::from(told.len) * 1000 / told.took.as_millis().max(1);
    let per_s = ByteSize(u64::try_from(per_s).unwrap_or(u64::MAX));
    format!(
        "{read} in {} ms, the first after {first_ms} ms: {per_s} a second",
        told.took.as_millis()
    )
}

/// Paths of this machine's store: what Nix itself lies in first, which a public cache has too.
pub(super) fn candidates(store_dir: &StoreDir) -> Vec<StorePath> {
    let mut paths: Vec<StorePath> = own_nix(store_dir).into_iter().collect();
    let entries = std::fs::read_dir(store_dir.as_str()).into_iter().flatten().flatten();
    let named = entries.take(LOOKED_AT_MAX).filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // Derivations and what is being made are in no cache of outputs.
        let is_output = Path::new(&name).extension().is_none_or(|it| it != "drv" && it != "lock");
        StorePath::parse(&name).ok().filter(|_| is_output)
    });
    paths.extend(named.take(ASKED_MAX));
    paths.truncate(ASKED_MAX);
    paths
}

fn own_nix(store_dir: &StoreDir) -> Option<StorePath> {
    let path = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&path).map(|it| it.join("nix")).find(|it| it.exists())?;
    let real = program.canonicalize().ok()?;
    let inside = real.strip_prefix(store_dir.as_str()).ok()?;
    StorePath::parse(inside.iter().next()?.to_str()?).ok()
}
