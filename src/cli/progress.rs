//! How far long work is: a bar on a terminal, a line now and then elsewhere, nothing where nobody
//! wants to know.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::out;
use crate::units::ByteSize;

/// How often a line of a log says it, unless a tenth was done or something else begun.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// So many steps are told in a log: each a tenth.
const LOG_STEPS: u64 = 10;

/// How far work is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct At {
    /// What is being done.
    pub(super) what: String,
    /// Bytes of it that are done, and all of them where that is known.
    pub(super) bytes: Option<(u64, Option<u64>)>,
    /// Things that are done (paths, NARs), and all of them where that is known.
    pub(super) things: Option<(u64, Option<u64>)>,
}

/// Shows it on stderr.
#[derive(Debug)]
pub(super) struct Progress(Shown);

#[derive(Debug)]
enum Shown {
    Nowhere,
    Bar(ProgressBar),
    Log { last: Option<(String, u64, Instant)> },
}

impl Progress {
    /// Nothing is shown where `quiet`.
    pub(super) fn new(quiet: bool) -> Self {
        Self(if quiet {
            Shown::Nowhere
        } else if std::io::stderr().is_terminal() {
            Shown::Bar(bar())
        } else {
            Shown::Log { last: None }
        })
    }

    /// The work is there now.
    pub(super) fn at(&mut self, at: &At) {
        match &mut self.0 {
            Shown::Nowhere => {}
            Shown::Bar(bar) => {
                if let Some((done, of)) = at.part() {
                    bar.set_length(of);
                    bar.set_position(done);
                }
                bar.set_message(at.text());
            }
            Shown::Log { last } => {
                let step = at.step();
                let is_news = last.as_ref().is_none_or(|(what, before, when)| {
                    *what != at.what || *before != step || when.elapsed() >= LOG_EVERY
                });
                if is_news {
                    *last = Some((at.what.clone(), step, Instant::now()));
                    out::note(&at.text());
                }
            }
        }
    }
}

/// The work is over: what a terminal showed of it goes.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:24}] {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    ProgressBar::new(0).with_style(style)
}

impl At {
    /// From the words of a running cache (`what`, `done_bytes`, `of_bytes`, `done`, `of`).
    pub(super) fn of(told: &Value) -> Self {
        let number = |name: &str| told.get(name).and_then(Value::as_u64);
        Self {
            what: told.get("what").and_then(Value::as_str).unwrap_or_default().to_owned(),
            bytes: number("done_bytes").map(|done| (done, number("of_bytes"))),
            things: number("done").map(|done| (done, number("of"))),
        }
    }

    /// By bytes where their sum is known, else by things.
    fn part(&self) -> Option<(u64, u64)> {
        let known = |it: Option<(u64, Option<u64>)>| it.and_then(|(done, of)| Some((done, of?)));
        known(self.bytes).or_else(|| known(self.things))
    }

    fn step(&self) -> u64 {
        self.part().map_or(0, |(done, of)| done.saturating_mul(LOG_STEPS) / of.max(1))
    }

    fn text(&self) -> String {
        let mut parts = Vec::new();
        if let Some((done, of)) = self.part() {
            parts.push(format!("{} %", done.saturating_mul(100) / of.max(1)));
        }
        if let Some((done, of)) = self.bytes {
            let of = of.map_or_else(String::new, |of| format!(" of {}", ByteSize(of)));
            parts.push(format!("{}{of}", ByteSize(done)));
        }
        if let Some((done, of)) = self.things {
            parts.push(of.map_or_else(|| done.to_string(), |of| format!("{done} of {of}")));
        }
        if parts.is_empty() {
            self.what.clone()
        } else {
            format!("{}: {}", self.what, parts.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_cache_tells_is_shown_in_words() {
        for (told, shown) in [
            (
                json!({"what": "fetching", "done_bytes": 1 << 20, "of_bytes": 4 << 20, "done": 3, "of": 10}),
                "fetching: 25 %, 1.0 MiB of 4.0 MiB, 3 of 10",
            ),
            (
                json!({"what": "fetching", "done_bytes": 1 << 20, "done": 3, "of": 4}),
                "fetching: 75 %, 1.0 MiB, 3 of 4",
            ),
            (json!({"what": "looking for references", "done": 3}), "looking for references: 3"),
            (json!({"what": "waiting"}), "waiting"),
            (json!({"what": "nothing to do", "done": 0, "of": 0}), "nothing to do: 0 %, 0 of 0"),
            (json!(null), ""),
        ] {
            assert_eq!(At::of(&told).text(), shown);
        }
    }
}
