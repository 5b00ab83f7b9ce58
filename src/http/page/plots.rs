//! Which plots the page has, and the same as tables: from the history, up to now.

use super::super::civil::{self, DAY_S, HOUR_S};
use super::super::history::{Entry, Tally, float};
use super::super::words::bytes;
use super::plot::{Plot, Series, Unit};

/// Days of the plots by day: a year.
pub(in super::super) const DAYS_SHOWN_MAX: u32 = 365;

/// Days up to which each week has its mark; beyond that, each month has.
const DAYS_BY_WEEK_MAX: usize = 60;

/// Days up to which each month has its name; beyond that, every other has.
const DAYS_BY_MONTH_MAX: usize = 200;

/// Some time after another, with what is known of each.
pub(in super::super) type Times = Vec<(u32, Option<Entry>)>;

/// A plot on the page.
pub(super) struct Shown {
    pub(super) title: String,
    pub(super) svg: String,
    /// What the colours are, where there are two.
    pub(super) legend: &'static [(&'static str, &'static str)],
}

/// A table of the same figures.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) rows: Vec<[String; 7]>,
}

/// Hours or days.
#[derive(Clone, Copy)]
struct Scale<'a> {
    times: &'a Times,
    is_hours: bool,
}

impl Scale<'_> {
    fn series(&self, of: impl Fn(&Entry) -> Option<f64>) -> Series {
        self.times.iter().map(|(_, entry)| entry.as_ref().and_then(&of)).collect()
    }

    fn begins_s(&self, number: u32) -> u64 {
        u64::from(number) * if self.is_hours { HOUR_S } else { DAY_S }
    }

    fn ticks(&self) -> Vec<(usize, String)> {
        let len = self.times.len();
        let tick = |(index, (number, _)): (usize, &(u32, Option<Entry>))| {
            let begins_s = self.begins_s(*number);
            let (_, month, day) = civil::date(begins_s / DAY_S);
            let date = || format!("{} {day}", civil::month_name(month));
            let label = match (self.is_hours, begins_s / HOUR_S % 24) {
                (true, 0) => date(),
                (true, 12) => "12:00".to_owned(),
                (true, _) => return None,
                (false, _) if len <= DAYS_BY_WEEK_MAX => {
                    // Counted from the last, so that the newest has its name.
                    let weeks = if len <= 2 * 7 { 3 } else { 7 * len.div_ceil(42) };
                    if (len - 1 - index) % weeks != 1 {
                        return None;
                    }
                    date()
                }
                (false, _) => {
                    if day != 1 || (len > DAYS_BY_MONTH_MAX && month % 2 == 0) {
                        return None;
                    }
                    civil::month_name(month).to_owned()
                }
            };
            Some((index, label))
        };
        self.times.iter().enumerate().filter_map(tick).collect()
    }

    /// In how much time.
    fn told(&self) -> String {
        if self.is_hours {
            "by hour, two days".to_owned()
        } else {
            format!("by day, {} days", self.times.len())
        }
    }

    fn plot(
        &self,
        (id, what): (&'static str, &str),
        (unit, is_amount): (Unit, bool),
        series: Vec<Series>,
        told: String,
    ) -> Plot {
        let title = format!("{what} {}", self.told());
        Plot { id, title, told, unit, is_amount, series, ticks: self.ticks() }
    }

    fn bytes(&self, id: &'static str) -> Plot {
        let sum = self.times.iter().filter_map(|(_, entry)| entry.as_ref());
        let sum = sum.fold(Tally::default(), |sum, entry| sum.plus(entry.tally));
        let told = format!(
            "{} sent to the house and {} fetched over the line in this time.",
            bytes(sum.served_bytes),
            bytes(sum.fetched_bytes)
        );
        let served = self.series(|entry| Some(float(entry.tally.served_bytes)));
        let fetched = self.series(|entry| Some(float(entry.tally.fetched_bytes)));
        self.plot((id, "Bytes"), (Unit::Bytes, true), vec![served, fetched], told)
    }

    fn hit_rate(&self, id: &'static str) -> Plot {
        let rates = self.series(|entry| entry.tally.hit_percent());
        let told =
            last_of(&rates, |rate| format!("{rate:.0} % of the last answers came from the disk."));
        self.plot((id, "Hit rate"), (Unit::Percent, false), vec![rates], told)
    }

    fn disk(&self, id: &'static str) -> Plot {
        let used = self.series(|entry| (entry.used_bytes > 0).then(|| float(entry.used_bytes)));
        let last = self.times.iter().rev().find_map(|(_, entry)| entry.map(|it| it.used_bytes));
        let told = format!("The store took {} at last.", bytes(last.unwrap_or(0)));
        self.plot((id, "Store"), (Unit::Bytes, false), vec![used], told)
    }

    fn temperature(&self, id: &'static str) -> Option<Plot> {
        let degrees = self.series(Entry::temperature_c);
        degrees.iter().any(Option::is_some).then(|| {
            let told = last_of(&degrees, |degrees| format!("{degrees:.0} degrees at last."));
            self.plot((id, "Temperature, highest"), (Unit::Celsius, false), vec![degrees], told)
        })
    }

    fn queue(&self, id: &'static str) -> Plot {
        let waits = self.series(|entry| Some(f64::from(entry.waiting_max)));
        let told = last_of(&waits, |waits| format!("{waits:.0} objects waited at last."));
        self.plot((id, "Waiting to be carried up"), (Unit::Count, true), vec![waits], told)
    }
}

fn last_of(series: &Series, told: impl FnOnce(f64) -> String) -> String {
    let last = series.iter().rev().find_map(|value| *value);
    last.map_or_else(|| "Nothing is known yet.".to_owned(), told)
}

