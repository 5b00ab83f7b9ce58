//! Which row of a queue is next: references before referrers; what is unknown or cyclic blocks
//! nobody; what is parked takes its referrers with it. Pure: it says what it must know, and is
//! told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::store::{QueueRow, Queued};

/// Rows that are looked at together, those that were found as references included: some hundred
/// bytes each with their references. Chains of references are a hundred long at most.
pub(super) const ROWS_MAX: usize = 1024;

/// Rows that are read ahead in the order of acceptance, so that there is always one to carry.
pub(super) const AHEAD: usize = 256;

/// Rows that are parked, at most. So many objects that a target does not take are the target's own
/// trouble.
const PARKED_MAX: usize = 4096;

/// Things that are remembered as not queued, so that the index is not asked for glibc a thousand
/// times.
const SETTLED_MAX: usize = 8192;

/// A parked row is tried again after this time: somebody may have mended it without saying so.
pub(super) const PARKED_FOR: Duration = Duration::from_hours(1);

/// A row that belongs to something that has not come yet is looked at again after this time, and
/// then ever more rarely: a client sends the two one after the other, or gave up in between.
const EARLY_FOR: Duration = Duration::from_secs(20);

/// How often a row may fail where others went well in between, before it is parked.
const FAILURES_MAX: u32 = 5;

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Say what this refers to: [`Order::refers_to`].
    References(Queued),
    /// Say whether this is queued: [`Order::found`].
    Row(Queued),
    /// Carry it: it counts as under way from now on.
    Carry(QueueRow),
    /// Nothing before something changes.
    Nothing,
}

/// Why a row is parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// The target does not take it.
    Refused(String),
    /// It refers to one that is parked or lost.
    With(Queued),
    /// Its bytes are damaged: the row is kept as lost, and only its referrers are parked.
    Lost,
    /// It belongs to something that has not come yet.
    Early,
}

#[derive(Debug)]
struct Parked {
    why: Why,
    due: Duration,
}

#[derive(Debug)]
struct Row {
    queued: QueueRow,
    /// What it refers to, itself left out; `None` until told.
    references: Option<Vec<Queued>>,
    under_way: bool,
    /// It was accepted again while it was under way.
    again: Option<QueueRow>,
    /// How often it failed.
    failures: u32,
    /// How often it failed after others went well, and how many had by then.
    own_failures: (u32, u64),
}

/// The rows that are looked at, and what each waits for.
#[derive(Debug, Default)]
pub(super) struct Order {
    rows: HashMap<Queued, Row>,
    by_seq: BTreeMap<u64, Queued>,
    parked: HashMap<Queued, Parked>,
    not_queued: HashSet<Queued>,
    under_way: usize,
}

/// A row on the way down.
struct Frame<'a> {
    what: &'a Queued,
    next: usize,
    blocked: bool,
}

/// What a walk over the rows found.
enum Walked {
    Step(Step),
    /// The first is to be parked with the second.
    Park(Queued, Queued),
}

impl Order {
    /// Rows that wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows that are parked.
    pub(super) fn parked(&self) -> usize {
        let waits = |parked: &&Parked| matches!(parked.why, Why::Refused(_) | Why::With(_));
        self.parked.values().filter(waits).count()
    }

