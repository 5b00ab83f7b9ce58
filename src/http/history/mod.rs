//! The figures of the past: rings by hour and by day, and sums for ever. Pure: time is an argument,
//! and may stand still, step back, or be years off. What comes while the clock cannot be right goes
//! into the sums alone; a step back makes two hours one, and neither loses nor doubles anything.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use super::civil::{DAY_S, HOUR_S, is_sane};

/// Hours that are kept: two days, as one likes to look back at a night.
pub(super) const HOURS_MAX: u32 = 48;

/// Days that are kept: a year and a month, so that a year can be laid beside the one before.
const DAYS_MAX: u32 = 400;

/// Days of a week.
const WEEK_DAYS: u32 = 7;

/// Days over which the growth of the store is taken: a week has one of each, two smooth a visit.
const GROWTH_DAYS: u32 = 14;

/// Further away than ten years nobody knows.
const FULL_DAYS_MAX: f64 = 3650.0;

/// Added to a temperature in tenths, so that the coldest is above 0, which stands for none.
const TEMPERATURE_ZERO: i16 = 1000;

/// The rows' names; the number is that of what is in them.
const HOURS_ROW: &str = "hours-1";
const TODAY_ROW: &str = "today-1";
const DAYS_ROW: &str = "days-1";

/// Bytes of a tally: five numbers.
const TALLY_LEN: usize = 5 * 8;

/// Bytes of an entry: its hour or day, and what is known of it.
const ENTRY_LEN: usize = 4 + TALLY_LEN + 8 + 4 + 2;

/// What was counted, since the start or in a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) absent: u64,
    pub(super) served_bytes: u64,
    pub(super) fetched_bytes: u64,
}

impl Tally {
    const fn numbers(self) -> [u64; 5] {
        [self.hits, self.misses, self.absent, self.served_bytes, self.fetched_bytes]
    }

    const fn of([hits, misses, absent, served_bytes, fetched_bytes]: [u64; 5]) -> Self {
        Self { hits, misses, absent, served_bytes, fetched_bytes }
    }

    fn with(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        let (mut numbers, others) = (self.numbers(), other.numbers());
        for (number, other) in numbers.iter_mut().zip(others) {
            *number = of(*number, other);
        }
        Self::of(numbers)
    }

    /// The sum.
    pub(super) fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    fn since(self, before: Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    /// What did not have to come over the line again.
    pub(super) const fn saved_bytes(self) -> u64 {
        self.served_bytes.saturating_sub(self.fetched_bytes)
    }

    /// Hits in a hundred of what could be answered.
    pub(super) fn hit_percent(self) -> Option<f64> {
        let answered = self.hits.saturating_add(self.misses);
        (answered > 0).then(|| 100.0 * float(self.hits) / float(answered))
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks::<8>() else { return None };
        let numbers: [[u8; 8]; 5] = numbers.try_into().ok()?;
        Some(Self::of(numbers.map(u64::from_be_bytes)))
    }
}

/// A number for a plot or a part, where the last digits do not count.
#[allow(clippy::cast_precision_loss, reason = "no plot shows one in 2^52")]
pub(super) const fn float(number: u64) -> f64 {
    number as f64
}

/// One hour or one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) tally: Tally,
    /// What the store took at its end; 0 when that was not seen.
    pub(super) used_bytes: u64,
    /// The most that waited to be carried up.
    pub(super) waiting_max: u32,
    /// The highest temperature, in tenths of a degree.
    temperature_max: Option<i16>,
}

impl Entry {
    /// The highest temperature in degrees.
    pub(super) fn temperature_c(&self) -> Option<f64> {
        self.temperature_max.map(|tenths| f64::from(tenths) / 10.0)
    }

    /// Two parts of the same time, of which `self` is the later.
    fn join(&mut self, earlier: Self) {
        self.tally = self.tally.plus(earlier.tally);
        if self.used_bytes == 0 {
            self.used_bytes = earlier.used_bytes;
        }
        self.waiting_max = self.waiting_max.max(earlier.waiting_max);
        self.temperature_max = self.temperature_max.max(earlier.temperature_max);
    }

    fn write(&self, number: u32, to: &mut Vec<u8>) {
        to.extend(number.to_be_bytes());
        to.extend(self.tally.numbers().iter().flat_map(|number| number.to_be_bytes()));
        to.extend(self.used_bytes.to_be_bytes());
        to.extend(self.waiting_max.to_be_bytes());
        let tenths =
            self.temperature_max.map_or(0, |tenths| tenths.saturating_add(TEMPERATURE_ZERO));
        to.extend(tenths.to_be_bytes());
    }