/// The plots in their order, without those on which nothing is to be seen; none while there is no
/// time to plot over.
pub(super) fn plots(hours: &Times, days: &Times, has_targets: bool) -> Vec<Shown> {
    if hours.is_empty() {
        return Vec::new();
    }
    let hours = Scale { times: hours, is_hours: true };
    let days = Scale { times: days, is_hours: false };
    let both: &[_] = &[("a", "sent to the house"), ("b", "fetched over the line")];
    let shown = |plot: Plot| {
        let legend = if plot.series.len() > 1 { both } else { &[] };
        Shown { svg: plot.svg(), title: plot.title, legend }
    };
    let mut plots =
        vec![hours.bytes("bh"), days.bytes("bd"), hours.hit_rate("rh"), days.hit_rate("rd")];
    plots.push(days.disk("sd"));
    plots.extend(hours.temperature("th"));
    if has_targets {
        plots.push(hours.queue("qh"));
    }
    plots.into_iter().filter(Plot::has_any).map(shown).collect()
}

/// The same figures in rows, the newest first, without what is not known.
pub(super) fn tables(hours: &Times, days: &Times) -> [Table; 2] {
    let rows = |times: &Times, name: &dyn Fn(u64) -> String| {
        let known = times.iter().rev().filter_map(|(number, entry)| Some((*number, (*entry)?)));
        known.map(|(number, entry)| row(name(u64::from(number)), &entry)).collect()
    };
    let hour = |hour: u64| format!("{} {:02}:00", civil::day(hour / 24), hour % 24);
    [
        Table { title: "The figures by hour", rows: rows(hours, &hour) },
        Table { title: "The figures by day", rows: rows(days, &civil::day) },
    ]
}

fn row(time: String, entry: &Entry) -> [String; 7] {
    let unknown = || "-".to_owned();
    let used = Some(entry.used_bytes).filter(|used| *used > 0);
    [
        time,
        bytes(entry.tally.served_bytes),
        bytes(entry.tally.fetched_bytes),
        entry.tally.hit_percent().map_or_else(unknown, |rate| format!("{rate:.0} %")),
        used.map_or_else(unknown, bytes),
        entry.temperature_c().map_or_else(unknown, |degrees| format!("{degrees:.0} \u{b0}C")),
        entry.waiting_max.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::history::{History, Sample};
    use super::*;

    /// 2026-11-21 13:00 UTC.
    const NOW_S: u64 = 1_795_266_000;

    fn history(days: u64) -> History {
        let mut history = History::default();
        for hour in (0..days * 24).rev() {
            let now_s = NOW_S - hour * HOUR_S;
            let counter = days * 24 - hour;
            let counters = Tally {
                hits: 3 * counter,
                misses: counter,
                absent: 0,
                served_bytes: counter << 30,
                fetched_bytes: counter << 20,
            };
            history.count(now_s, counters);
            let sample = Sample {
                used_bytes: Some(counter << 20),
                waiting: hour % 7,
                temperature_c: Some(50.0),
            };
            history.sample(now_s, &sample);
        }
        history
    }

    fn times(days: u64) -> (Times, Times) {
        let history = history(days);
        (history.hours(NOW_S), history.days(NOW_S, DAYS_SHOWN_MAX))
    }

    #[test]
    fn every_plot_is_there_with_ticks_that_do_not_crowd() {
        for (days, months) in [(1, 0), (20, 0), (90, 3), (400, 6)] {
            let (hours, days) = times(days);
            let shown = plots(&hours, &days, true);
            let titles: Vec<_> = shown.iter().map(|plot| plot.title.as_str()).collect();
            let count = days.len();
            let by_day =
                [format!("Bytes by day, {count} days"), format!("Hit rate by day, {count} days")];
            let store = format!("Store by day, {count} days");
            let wanted = [
                "Bytes by hour, two days",
                &by_day[0],
                "Hit rate by hour, two days",
                &by_day[1],
                &store,
                "Temperature, highest by hour, two days",
                "Waiting to be carried up by hour, two days",
            ];
            assert_eq!(titles, wanted);
            for plot in &shown {
                let labels =
                    plot.svg.matches("<text").count() - plot.svg.matches("class=\"e\"").count();
                assert!((2..=8).contains(&labels), "{labels} of {}: {}", plot.title, plot.svg);
            }
            let ticks = Scale { times: &days, is_hours: false }.ticks();
            assert!(months == 0 || ticks.len() >= months, "{ticks:?}");
        }
    }

    #[test]
    fn tables_say_the_same_newest_first() {
        let (hours, days) = times(3);
        let [by_hour, by_day] = tables(&hours, &days);
        assert_eq!((by_hour.rows.len(), by_day.rows.len()), (48, 4));
        let newest =
            ["2026-11-21 13:00", "1.0 GiB", "1.0 MiB", "75 %", "72.0 MiB", "50 \u{b0}C", "0"];
        assert_eq!(by_hour.rows[0], newest);
        assert_eq!(by_day.rows[0][0], "2026-11-21");
    }

    #[test]
    fn without_a_clock_there_are_no_plots_and_without_targets_no_queue() {
        assert!(plots(&Vec::new(), &Vec::new(), true).is_empty());
        let new = History::default();
        let (hours, days) = (new.hours(NOW_S), new.days(NOW_S, DAYS_SHOWN_MAX));
        assert!(plots(&hours, &days, true).is_empty() && !hours.is_empty());
        let (hours, days) = times(1);
        assert!(!plots(&hours, &days, false).iter().any(|plot| plot.title.contains("Waiting")));
    }
}