    /// What is parked because the target does not take it, and what it said.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&Queued, &str)> {
        self.parked.iter().filter_map(|(what, parked)| match &parked.why {
            Why::Refused(said) => Some((what, said.as_str())),
            Why::With(_) | Why::Lost | Why::Early => None,
        })
    }

    /// Whether another row may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.rows.len() < ROWS_MAX
    }

    /// A row as the queue has it.
    pub(super) fn offer(&mut self, row: QueueRow) {
        self.not_queued.remove(&row.what);
        if row.lost {
            return;
        }
        if let Some(known) = self.rows.get_mut(&row.what) {
            if known.under_way && row.seq != known.queued.seq {
                known.again = Some(row);
            }
            return;
        }
        if self.parked.get(&row.what).is_some_and(|parked| parked.why != Why::Lost) {
            return;
        }
        self.parked.remove(&row.what);
        self.by_seq.insert(row.seq, row.what.clone());
        let what = row.what.clone();
        let (references, again) = (None, None);
        let own_failures = (0, 0);
        let row =
            Row { queued: row, references, under_way: false, again, failures: 0, own_failures };
        self.rows.insert(what, row);
    }

    /// What a row refers to.
    pub(super) fn refers_to(&mut self, what: &Queued, references: Vec<Queued>) {
        if let Some(row) = self.rows.get_mut(what) {
            row.references = Some(references);
        }
    }

    /// The row of something that a row refers to; `None` when it is not queued.
    pub(super) fn found(&mut self, what: &Queued, row: Option<QueueRow>, now: Duration) {
        match row {
            Some(row) if row.lost => self.lost(what, now),
            Some(row) => self.offer(row),
            None => self.settle(what.clone()),
        }
    }

    /// Goes down from the oldest row to one whose references are all there, if need be asking on
    /// the way. One that failed before comes after those that did not.
    pub(super) fn step(&mut self, now: Duration) -> Step {
        loop {
            match self.walk() {
                Walked::Park(what, with) => {
                    let due = self.parked.get(&with).map_or(now + PARKED_FOR, |with| with.due);
                    self.remove(&what);
                    self.parked.insert(what, Parked { why: Why::With(with), due });
                }
                Walked::Step(step) => {
                    if let Step::Carry(row) = &step
                        && let Some(row) = self.rows.get_mut(&row.what)
                    {
                        row.under_way = true;
                        self.under_way += 1;
                    }
                    return step;
                }
            }
        }
    }

    fn walk(&self) -> Walked {
        let mut seen: HashMap<&Queued, bool> = HashMap::new();
        let mut failed_before: Option<&Row> = None;
        for root in self.by_seq.values() {
            if seen.contains_key(root) {
                continue;
            }
            let mut stack = vec![Frame { what: root, next: 0, blocked: false }];
            seen.insert(root, false);
            while let Some(frame) = stack.last_mut() {
                let Some(row) = self.rows.get(frame.what) else { break };
                let Some(references) = &row.references else {
                    return Walked::Step(Step::References(frame.what.clone()));
                };
                if let Some(reference) = references.get(frame.next).filter(|_| !row.under_way) {
                    frame.next += 1;
                    match self.edge(reference, &seen) {
                        Edge::Free => {}
                        Edge::Blocks => frame.blocked = true,
                        Edge::Parks => {
                            return Walked::Park(frame.what.clone(), reference.clone());
                        }
                        Edge::Unknown => return Walked::Step(Step::Row(reference.clone())),
                        Edge::Down => {
                            seen.insert(reference, false);
                            stack.push(Frame { what: reference, next: 0, blocked: false });
                        }
                    }
                    continue;
                }
                if !row.under_way && !frame.blocked {
                    if row.failures == 0 {
                        return Walked::Step(Step::Carry(row.queued.clone()));
                    }
                    let fewest = failed_before.is_none_or(|best| row.failures < best.failures);
                    failed_before = if fewest { Some(row) } else { failed_before };
                }
                // It is not there yet, so whoever refers to it waits.
                seen.insert(frame.what, true);
                stack.pop();
                if let Some(referrer) = stack.last_mut() {
                    referrer.blocked = true;
                }
            }
        }
        let found = failed_before.or_else(|| self.out_of_bounds());
        Walked::Step(found.map_or(Step::Nothing, |row| Step::Carry(row.queued.clone())))
    }

    fn edge(&self, reference: &Queued, seen: &HashMap<&Queued, bool>) -> Edge {
        if self.parked.contains_key(reference) {
            return if self.parked.len() < PARKED_MAX { Edge::Parks } else { Edge::Blocks };
        }
        if self.rows.contains_key(reference) {
            return match seen.get(reference) {
                None => Edge::Down,
                Some(true) => Edge::Blocks,
                // It is above us on the way down: a cycle.
                Some(false) => Edge::Free,
            };
        }
        if self.not_queued.contains(reference) {
            return Edge::Free;
        }
        if self.has_room() { Edge::Unknown } else { Edge::Blocks }
    }

    /// All wait for what is beyond the bound, and nothing is under way that could change that: the
    /// oldest goes as if that were unknown. (Not where they wait for what is parked.)
    fn out_of_bounds(&self) -> Option<&Row> {
        if self.under_way > 0 || self.has_room() || self.parked.len() >= PARKED_MAX {
            return None;
        }
        self.by_seq.values().find_map(|what| self.rows.get(what))
    }

    /// It is there, or is no row any more.
    pub(super) fn done(&mut self, what: &Queued) {
        let again = self.remove(what).and_then(|row| row.again);
        self.settle(what.clone());
        if let Some(row) = again {
            self.offer(row);
        }
    }

    /// It did not get there, which may not be its fault: it waits again.
    pub(super) fn waits_again(&mut self, what: &Queued) {
        if let Some(row) = self.rows.get_mut(what)
            && row.under_way
        {
            row.under_way = false;
            row.again = None;
            self.under_way -= 1;
        }
    }

    /// It failed, and others come first now. `successes` is how often something went well so far:
    /// a row that fails again and again where others do not is at fault itself, and the answer is
    /// yes.
    pub(super) fn failed(&mut self, what: &Queued, successes: u64) -> bool {
        self.waits_again(what);
        let Some(row) = self.rows.get_mut(what) else { return false };
        row.failures = row.failures.saturating_add(1);
        if row.own_failures.0 == 0 || successes > row.own_failures.1 {
            row.own_failures = (row.own_failures.0 + 1, successes);
        }
        row.own_failures.0 >= FAILURES_MAX
    }

    /// Parks it for an hour. No when too many are parked already: then it waits on.
    pub(super) fn park(&mut self, what: &Queued, said: String, now: Duration) -> bool {
        self.set_aside(what, Why::Refused(said), now + PARKED_FOR)
    }

    fn set_aside(&mut self, what: &Queued, why: Why, due: Duration) -> bool {
        if self.parked.len() >= PARKED_MAX {
            self.waits_again(what);
            return false;
        }
        self.remove(what);
        self.parked.insert(what.clone(), Parked { why, due });
        true
    }

    /// It belongs to something that has not come yet, and has waited for this long itself.
    pub(super) fn early(&mut self, what: &Queued, waited: Duration, now: Duration) {
        self.set_aside(what, Why::Early, now + (waited / 2).clamp(EARLY_FOR, PARKED_FOR));
    }

    /// It is lost: its referrers are parked.
    pub(super) fn lost(&mut self, what: &Queued, now: Duration) {
        if !self.set_aside(what, Why::Lost, now + PARKED_FOR) {
            self.remove(what);
        }
    }

    /// Forgets what was parked for long enough. Yes when there was any: the queue is to be read
    /// again from its start.
    pub(super) fn unpark(&mut self, now: Duration) -> bool {
        let before = self.parked.len();
        self.parked.retain(|_, parked| parked.due > now);
        self.parked.len() < before
    }

    /// Forgets whatever was parked, and that anything failed.
    pub(super) fn retry(&mut self) {
        self.parked.clear();
        self.not_queued.clear();
        for row in self.rows.values_mut() {
            (row.failures, row.own_failures) = (0, (0, 0));
        }
    }

    /// When something is parked long enough.
    pub(super) fn due(&self) -> Option<Duration> {
        self.parked.values().map(|parked| parked.due).min()
    }

    fn remove(&mut self, what: &Queued) -> Option<Row> {
        let row = self.rows.remove(what)?;
        self.by_seq.remove(&row.queued.seq);
        if row.under_way {
            self.under_way -= 1;
        }
        Some(row)
    }

    fn settle(&mut self, what: Queued) {
        if self.not_queued.len() >= SETTLED_MAX {
            self.not_queued.clear();
        }
        self.not_queued.insert(what);
    }
}

/// What a reference means for its referrer.
enum Edge {
    /// It is there, or its waiting would never end.
    Free,
    /// It waits or is under way.
    Blocks,
    /// It is parked.
    Parks,
    /// Nobody said whether it is queued.
    Unknown,
    /// It waits, and was not looked at yet.
    Down,
}

#[cfg(test)]
mod tests;