    fn read(bytes: &[u8; ENTRY_LEN]) -> Option<(u32, Self)> {
        let (number, rest) = bytes.split_first_chunk::<4>()?;
        let (tally, rest) = rest.split_first_chunk::<TALLY_LEN>()?;
        let (used, rest) = rest.split_first_chunk::<8>()?;
        let (waiting, tenths) = rest.split_first_chunk::<4>()?;
        let tenths = i16::from_be_bytes(tenths.try_into().ok()?);
        let entry = Self {
            tally: Tally::read(tally)?,
            used_bytes: u64::from_be_bytes(*used),
            waiting_max: u32::from_be_bytes(*waiting),
            temperature_max: (tenths != 0).then(|| tenths.saturating_sub(TEMPERATURE_ZERO)),
        };
        Some((u32::from_be_bytes(*number), entry))
    }
}

type Ring = BTreeMap<u32, Entry>;

/// What is looked at now and then.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    /// What the store takes; `None` while it is degraded.
    pub(super) used_bytes: Option<u64>,
    /// Objects that wait to be carried up.
    pub(super) waiting: u64,
    /// The processor's temperature.
    pub(super) temperature_c: Option<f32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The counters when they were last looked at.
    last: Tally,
    ever: Tally,
    hours: Ring,
    days: Ring,
    /// The day of the last figure, which may change yet.
    today: u32,
    /// What was kept before this start is in here.
    is_told: bool,
}

/// The hour of a time, when the clock can be right.
fn hour_of(now_s: u64) -> Option<u32> {
    u32::try_from(now_s / HOUR_S).ok().filter(|_| is_sane(now_s))
}

/// The day of a time, when the clock can be right.
fn day_of(now_s: u64) -> Option<u32> {
    u32::try_from(now_s / DAY_S).ok().filter(|_| is_sane(now_s))
}

/// The oldest go; but first a future that no clock will reach soon, which a wrong one made.
fn bound(ring: &mut Ring, now: u32, max: u32) {
    while ring.len() > usize::try_from(max).unwrap_or(usize::MAX) {
        let is_far = ring.last_key_value().is_some_and(|(last, _)| *last > now.saturating_add(max));
        if is_far {
            ring.pop_last();
        } else {
            ring.pop_first();
        }
    }
}

impl History {
    /// The counters stand so now.
    pub(super) fn count(&mut self, now_s: u64, counters: Tally) {
        let new = counters.since(self.last);
        self.last = counters;
        if new == Tally::default() {
            return;
        }
        self.ever = self.ever.plus(new);
        self.note(now_s, |entry| entry.tally = entry.tally.plus(new));
    }

    /// Something was looked at.
    pub(super) fn sample(&mut self, now_s: u64, sample: &Sample) {
        let waiting = u32::try_from(sample.waiting).unwrap_or(u32::MAX);
        #[allow(clippy::cast_possible_truncation, reason = "a float's cast keeps to the bounds")]
        let tenths = sample.temperature_c.map(|degrees| (degrees * 10.0).round() as i16);
        self.note(now_s, |entry| {
            entry.used_bytes = sample.used_bytes.unwrap_or(entry.used_bytes);
            entry.waiting_max = entry.waiting_max.max(waiting);
            entry.temperature_max = entry.temperature_max.max(tenths);
        });
    }

    fn note(&mut self, now_s: u64, act: impl Fn(&mut Entry)) {
        let (Some(hour), Some(day)) = (hour_of(now_s), day_of(now_s)) else { return };
        act(self.hours.entry(hour).or_default());
        act(self.days.entry(day).or_default());
        bound(&mut self.hours, hour, HOURS_MAX);
        bound(&mut self.days, day, DAYS_MAX);
        self.today = day;
    }

    /// All that was ever counted.
    pub(super) const fn ever(&self) -> Tally {
        self.ever
    }

    /// What was counted on this day, and in the seven that end with it.
    pub(super) fn today_and_week(&self, now_s: u64) -> (Tally, Tally) {
        let Some(today) = day_of(now_s) else { return Default::default() };
        let week = self.days.range(today.saturating_sub(WEEK_DAYS - 1)..=today);
        let week = week.fold(Tally::default(), |sum, (_, entry)| sum.plus(entry.tally));
        (self.days.get(&today).map(|entry| entry.tally).unwrap_or_default(), week)
    }

