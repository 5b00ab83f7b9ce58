//! Plots as inline SVG, with axes and units. Pure: numbers in, text out. No foreign text comes here,
//! and no style: the page's own has the colours, for light and dark.

use std::fmt::Write as _;

/// The picture: as wide as a phone, so that its letters are 12 px there and a little more elsewhere.
const WIDTH: f64 = 360.0;
/// High enough for four steps of the axis.
const HEIGHT: f64 = 170.0;
/// Room for the longest label of the axis, `512 MiB`.
const LEFT: f64 = 58.0;
/// Room for half a letter beside the plot.
const RIGHT: f64 = 8.0;
/// Room for half a letter above the plot.
const TOP: f64 = 10.0;
/// Room for one line of labels below the plot.
const BOTTOM: f64 = 24.0;

/// Steps of the axis at most: more labels do not help.
const STEPS_MAX: f64 = 4.0;

/// More bars than that are thinner than two points side by side can be told apart.
const BARS_MAX: usize = 60;

/// What is left of a bar's place for the gap beside it.
const BAR_GAP: f64 = 0.2;

/// What numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Bytes,
    Percent,
    Celsius,
    Count,
}

impl Unit {
    /// The smallest round step of which [`STEPS_MAX`] reach this number.
    fn step(self, top: f64) -> f64 {
        let (base, rounds): (f64, &[f64]) = match self {
            Self::Bytes => (1024.0, &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]),
            Self::Percent | Self::Celsius | Self::Count => (10.0, &[1.0, 2.0, 5.0]),
        };
        let mut unit = 1.0;
        // A number has at most 308 digits.
        for _ in 0..309 {
            if let Some(round) = rounds.iter().find(|round| *round * unit * STEPS_MAX >= top) {
                return round * unit;
            }
            unit *= base;
        }
        f64::MAX
    }

    /// A number of the axis.
    fn label(self, value: f64) -> String {
        match self {
            Self::Percent => format!("{value:.0} %"),
            Self::Celsius => format!("{value:.0} \u{b0}C"),
            Self::Count => format!("{value:.0}"),
            Self::Bytes => {
                let (mut value, mut unit) = (value, "B");
                for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
                    if value < 1024.0 {
                        break;
                    }
                    (value, unit) = (value / 1024.0, next);
                }
                // A step is half or a quarter of the next unit at most.
                let digits = usize::from(value.fract() > 0.0);
                format!("{value:.digits$} {unit}")
            }
        }
    }
}

/// One row of numbers; `None` is not known.
pub(super) type Series = Vec<Option<f64>>;

/// A plot of one or two rows of numbers over the same time.
pub(super) struct Plot {
    /// Unlike any other on the page.
    pub(super) id: &'static str,
    /// What is shown, in a few words.
    pub(super) title: String,
    /// What can be seen, in a sentence, for who cannot see it.
    pub(super) told: String,
    pub(super) unit: Unit,
    /// Whether amounts are shown, which begin at 0, or how something was.
    pub(super) is_amount: bool,
    pub(super) series: Vec<Series>,
    /// Places on the axis of time, and what stands there.
    pub(super) ticks: Vec<(usize, String)>,
}

/// The classes of the first and second row in the page's style.
const CLASSES: [&str; 2] = ["a", "b"];

#[allow(clippy::cast_precision_loss, reason = "a year has few days")]
const fn float(number: usize) -> f64 {
    number as f64
}

impl Plot {
    /// Whether there is anything to be seen.
    pub(super) fn has_any(&self) -> bool {
        self.series.iter().flatten().flatten().any(|value| *value > 0.0)
    }

    fn len(&self) -> usize {
        self.series.iter().map(Vec::len).max().unwrap_or(0).max(1)
    }

    fn top(&self) -> f64 {
        let values = self.series.iter().flatten().flatten();
        let top = values.fold(0.0_f64, |top, value| top.max(*value));
        if self.unit == Unit::Percent { 100.0 } else { top.max(1.0) }
    }

