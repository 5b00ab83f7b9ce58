//! The order of a queue, against every graph of references that chance makes.

use proptest::prelude::*;

use super::*;
use crate::nix::StorePathHash;

const NOW: Duration = Duration::ZERO;

fn path(n: usize) -> Queued {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    Queued::Path(StorePathHash::from_bytes(bytes))
}

fn number(what: &Queued) -> usize {
    let Queued::Path(key) = what else { panic!("{what:?}") };
    usize::try_from(u64::from_be_bytes(key.as_bytes()[..8].try_into().unwrap())).unwrap()
}

fn row(n: usize, seq: u64) -> QueueRow {
    QueueRow { what: path(n), seq, queued_at_s: 0, len_bytes: 1, lost: false }
}

/// A queue as the store has it, and what is going on.
struct Model {
    order: Order,
    references: Vec<Vec<usize>>,
    seqs: Vec<u64>,
    waiting: HashSet<usize>,
    lost: HashSet<usize>,
    cursor: u64,
    asked: usize,
}

impl Model {
    /// Thing n was accepted as number `seqs[n]`.
    fn new(references: Vec<Vec<usize>>, seqs: Vec<u64>) -> Self {
        let waiting = (0..references.len()).collect();
        let (order, lost) = (Order::default(), HashSet::new());
        Self { order, references, seqs, waiting, lost, cursor: 0, asked: 0 }
    }

    fn row(&self, n: usize) -> QueueRow {
        QueueRow { lost: self.lost.contains(&n), ..row(n, self.seqs[n]) }
    }

    fn page(&mut self) -> bool {
        let mut rows: Vec<_> = self.waiting.iter().map(|n| self.row(*n)).collect();
        rows.retain(|row| row.seq > self.cursor);
        rows.sort_by_key(|row| row.seq);
        rows.truncate(16);
        for row in rows.iter().cloned() {
            self.cursor = row.seq;
            self.order.offer(row);
        }
        !rows.is_empty()
    }

    /// The next to be carried, as the worker finds it.
    fn next(&mut self) -> Option<usize> {
        while self.order.len() < AHEAD && self.page() {}
        loop {
            assert!(self.order.len() <= ROWS_MAX);
            match self.order.step(NOW) {
                Step::Carry(row) => return Some(number(&row.what)),
                Step::References(what) => {
                    let references = self.references[number(&what)].iter();
                    self.order.refers_to(&what, references.map(|n| path(*n)).collect());
                }
                Step::Row(what) => {
                    self.asked += 1;
                    let n = number(&what);
                    let row = self.waiting.contains(&n).then(|| self.row(n));
                    self.order.found(&what, row, NOW);
                }
                Step::Nothing => {
                    if !(self.order.has_room() && self.page()) {
                        return None;
                    }
                }
            }
        }
    }

    fn done(&mut self, n: usize) {
        self.waiting.remove(&n);
        self.order.done(&path(n));
    }

    /// Whether this leads to itself.
    fn is_cyclic(&self, n: usize) -> bool {
        let (mut seen, mut open) = (HashSet::new(), self.references[n].clone());
        while let Some(at) = open.pop() {
            if at == n {
                return true;
            }
            if seen.insert(at) {
                open.extend(self.references[at].iter().copied());
            }
        }
        false
    }
}

/// Up to 40 things with up to 5 references each; references to themselves are left out, as the
/// worker does.
fn graphs(acyclic: bool) -> impl Strategy<Value = (Vec<Vec<usize>>, Vec<u64>)> {
    (1usize..40).prop_flat_map(move |count| {
        let references = prop::collection::vec(prop::collection::vec(0..count, 0..5), count);
        let seqs = Just((1..=count as u64).collect::<Vec<_>>()).prop_shuffle();
        (references, seqs).prop_map(move |(mut references, seqs)| {
            for (n, references) in references.iter_mut().enumerate() {
                references.retain(|to| if acyclic { *to < n } else { *to != n });
            }
            (references, seqs)
        })
    })
}

