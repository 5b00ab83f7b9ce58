//! Texts become one document: the file and each `--set` are read and judged on their own, so that
//! each problem has its place; only then are they laid over each other.

use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Document, Error, KEYS, Problem, Problems};

/// How like a key must be to be offered: below this a guess confuses more than it helps.
const LIKENESS_MIN: f64 = 0.7;

/// A text and where it came from.
pub(super) struct Source {
    place: Place,
    text: String,
}

enum Place {
    File(String),
    Set(String),
}

impl Source {
    pub(super) fn file(path: &Path, text: String) -> Self {
        Self { place: Place::File(path.display().to_string()), text }
    }

    /// `KEY=TOML-VALUE` is a line of TOML as it stands.
    pub(super) fn set(set: &str) -> Self {
        Self { place: Place::Set(set.to_owned()), text: set.to_owned() }
    }

    fn problem(&self, at: Option<usize>, message: impl Display) -> Problem {
        let place = match &self.place {
            Place::Set(set) => format!("--set {set}"),
            Place::File(name) => match at.and_then(|at| self.text.get(..at)) {
                Some(before) => format!("{name}:{}", before.matches('\n').count() + 1),
                None => name.clone(),
            },
        };
        Problem { place, message: message.to_string() }
    }

    /// The text as a table; what is wrong with it goes to `problems`.
    fn table(&self, problems: &mut Vec<Problem>) -> Option<DeTable<'_>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        if !errors.is_empty() {
            problems.extend(errors.iter().map(|error| {
                let at = error.span().map(|span| span.start);
                self.problem(at, format!("{}{}", error.message(), self.syntax_hint()))
            }));
            return None;
        }
        let mut judge = Judge { source: self, problems: Vec::new() };
        judge.table("", table.get_ref());
        let clean = judge.problems.is_empty();
        problems.append(&mut judge.problems);
        clean.then(|| table.into_inner())
    }

    fn syntax_hint(&self) -> &'static str {
        match self.place {
            Place::File(_) => "",
            Place::Set(_) => {
                "; wanted is KEY=TOML-VALUE, with quotes around strings: \
                 --set 'store.budget=\"20 GiB\"'"
            }
        }
    }
}

/// One document from all sources, the later over the earlier; or everything that is wrong.
pub(super) fn merge(sources: &[Source]) -> Result<Document, Error> {
    let mut problems = Vec::new();
    let mut merged = DeTable::new();
    for source in sources {
        if let Some(table) = source.table(&mut problems) {
            lay_over(&mut merged, table);
        }
    }
    if !problems.is_empty() {
        return Err(Error::Wrong(Problems(problems)));
    }
    Document::deserialize(Spanned::new(0..0, merged).into_deserializer())
        .map_err(|error| Error::Wrong(Problems(vec![Problem::of_the_whole(error.message())])))
}

fn lay_over<'a>(under: &mut DeTable<'a>, over: DeTable<'a>) {
    for (key, value) in over {
        let (span, value) = (value.span(), value.into_inner());
        match (under.get_mut(&key).map(Spanned::get_mut), value) {
            (Some(DeValue::Table(under)), DeValue::Table(over)) => lay_over(under, over),
            (_, value) => {
                under.insert(key, Spanned::new(span, value));
            }
        }
    }
}

/// Walks one source along the declared keys.
struct Judge<'a> {
    source: &'a Source,
    problems: Vec<Problem>,
}

impl Judge<'_> {
    fn tell(&mut self, at: usize, message: impl Display) {
        self.problems.push(self.source.problem(Some(at), message));
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = format!("{prefix}{}", key.get_ref());
            let at = key.span().start;
            if KEYS.iter().any(|known| known.path == path) {
                if prefix != "upstream." {
                    self.leaf(&path, at, value);
                }
            } else if prefix.is_empty() && path == "upstream" {
                self.upstreams(at, value);
            } else if prefix.is_empty() && KEYS.iter().any(|known| known.split().0 == path) {
                match value.get_ref().as_table() {
                    Some(inner) => self.table(&format!("{path}."), inner),
                    None => self.tell(at, format!("{path} is a table: [{path}]")),
                }
            } else {
                self.tell(at, unknown(prefix, key.get_ref()));
            }
        }
    }

    /// Each `[[upstream]]` is judged as a whole, because its keys belong together.
    fn upstreams(&mut self, at: usize, value: &Spanned<DeValue<'_>>) {
        let Some(list) = value.get_ref().as_array() else {
            return self.tell(at, "upstream is a list of tables: [[upstream]]");
        };
        for item in list {
            let at = item.span().start;
            let Some(table) = item.get_ref().as_table() else {
                self.tell(at, "each upstream is a table: [[upstream]] or {url = ...}");
                continue;
            };
            let before = self.problems.len();
            self.table("upstream.", table);
            if self.problems.len() > before {
                continue;
            }
            let typed = crate::upstream::Config::deserialize(item.clone().into_deserializer());
            if let Err(error) = typed {
                let at = error.span().map_or(at, |span| span.start);
                self.tell(at, format!("upstream: {}", error.message()));
            }
        }
    }

    /// A document of this one key: so each key has its own verdict.
    fn leaf(&mut self, path: &str, at: usize, value: &Spanned<DeValue<'_>>) {
        let (table_name, name) = path.split_once('.').unwrap_or(("", path));
        let span = value.span();
        let mut document = DeTable::new();
        document.insert(Spanned::new(span.clone(), name.into()), value.clone());
        if !table_name.is_empty() {
            let inner = Spanned::new(span.clone(), DeValue::Table(document));
            document = DeTable::new();
            document.insert(Spanned::new(span.clone(), table_name.into()), inner);
        }
        let typed = Document::deserialize(Spanned::new(span, document).into_deserializer());
        if let Err(error) = typed {
            let at = error.span().map_or(at, |span| span.start);
            self.tell(at, format!("{path}: {}", error.message()));
        }
    }
}

/// The sentence about a key that nobody knows, with the nearest right one: of the same table first.
fn unknown(prefix: &str, name: &str) -> String {
    let table = prefix.trim_end_matches('.');
    let likeness = |known: &str| strsim::jaro_winkler(known, name);
    let nearest = |same_table: bool| {
        KEYS.iter()
            .filter(|key| (key.split().0 == table) == same_table)
            .map(|key| (likeness(key.split().1), key.path))
            .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
            .max_by(|one, other| one.0.total_cmp(&other.0))
    };
    let tables = || {
        ["store", "upstream", "push", "admin", "mdns", "spool", "tls", "forward"]
            .into_iter()
            .map(|table| (likeness(table), table))
            .filter(|(likeness, _)| prefix.is_empty() && *likeness >= LIKENESS_MIN)
            .max_by(|one, other| one.0.total_cmp(&other.0))
    };
    match nearest(true).or_else(tables).or_else(|| nearest(false)) {
        Some((_, known)) => format!("there is no key {prefix}{name}; did you mean {known}?"),
        None => format!("there is no key {prefix}{name}; snowberry.toml(5) lists them all"),
    }
}
