//! Time stands still, runs, steps back and jumps; nothing is lost or counted twice.

use proptest::prelude::*;

use super::*;

/// 2026-11-21 13:00 UTC.
const NOW_S: u64 = 1_795_266_000;

fn hits(hits: u64) -> Tally {
    Tally { hits, ..Tally::default() }
}

fn kept(history: &History) -> Vec<(String, Bytes)> {
    history.rows().into_iter().map(|(name, row)| (name.to_owned(), row)).collect()
}

/// As after a restart.
fn again(history: &History) -> History {
    let mut again = History::default();
    again.found(&kept(history));
    again
}

fn in_hours(history: &History) -> u64 {
    history.hours.values().map(|entry| entry.tally.hits).sum()
}

fn in_days(history: &History) -> u64 {
    history.days.values().map(|entry| entry.tally.hits).sum()
}

#[test]
fn today_and_week_are_sums_of_days_and_ever_of_all() {
    let mut history = History::default();
    for (day, counter) in [(0, 1), (3, 11), (9, 111), (9, 1111)] {
        history.count(NOW_S + day * DAY_S, hits(counter));
    }
    let (today, week) = history.today_and_week(NOW_S + 9 * DAY_S);
    assert_eq!((today.hits, week.hits, history.ever().hits), (1100, 1110, 1111));
    let (today, week) = history.today_and_week(NOW_S + 10 * DAY_S);
    assert_eq!((today.hits, week.hits), (0, 1100));
}

#[test]
fn what_was_kept_is_there_after_a_restart_and_is_not_doubled() {
    let mut history = History::default();
    history.count(NOW_S, hits(3));
    let sample = Sample { used_bytes: Some(7), waiting: 2, temperature_c: Some(-3.25) };
    history.sample(NOW_S, &sample);
    history.sample(NOW_S, &Sample { used_bytes: None, waiting: 1, temperature_c: None });
    let mut again = again(&history);
    assert_eq!(
        (&again.hours, &again.days, again.ever),
        (&history.hours, &history.days, history.ever)
    );
    let (_, entry) = again.hours(NOW_S).pop().unwrap();
    let entry = entry.unwrap();
    assert_eq!((entry.used_bytes, entry.waiting_max, entry.temperature_c()), (7, 2, Some(-3.3)));
    // A store that is lost and opened again tells the same once more.
    let told = kept(&again);
    again.found(&told);
    assert_eq!(again.ever(), history.ever());
    // The counters begin at 0 again.
    again.count(NOW_S, hits(2));
    assert_eq!((again.ever().hits, in_hours(&again), in_days(&again)), (5, 5, 5));
}

#[test]
fn a_store_that_opens_late_costs_nothing() {
    let mut before = History::default();
    before.count(NOW_S, hits(3));
    let mut history = History::default();
    history.count(NOW_S + 60, hits(2));
    history.found(&kept(&before));
    assert_eq!((history.ever().hits, in_hours(&history), in_days(&history)), (5, 5, 5));
}

#[test]
fn a_clock_that_was_never_set_counts_into_the_sums_alone() {
    for now_s in [0, 60, 1_577_836_800, u64::MAX] {
        let mut history = History::default();
        history.count(now_s, hits(3));
        history.sample(now_s, &Sample::default());
        assert_eq!((history.ever().hits, in_hours(&history), in_days(&history)), (3, 0, 0));
        assert!(history.hours(now_s).is_empty() && history.days(now_s, 365).is_empty());
        assert_eq!(history.today_and_week(now_s), Default::default());
        // It is set: what comes from now on has its time, and the rest is not counted again.
        history.count(NOW_S, hits(5));
        assert_eq!((history.ever().hits, in_hours(&history)), (5, 2));
    }
}