proptest! {
    #[test]
    fn references_are_there_before_whoever_refers_to_them(
        (references, seqs) in graphs(true),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        let mut model = Model::new(references, seqs);
        let (mut under_way, mut choices) = (Vec::new(), choices.into_iter().cycle());
        while !model.waiting.is_empty() {
            while under_way.len() < 4 {
                let Some(n) = model.next() else { break };
                prop_assert!(!under_way.contains(&n), "{n} is under way already");
                for reference in &model.references[n] {
                    prop_assert!(!model.waiting.contains(reference), "{n} before {reference}");
                }
                under_way.push(n);
            }
            prop_assert!(!under_way.is_empty(), "all wait and nothing is under way");
            let ends = choices.next().unwrap().index(under_way.len());
            model.done(under_way.swap_remove(ends));
        }
        prop_assert_eq!(model.order.len(), 0);
    }

    #[test]
    fn cycles_block_nobody_and_keep_the_order_of_the_rest(
        (references, seqs) in graphs(false),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        let mut model = Model::new(references, seqs);
        let (mut under_way, mut choices) = (Vec::new(), choices.into_iter().cycle());
        while !model.waiting.is_empty() {
            while under_way.len() < 4 {
                let Some(n) = model.next() else { break };
                for reference in &model.references[n] {
                    let fine = !model.waiting.contains(reference) || model.is_cyclic(*reference);
                    prop_assert!(fine, "{} before {}", n, reference);
                }
                under_way.push(n);
            }
            prop_assert!(!under_way.is_empty(), "all wait and nothing is under way");
            let ends = choices.next().unwrap().index(under_way.len());
            model.done(under_way.swap_remove(ends));
        }
    }

    #[test]
    fn what_is_parked_or_lost_takes_its_referrers_and_nobody_else(
        (references, seqs) in graphs(true),
        bad in prop::collection::hash_set(0usize..40, 1..4),
        gone in prop::collection::hash_set(0usize..40, 0..3),
    ) {
        let mut model = Model::new(references, seqs);
        model.lost = gone.iter().copied().filter(|n| *n < model.seqs.len()).collect();
        let mut stays: HashSet<usize> = &bad | &model.lost;
        for n in 0..model.references.len() {
            if model.references[n].iter().any(|reference| stays.contains(reference)) {
                stays.insert(n);
            }
        }
        stays.retain(|n| *n < model.references.len());
        while let Some(n) = model.next() {
            if bad.contains(&n) {
                prop_assert!(model.order.park(&path(n), "too odd".into(), NOW));
            } else {
                model.done(n);
            }
        }
        prop_assert_eq!(&model.waiting, &stays);
        prop_assert_eq!(model.order.parked(), (&stays - &model.lost).len());
        // Mended, all goes.
        model.lost.clear();
        model.order.retry();
        model.cursor = 0;
        while let Some(n) = model.next() {
            model.done(n);
        }
        prop_assert!(model.waiting.is_empty());
    }
}

#[test]
fn rows_go_in_the_order_of_their_acceptance() {
    let mut model = Model::new(vec![vec![]; 600], (1..=600).collect());
    for n in 0..600 {
        assert_eq!(model.next(), Some(n));
        assert!(model.order.len() <= AHEAD + 16);
        model.done(n);
    }
    assert_eq!(model.next(), None);
    assert_eq!(model.asked, 0);
}

#[test]
fn a_reference_that_was_accepted_again_much_later_still_goes_first() {
    let mut references = vec![vec![]; 2000];
    references[0] = vec![1999];
    references[1] = vec![0];
    let mut model = Model::new(references, (1..=2000).collect());
    assert_eq!(model.next(), Some(1999));
    assert_eq!(model.next(), Some(2));
    model.done(1999);
    assert_eq!(model.next(), Some(0));
    assert_eq!(model.next(), Some(3));
}

