//! Figures that others keep with the index, row by row under names of their own. The store knows
//! nothing of what they say: it hands them out when it opens, and writes what has changed with a
//! commit that happens anyway, and at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use redb::{ReadTransaction, WriteTransaction};

use super::index::Index;
use super::lock;
use super::tables::{FIGURES, Fault};

/// Rows that are read: whoever keeps figures here has a handful of names.
const ROWS_MAX: usize = 64;

/// Whose figures are kept.
pub trait History: Send + Sync {
    /// What the index has: told at each opening of the store, before anything is asked for.
    fn found(&self, rows: Vec<(String, Bytes)>);

    /// What is to be kept now. The writer asks within a commit, so it must be quick, must not ask
    /// the store, and a row is a few KiB.
    fn rows(&self) -> Vec<(&'static str, Bytes)>;
}

/// What lives as long as the store's handle: whose figures, and what the index has of them.
#[derive(Default)]
pub(super) struct Slate {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    history: Option<Arc<dyn History>>,
    /// `None` until the store was first open: before that nothing is known, and nothing written.
    kept: Option<BTreeMap<String, Bytes>>,
}

impl State {
    fn tell(&self) {
        if let (Some(history), Some(kept)) = (&self.history, &self.kept) {
            history.found(kept.iter().map(|(name, row)| (name.clone(), row.clone())).collect());
        }
    }
}

impl Slate {
    /// From now on these are kept.
    pub(super) fn keep(&self, history: Arc<dyn History>) {
        let mut state = lock(&self.state);
        state.history = Some(history);
        state.tell();
    }

    /// The store is open. Figures that cannot be read are gone, and nothing else.
    pub(super) fn opened(&self, index: &Index) {
        let kept = index.read(read).unwrap_or_else(|fault| {
            let error: &dyn std::error::Error = &fault;
            tracing::warn!(error, "figures of before cannot be read, they begin anew");
            BTreeMap::new()
        });
        let mut state = lock(&self.state);
        state.kept = Some(kept);
        state.tell();
    }

    /// What the index does not have yet.
    pub(super) fn due(&self) -> Vec<(&'static str, Bytes)> {
        let state = lock(&self.state);
        let (Some(history), Some(kept)) = (&state.history, &state.kept) else { return Vec::new() };
        let rows = history.rows().into_iter();
        rows.filter(|(name, row)| kept.get(*name) != Some(row)).collect()
    }

    /// The index has it now.
    pub(super) fn written(&self, rows: Vec<(&'static str, Bytes)>) {
        let mut state = lock(&self.state);
        let Some(kept) = &mut state.kept else { return };
        kept.extend(rows.into_iter().map(|(name, row)| (name.to_owned(), row)));
    }
}

fn read(txn: &ReadTransaction) -> Result<BTreeMap<String, Bytes>, Fault> {
    let (rows, damaged) = FIGURES.scan_sound(txn, &[], ROWS_MAX, |_| true)?;
    if damaged {
        tracing::warn!("some figures of before are damaged, they begin anew");
    }
    let named = |(name, row): (Vec<u8>, Vec<u8>)| Some((String::from_utf8(name).ok()?, row.into()));
    Ok(rows.into_iter().filter_map(named).collect())
}

/// Puts them into the commit.
pub(super) fn write(txn: &WriteTransaction, rows: &[(&'static str, Bytes)]) -> Result<(), Fault> {
    rows.iter().try_for_each(|(name, row)| FIGURES.insert(txn, name.as_bytes(), row))
}