#[test]
fn a_clock_that_jumps_ahead_for_a_moment_costs_no_hours() {
    let mut history = History::default();
    for hour in 0..48 {
        history.count(NOW_S + hour * HOUR_S, hits(hour + 1));
    }
    let now_s = NOW_S + 47 * HOUR_S;
    history.count(now_s + 20 * 365 * DAY_S, hits(49));
    history.count(now_s, hits(50));
    let shown = history.hours(now_s).iter().filter(|(_, entry)| entry.is_some()).count();
    assert_eq!((shown, history.ever().hits), (47, 50));
    history.count(now_s + HOUR_S, hits(51));
    assert_eq!(history.hours.len(), 48);
    assert!(history.hours.keys().all(|hour| u64::from(*hour) * HOUR_S <= now_s + HOUR_S));
}

#[test]
fn rows_of_other_makers_and_damaged_ones_are_left_out() {
    let mut history = History::default();
    history.found(&[
        (HOURS_ROW.into(), Bytes::from_static(b"short")),
        (DAYS_ROW.into(), Bytes::from_static(&[7; ENTRY_LEN - 1])),
        ("hours-9".into(), Bytes::from_static(&[7; ENTRY_LEN])),
    ]);
    assert_eq!((history.ever(), history.hours.len(), history.days.len()), (Tally::default(), 0, 0));
    assert!(history.rows().is_empty());
}

#[test]
fn rows_do_not_grow_beyond_their_bound() {
    let mut history = History::default();
    for hour in 0..24 * 500 {
        history.count(NOW_S + hour * HOUR_S, hits(hour + 1));
    }
    let lens: Vec<_> = history.rows().iter().map(|(_, row)| row.len()).collect();
    assert_eq!(lens, [TALLY_LEN + 48 * ENTRY_LEN, ENTRY_LEN, 399 * ENTRY_LEN]);
    // A page of the store's index is 4 KiB.
    assert!(lens[0] + lens[1] < 3800, "{lens:?}");
}

#[test]
fn the_row_of_days_changes_once_a_day() {
    let mut history = History::default();
    history.count(NOW_S - DAY_S, hits(1));
    history.count(NOW_S, hits(2));
    let before = history.rows();
    history.count(NOW_S + HOUR_S, hits(3));
    let after = history.rows();
    assert!(before[2] == after[2] && before[0] != after[0]);
}

#[test]
fn it_is_full_when_it_goes_on_as_it_did() {
    let mut history = History::default();
    let used = |used: u64| Sample { used_bytes: Some(used), ..Sample::default() };
    assert_eq!(history.days_to_full(NOW_S, 10, 1000), None);
    for day in 0..10 {
        history.sample(NOW_S + day * DAY_S, &used(100 + 10 * day));
    }
    let now_s = NOW_S + 9 * DAY_S;
    assert_eq!(history.days_to_full(now_s, 190, 1000), Some(81.0));
    assert_eq!(history.days_to_full(now_s, 100, 1000), None, "it does not grow");
    assert_eq!(history.days_to_full(now_s, 970, 1000), Some(0.0), "as full as it gets");
    assert_eq!(history.days_to_full(now_s, 101, u64::MAX), None, "nobody knows");
    assert_eq!(history.days_to_full(now_s, 0, 0), Some(0.0));
    assert_eq!(history.days_to_full(0, 190, 1000), None, "without a clock");
}

proptest! {
    /// Whatever the clock does and however often it starts anew, sums are what was counted, and no
    /// ring holds more than that.
    #[test]
    fn nothing_is_lost_or_doubled(
        steps in proptest::collection::vec((0_u64..2, -200_000_i64..200_000, 1_u64..9, 0_u8..8), 1..200)
    ) {
        let mut history = History::default();
        let (mut now, mut counter, mut all, mut timed) = (NOW_S, 0, 0, 0);
        for (set, step, new, restart) in steps {
            now = now.saturating_add_signed(step);
            let shown = if set == 0 && restart == 1 { 0 } else { now };
            counter += new;
            all += new;
            timed += if is_sane(shown) { new } else { 0 };
            history.count(shown, hits(counter));
            if restart == 0 {
                history = again(&history);
                counter = 0;
            }
        }
        prop_assert_eq!(history.ever().hits, all);
        // 200 steps of two days at most stay within 400 days.
        prop_assert_eq!(in_days(&history), timed);
        prop_assert!(in_hours(&history) <= timed);
        prop_assert!(history.hours.len() <= 48);
    }
}