#[test]
fn a_chain_that_is_longer_than_the_bound_goes_all_the_same() {
    let count = ROWS_MAX * 2;
    let references = (0..count).map(|n| (n + 1 < count).then_some(n + 1).into_iter().collect());
    let mut model = Model::new(references.collect(), (1..=count as u64).collect());
    while let Some(n) = model.next() {
        model.done(n);
    }
    assert!(model.waiting.is_empty());
}

#[test]
fn what_all_refer_to_is_asked_for_once() {
    let references = (0..200).map(|_| vec![1000]).collect();
    let mut model = Model::new(references, (1..=200).collect());
    while let Some(n) = model.next() {
        model.done(n);
    }
    assert_eq!(model.asked, 1);
}

#[test]
fn what_failed_comes_after_what_did_not() {
    let mut model = Model::new(vec![vec![]; 3], vec![1, 2, 3]);
    assert_eq!(model.next(), Some(0));
    assert!(!model.order.failed(&path(0), 0));
    assert_eq!(model.next(), Some(1));
    assert!(!model.order.failed(&path(1), 0));
    assert_eq!(model.next(), Some(2));
    model.done(2);
    assert_eq!(model.next(), Some(0));
    assert!(!model.order.failed(&path(0), 0));
    assert_eq!(model.next(), Some(1), "it failed less often");
}

#[test]
fn a_row_is_at_fault_only_where_others_go_well() {
    let mut order = Order::default();
    order.offer(row(0, 1));
    for _ in 0..100 {
        assert!(!order.failed(&path(0), 7), "all fail: it is the target's trouble");
    }
    for successes in 8..11 {
        assert!(!order.failed(&path(0), successes));
    }
    assert!(order.failed(&path(0), 11));
}

#[test]
fn a_row_that_is_accepted_again_under_way_is_carried_again() {
    let mut order = Order::default();
    order.offer(row(0, 1));
    order.refers_to(&path(0), vec![]);
    assert_eq!(order.step(NOW), Step::Carry(row(0, 1)));
    order.offer(row(0, 1));
    order.offer(row(0, 9));
    assert_eq!(order.step(NOW), Step::Nothing);
    order.done(&path(0));
    assert_eq!(order.step(NOW), Step::References(path(0)));
    order.refers_to(&path(0), vec![]);
    assert_eq!(order.step(NOW), Step::Carry(row(0, 9)));
    order.done(&path(0));
    assert_eq!((order.step(NOW), order.len()), (Step::Nothing, 0));
}

#[test]
fn parked_rows_are_tried_again_after_an_hour_with_their_referrers() {
    let mut model = Model::new(vec![vec![], vec![0]], vec![1, 2]);
    assert_eq!(model.next(), Some(0));
    assert!(model.order.park(&path(0), "no".into(), NOW));
    assert_eq!(model.next(), None);
    assert_eq!(model.order.parked(), 2);
    assert_eq!(model.order.refused().count(), 1);
    assert_eq!(model.order.due(), Some(PARKED_FOR));
    assert!(!model.order.unpark(Duration::from_mins(59)));
    assert!(model.order.unpark(PARKED_FOR));
    model.cursor = 0;
    assert_eq!(model.next(), Some(0));
    model.done(0);
    assert_eq!(model.next(), Some(1));
}

#[test]
fn too_many_parked_rows_are_no_longer_the_objects_fault() {
    let mut order = Order::default();
    for n in 0..PARKED_MAX {
        assert!(order.park(&path(n), "no".into(), NOW));
    }
    order.offer(row(PARKED_MAX, 1));
    order.refers_to(&path(PARKED_MAX), vec![path(0)]);
    assert_eq!(order.step(NOW), Step::Nothing);
    assert!(!order.park(&path(PARKED_MAX), "no".into(), NOW));
    assert_eq!(order.len(), 1, "it waits on");
}
