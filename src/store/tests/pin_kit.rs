//! What the tests of pins stand on.

use super::kit::*;
use super::push_kit::*;
use crate::store::{Error, Origin, PinnedPath, Store};

/// The NAR and the narinfo of a number come.
pub(super) async fn bring(store: &Store, number: u64, len: usize) {
    drop(fill(store, number, len).await.unwrap());
    store.keep_narinfo(narinfo(number, number)).await.unwrap();
}

/// Pins paths under a name, to the end.
pub(super) async fn pin(store: &Store, name: &str, numbers: &[u64]) -> Result<bool, Error> {
    let roots = numbers.iter().take(3).map(|it| narinfo(*it, *it).narinfo.store_path).collect();
    let id = store.begin_pin(name, roots, 7).await?;
    let keys = numbers.iter().map(|number| key(*number)).collect();
    Ok(store.pin_paths(id, keys).await? && store.hold_pin(id).await?)
}

/// All paths of the pin that holds under a name.
pub(super) async fn paths_of(store: &Store, name: &str) -> Option<Vec<PinnedPath>> {
    let pins = store.pins().await.unwrap();
    let pin = pins.into_iter().find(|pin| pin.name == name && pin.is_whole)?;
    let mut found: Vec<PinnedPath> = Vec::new();
    loop {
        let after = found.last().map(|path| path.key);
        let more = store.pinned_paths(pin.id, after).await.unwrap();
        if more.is_empty() {
            return Some(found);
        }
        found.extend(more);
    }
}

/// What is counted of pins is what the index says.
pub(super) async fn check_pins(store: &Store) {
    check_figures(store).await;
    let mut nars = std::collections::BTreeMap::new();
    for pin in store.pins().await.unwrap() {
        let mut after = None;
        loop {
            let paths = store.pinned_paths(pin.id, after).await.unwrap();
            let Some(last) = paths.last() else { break };
            after = Some(last.key);
            for path in paths {
                if let (Some(nar_hash), Some(takes)) = (path.nar_hash, path.takes_bytes) {
                    nars.insert(nar_hash, takes);
                }
            }
        }
    }
    assert_eq!(store.figures().pinned_bytes, nars.values().sum::<u64>());
    for (_, record) in records(store) {
        if nars.contains_key(&record.nar_hash) {
            assert_eq!(record.origin, Origin::Kept);
        }
    }
}