    /// The picture.
    pub(super) fn svg(&self) -> String {
        let Self { id, title, told, .. } = self;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH:.0} {HEIGHT:.0}\" role=\"img\" aria-labelledby=\"{id}-t \
             {id}-d\"><title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{told}</desc>"
        );
        let step = self.unit.step(self.top());
        let top = step * (self.top() / step).ceil();
        let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let place = width / float(self.len());
        let y = |value: f64| TOP + height * (1.0 - value.clamp(0.0, top) / top);
        let mut lines = String::new();
        let mut value = 0.0;
        while value <= top {
            let at = y(value);
            put(&mut lines, format_args!("M{LEFT:.0} {at:.1}h{width:.0}"));
            let (x, at, label) = (LEFT - 5.0, at + 4.0, self.unit.label(value));
            put(
                &mut svg,
                format_args!("<text x=\"{x:.0}\" y=\"{at:.1}\" class=\"e\">{label}</text>"),
            );
            value += step;
        }
        for (index, label) in &self.ticks {
            let x = LEFT + place * (float(*index) + 0.5);
            let base = HEIGHT - BOTTOM;
            put(&mut lines, format_args!("M{x:.1} {base:.1}v4"));
            // What would not fit is left out; its mark is there.
            if x < WIDTH - 20.0 {
                let below = HEIGHT - 6.0;
                put(&mut svg, format_args!("<text x=\"{x:.1}\" y=\"{below:.0}\">{label}</text>"));
            }
        }
        put(&mut svg, format_args!("<path class=\"g\" d=\"{lines}\"/>"));
        let as_bars = self.is_amount && self.len() <= BARS_MAX;
        for (row, (values, class)) in self.series.iter().zip(CLASSES).enumerate() {
            let (kind, path) = if as_bars {
                ("f", bars(values, (row, self.series.len()), place, &y))
            } else if self.is_amount && row == 0 {
                ("f", area(values, place, &y))
            } else {
                ("l", line(values, place, &y))
            };
            if !path.is_empty() {
                put(&mut svg, format_args!("<path class=\"{kind} {class}\" d=\"{path}\"/>"));
            }
        }
        svg.push_str("</svg>");
        svg
    }
}

fn put(to: &mut String, what: std::fmt::Arguments<'_>) {
    to.write_fmt(what).expect("writing to a String cannot fail");
}

/// Bars beside each other, those of several rows side by side.
fn bars(
    values: &Series,
    (row, rows): (usize, usize),
    place: f64,
    y: &impl Fn(f64) -> f64,
) -> String {
    let width = place * (1.0 - BAR_GAP) / float(rows.max(1));
    let mut path = String::new();
    for (index, value) in values.iter().enumerate() {
        let Some(value) = value.filter(|value| *value > 0.0) else { continue };
        let x = LEFT + place * (float(index) + BAR_GAP / 2.0) + width * float(row);
        // What is there at all is seen.
        let (base, top) = (y(0.0), y(value).min(y(0.0) - 1.0));
        put(&mut path, format_args!("M{x:.1} {base:.1}V{top:.1}h{width:.1}V{base:.1}z"));
    }
    path
}

/// Steps from the axis, so thin that they are one.
fn area(values: &Series, place: f64, y: &impl Fn(f64) -> f64) -> String {
    let mut path = format!("M{LEFT:.1} {:.1}", y(0.0));
    for value in values {
        put(&mut path, format_args!("V{:.1}h{place:.3}", y(value.unwrap_or(0.0))));
    }
    put(&mut path, format_args!("V{:.1}z", y(0.0)));
    path
}