    /// The last two days by hour, empty hours too; none while the clock is wrong.
    pub(super) fn hours(&self, now_s: u64) -> Vec<(u32, Option<Entry>)> {
        let Some(now) = hour_of(now_s) else { return Vec::new() };
        let from = now.saturating_sub(HOURS_MAX - 1);
        (from..=now).map(|hour| (hour, self.hours.get(&hour).copied())).collect()
    }

    /// The last days, at most so many: from the first that is known, but at least a fortnight.
    pub(super) fn days(&self, now_s: u64, count_max: u32) -> Vec<(u32, Option<Entry>)> {
        let Some(today) = day_of(now_s) else { return Vec::new() };
        let first = self.days.keys().next().copied().unwrap_or(today);
        let first = first.min(today.saturating_sub(GROWTH_DAYS - 1));
        let from = first.max(today.saturating_sub(count_max.saturating_sub(1)));
        (from..=today).map(|day| (day, self.days.get(&day).copied())).collect()
    }

    /// In how many days the store will have grown to its budget, as it grew in the last two weeks:
    /// 0 when it has, and nothing when it does not grow or too little is known.
    pub(super) fn days_to_full(
        &self,
        now_s: u64,
        used_bytes: u64,
        budget_bytes: u64,
    ) -> Option<f64> {
        days_to_full(&self.days, day_of(now_s)?, used_bytes, budget_bytes)
    }

    /// What was kept before is laid below what came since the start, once.
    pub(super) fn found(&mut self, rows: &[(String, Bytes)]) {
        if std::mem::replace(&mut self.is_told, true) {
            return;
        }
        for (name, row) in rows {
            let (sums, entries) = match name.as_str() {
                HOURS_ROW => row.split_at_checked(TALLY_LEN).unwrap_or_default(),
                TODAY_ROW | DAYS_ROW => (<&[u8]>::default(), &**row),
                _ => continue,
            };
            self.ever = self.ever.plus(Tally::read(sums).unwrap_or_default());
            let ring = if name == HOURS_ROW { &mut self.hours } else { &mut self.days };
            for (number, entry) in entries.as_chunks::<ENTRY_LEN>().0.iter().filter_map(Entry::read)
            {
                ring.entry(number).or_default().join(entry);
            }
        }
        let last_day = self.days.keys().next_back().copied().unwrap_or(0);
        self.today = if self.today == 0 { last_day } else { self.today };
        let hour = self.today.saturating_mul(24);
        bound(&mut self.hours, hour, HOURS_MAX);
        bound(&mut self.days, self.today, DAYS_MAX);
    }

    /// What is to be kept. The row of many days changes once a day.
    pub(super) fn rows(&self) -> Vec<(&'static str, Bytes)> {
        if self.ever == Tally::default() && self.hours.is_empty() {
            return Vec::new();
        }
        let mut hours: Vec<u8> = self.ever.numbers().iter().flat_map(|n| n.to_be_bytes()).collect();
        self.hours.iter().for_each(|(hour, entry)| entry.write(*hour, &mut hours));
        let (mut today, mut days) = (Vec::new(), Vec::new());
        for (day, entry) in &self.days {
            entry.write(*day, if *day == self.today { &mut today } else { &mut days });
        }
        vec![(HOURS_ROW, hours.into()), (TODAY_ROW, today.into()), (DAYS_ROW, days.into())]
    }
}

fn days_to_full(ring: &Ring, today: u32, used_bytes: u64, budget_bytes: u64) -> Option<f64> {
    // Eviction begins a fiftieth before: then it is as full as it gets.
    if used_bytes >= budget_bytes - budget_bytes / 25 {
        return Some(0.0);
    }
    let seen = ring.range(today.saturating_sub(GROWTH_DAYS)..today);
    let (day, first) = seen.into_iter().find(|(_, entry)| entry.used_bytes > 0)?;
    let grown = used_bytes.checked_sub(first.used_bytes).filter(|grown| *grown > 0)?;
    let a_day = float(grown) / f64::from(today.saturating_sub(*day));
    let days = float(budget_bytes.saturating_sub(used_bytes)) / a_day;
    (days <= FULL_DAYS_MAX).then_some(days)
}

#[cfg(test)]
mod tests;
