//! One settings file as a list of keys with their values and places, each of a known name; what is
//! not known is told. Knows the shape of the file, not what a value may be. Pure.

use std::ops::Range;

use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Top};
use super::secrets::{self, Id, Secret};
use super::text::Text;
use super::told::{Place, Told};

/// The list of upstreams, of which each item is an entry.
pub(super) const UPSTREAM: &str = "upstream";

/// The keys of buckets, a table or a list of them, of which each is an entry.
pub(super) const BUCKET: &str = "bucket-credentials";

/// One key, or one table of a list.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Dotted from the top, with hyphens.
    pub(super) path: String,
    pub(super) value: toml::Value,
    pub(super) place: Place,
}

/// A secret that stands in the file, and where.
#[derive(Debug)]
pub(super) struct Written {
    /// Whose; none for what nobody needs.
    pub(super) secret: Option<Secret>,
    /// With its quotes.
    pub(super) span: Range<usize>,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) entries: Vec<Entry>,
    pub(super) written: Vec<Written>,
}

impl Document {
    pub(super) fn read(file: &'static str, text: &Text, told: &mut Told) -> Self {
        let Ok(table) = DeTable::parse(text.toml()) else { return Self::default() };
        let mut reader = Reader { file, text, told, document: Self::default() };
        reader.top(table.get_ref());
        reader.document
    }

    pub(super) fn find(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.path == path)
    }

    pub(super) fn all<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.path == path)
    }

    /// Lays another one over it: its keys go before those of this one, its lists replace them. Where
    /// secrets stand is of the other one's file.
    pub(super) fn lay_over(&mut self, over: Self) {
        self.entries.retain(|entry| over.find(&entry.path).is_none());
        self.entries.extend(over.entries);
        self.written.extend(over.written);
    }
}

type Item<'a, 'b> = (&'a Spanned<toml::de::DeString<'b>>, &'a Spanned<DeValue<'b>>);

/// A table's keys in the order of the file.
fn in_order<'a, 'b>(table: &'a DeTable<'b>) -> Vec<Item<'a, 'b>> {
    let mut items: Vec<Item<'a, 'b>> = table.iter().collect();
    items.sort_by_key(|(key, _)| key.span().start);
    items
}

struct Reader<'a> {
    file: &'static str,
    text: &'a Text,
    told: &'a mut Told,
    document: Document,
}

impl Reader<'_> {
    fn place(&self, at: usize) -> Place {
        Place { file: self.file, line: Some(self.text.line_of(at)) }
    }

    fn tell(&mut self, at: usize, what: &str) {
        let place = self.place(at);
        self.told.tell(place, what);
    }

    fn top(&mut self, table: &DeTable<'_>) {
        for (key, value) in in_order(table) {
            let at = key.span().start;
            let name = key.get_ref().replace('_', "-");
            // The table of lines that were not read is named by what is no hyphen.
            let name = if name == "-" { key.get_ref().to_string() } else { name };
            match keys::top(&name) {
                Top::Ignored => {}
                Top::Unknown => self.tell(at, &keys::unknown("", &name)),
                Top::Appliance if name == BUCKET => self.tables(&name, at, value),
                Top::Appliance => self.table(&name, at, value),
                Top::Daemon if name == UPSTREAM => self.tables(&name, at, value),
                Top::Daemon => self.daemon(key.get_ref(), at, value),
            }
        }
    }

    /// A table of the appliance.
    fn table(&mut self, name: &str, at: usize, value: &Spanned<DeValue<'_>>) {
        let Some(table) = value.get_ref().as_table() else {
            return self
                .tell(at, &format!("{name} is a table: write [{name}] on a line of its own"));
        };
        for (key, value) in in_order(table) {
            let at = key.span().start;
            let inner = key.get_ref().replace('_', "-");
            let path = format!("{name}.{inner}");
            if !keys::is_known(&path) {
                self.tell(at, &keys::unknown(name, &inner));
                continue;
            }
            self.entry(&path, at, value);
        }
        self.wlan_secret(table);
        self.user_secret(name, table);
    }

    /// What the daemon's own parser will judge, key by key.
    fn daemon(&mut self, name: &str, at: usize, value: &Spanned<DeValue<'_>>) {
        let Some(table) = value.get_ref().as_table() else {
            return self.entry(name, at, value);
        };
        for (key, value) in in_order(table) {
            self.entry(&format!("{name}.{}", key.get_ref()), key.span().start, value);
        }
    }

    /// A list of tables, or one table alone.
    fn tables(&mut self, name: &str, at: usize, value: &Spanned<DeValue<'_>>) {
        let items: Vec<&Spanned<DeValue<'_>>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            DeValue::Table(_) => vec![value],
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => Vec::new(),
        };
        let is_empty_list = value.get_ref().as_array().is_some_and(|items| items.is_empty());
        if is_empty_list && name == UPSTREAM {
            // "None at all" is something that can be said.
            return self.entry(name, at, value);
        }
        for item in &items {
            let at = item.span().start;
            let Some(table) = item.get_ref().as_table() else {
                self.tell(at, &format!("each {name} is a table: [[{name}]]"));
                continue;
            };
            self.entry(name, at, item);
            if name == BUCKET {
                self.bucket_secret(table);
            }
        }
        if items.is_empty() {
            self.tell(at, &format!("{name} is a table: write [[{name}]] on a line of its own"));
        }
    }

    fn entry(&mut self, path: &str, at: usize, value: &Spanned<DeValue<'_>>) {
        if self.text.is_odd(&value.span()) {
            return self.tell(at, &format!("{path} has bytes that are no text, and was not taken"));
        }
        match toml::Value::deserialize(value.clone().into_deserializer()) {
            Ok(value) => {
                let (path, place) = (path.to_owned(), self.place(at));
                self.document.entries.push(Entry { path, value, place });
            }
            Err(error) => self.tell(at, &format!("{path} is not understood: {}", error.message())),
        }
    }

    fn wlan_secret(&mut self, table: &DeTable<'_>) {
        let Some((ssid, _)) = text_of(table, "ssid") else { return };
        self.secret(table, "password", |value| Secret::new(Id::Wlan(ssid.clone()), value));
    }

    fn bucket_secret(&mut self, table: &DeTable<'_>) {
        let Some((id, _)) = text_of(table, "access-key-id") else { return };
        let id = id.trim().to_owned();
        self.secret(table, "secret-access-key", |value| {
            Secret::new(Id::Bucket(id.clone()), value.trim())
        });
    }

    fn user_secret(&mut self, name: &str, table: &DeTable<'_>) {
        if name == "user"
            && let Some((value, span)) = text_of(table, "password")
            && !secrets::is_moved(&value)
        {
            self.document.written.push(Written { secret: None, span });
        }
    }

    fn secret(&mut self, table: &DeTable<'_>, name: &str, make: impl Fn(&str) -> Option<Secret>) {
        let Some((value, span)) = text_of(table, name) else { return };
        if !self.text.is_odd(&span)
            && let Some(secret) = make(&value)
        {
            self.document.written.push(Written { secret: Some(secret), span });
        }
    }
}

/// A text of a table, by its name with hyphens or underscores, and its place with the quotes.
fn text_of(table: &DeTable<'_>, name: &str) -> Option<(String, Range<usize>)> {
    let (_, value) = table.iter().find(|(key, _)| key.get_ref().replace('_', "-") == name)?;
    let text = value.get_ref().as_str()?;
    Some((text.to_owned(), value.span()))
}