/// A line with gaps where nothing is known.
fn line(values: &Series, place: f64, y: &impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    let mut is_drawing = false;
    for (index, value) in values.iter().enumerate() {
        let Some(value) = *value else {
            is_drawing = false;
            continue;
        };
        let (x, y) = (LEFT + place * (float(index) + 0.5), y(value));
        // A point alone is a line of no length, which round ends make a dot.
        let to = if is_drawing { "L" } else { "M" };
        let dot = if is_drawing { "" } else { "h0" };
        put(&mut path, format_args!("{to}{x:.1} {y:.1}{dot}"));
        is_drawing = true;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(unit: Unit, is_amount: bool, series: Vec<Series>) -> Plot {
        let ticks = vec![(0, "Nov 21".to_owned())];
        let told = "Much.".to_owned();
        Plot { id: "p", title: "Bytes".to_owned(), told, unit, is_amount, series, ticks }
    }

    #[test]
    fn axes_have_few_round_steps_with_their_units() {
        for (unit, top, labels) in [
            (Unit::Bytes, 0.0, &["0 B", "1 B"][..]),
            (Unit::Bytes, 3.0 * 1024.0, &["0 B", "1 KiB", "2 KiB", "3 KiB"]),
            (Unit::Bytes, 1.5e9, &["0 B", "512 MiB", "1 GiB", "1.5 GiB"]),
            (Unit::Bytes, 2e8, &["64 MiB", "128 MiB", "192 MiB"]),
            (Unit::Percent, 3.0, &["0 %", "50 %", "100 %"]),
            (
                Unit::Celsius,
                61.0,
                &["0 \u{b0}C", "20 \u{b0}C", "40 \u{b0}C", "60 \u{b0}C", "80 \u{b0}C"],
            ),
            (Unit::Count, 1e300, &[]),
        ] {
            let svg = plot(unit, true, vec![vec![Some(top)]]).svg();
            let shown = svg.matches("class=\"e\"").count();
            assert!((2..=5).contains(&shown), "{shown} labels in {svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            for label in labels {
                assert!(svg.contains(&format!(">{label}</text>")), "{label}: {svg}");
            }
        }
    }

    #[test]
    fn it_can_be_heard_and_has_no_style_of_its_own() {
        let svg = plot(Unit::Bytes, true, vec![vec![Some(1.0)], vec![Some(2.0)]]).svg();
        for part in [
            "role=\"img\" aria-labelledby=\"p-t p-d\"",
            "<title id=\"p-t\">Bytes</title>",
            "<desc id=\"p-d\">Much.</desc>",
            ">Nov 21</text>",
            "class=\"f a\"",
            "class=\"f b\"",
        ] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
        assert!(!svg.contains("style") && !svg.contains("href") && !svg.contains("<script"));
    }

    #[test]
    fn few_amounts_are_bars_and_many_an_area() {
        let few = plot(Unit::Bytes, true, vec![vec![Some(1.0), None, Some(0.0)]]).svg();
        assert_eq!(few.matches('z').count(), 1, "{few}");
        let many = plot(Unit::Bytes, true, vec![vec![Some(1.0); 365], vec![None; 365]]).svg();
        assert!(many.contains("class=\"f a\"") && !many.contains("class=\"l b\""), "{many}");
        assert!(many.len() < 12_000, "{}", many.len());
    }

    #[test]
    fn what_is_not_known_is_a_gap() {
        let values = vec![Some(1.0), Some(2.0), None, Some(3.0), None];
        let svg = plot(Unit::Celsius, false, vec![values]).svg();
        let (_, path) = svg.split_once("class=\"l a\" d=\"").unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 1), "{path}");
    }

    #[test]
    fn nothing_leaves_the_picture() {
        for top in [0.5, 1.0, 7.0, 1e6, 3e12] {
            let svg = plot(Unit::Bytes, true, vec![vec![Some(top), Some(top / 3.0)]]).svg();
            for number in svg.split(['V', 'M', ' ']).filter_map(|it| it.parse::<f64>().ok()) {
                assert!((0.0..=WIDTH).contains(&number), "{number} in {svg}");
            }
        }
        assert!(plot(Unit::Count, false, vec![]).svg().contains("<svg"));
    }
}
