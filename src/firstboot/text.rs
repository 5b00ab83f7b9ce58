//! A settings file as it was written, whatever editor wrote it: its text in bytes of the same places,
//! so that a value that was found can be replaced in the file itself. Pure.

use std::ops::Range;

use toml::de::DeTable;

use super::told::{Place, Told};

/// Broken lines that are left out before a file counts as none of ours: a picture that was given the
/// name is not to be told line by line.
const BROKEN_LINES_MAX: usize = 24;

/// Lines above a broken one that may be what broke it: a list that is not closed is seen by the
/// parser only at the next key or two.
const LINES_ABOVE_MAX: usize = 4;

/// A line that is the head of a table that cannot be read gets this head, so that the keys below it
/// do not become those of the table above.
pub(super) const LOST_TABLE: &str = "_";

/// The text of a file.
#[derive(Debug)]
pub(super) struct Text {
    /// Sound TOML in as many bytes as the file has.
    mended: String,
    /// Bytes that are no text, by their places.
    odd: Vec<usize>,
    /// Whether lines had to be left out.
    pub(super) is_broken: bool,
}

impl Text {
    /// `None` when it is no text of settings at all. What is wrong is told in either case.
    pub(super) fn read(file: &'static str, raw: &[u8], told: &mut Told) -> Option<Self> {
        let whole = Place { file, line: None };
        if raw.starts_with(&[0xff, 0xfe]) || raw.starts_with(&[0xfe, 0xff]) {
            told.tell(whole, "it is saved as UTF-16 (\"Unicode\"): save it as UTF-8");
            return None;
        }
        let (mut text, odd) = plain(raw);
        if let Some(first) = odd.first() {
            let place = Place { file, line: Some(line_of(&text, *first)) };
            told.tell(place, "there are bytes that are no text: save the file as UTF-8");
        }
        let mut is_broken = false;
        for _ in 0..=BROKEN_LINES_MAX {
            let Some((at, message)) = first_error(&text) else {
                return Some(Self { mended: text, odd, is_broken });
            };
            is_broken = true;
            let place = Place { file, line: Some(line_of(&text, at)) };
            told.tell(place, &format!("this line is not understood and left out: {message}"));
            text = mend(&text, at);
        }
        told.tell(whole, "so many lines are not understood that none of them was taken");
        None
    }

    /// Sound TOML.
    pub(super) fn toml(&self) -> &str {
        &self.mended
    }

    pub(super) fn line_of(&self, at: usize) -> usize {
        line_of(&self.mended, at)
    }

    /// Whether a byte that is no text stands there.
    pub(super) fn is_odd(&self, span: &Range<usize>) -> bool {
        self.odd.iter().any(|at| span.contains(at))
    }
}

/// The bytes as text of the same length: those that are none as question marks, with their places.
fn plain(raw: &[u8]) -> (String, Vec<usize>) {
    let (mut text, mut odd) = (String::with_capacity(raw.len()), Vec::new());
    for chunk in raw.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\0' {
                odd.push(text.len());
                text.push('?');
            } else {
                text.push(c);
            }
        }
        for _ in chunk.invalid() {
            odd.push(text.len());
            text.push('?');
        }
    }
    // The mark that Windows editors put first.
    if let Some(rest) = text.strip_prefix('\u{feff}') {
        text = format!("   {rest}");
    }
    (text, odd)
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

fn first_error(text: &str) -> Option<(usize, String)> {
    let (_, errors) = DeTable::parse_recoverable(text);
    let place = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    let first = errors.iter().min_by_key(|error| place(error))?;
    Some((place(first), first.message().to_owned()))
}

/// Leaves one line out: that of the error, or one of those above it, whichever lets more of the rest
/// be read.
fn mend(text: &str, at: usize) -> String {
    let at = at.min(text.len());
    let bytes = text.as_bytes();
    let mut candidates: Vec<Range<usize>> = Vec::new();
    // An error at the end of a line is of that line, not of the next one.
    let mut end = line_end(bytes, at);
    while candidates.len() <= LINES_ABOVE_MAX {
        let start = bytes.get(..end).unwrap_or_default();
        let start = start.iter().rposition(|c| *c == b'\n').map_or(0, |before| before + 1);
        let line = text.get(start..end).unwrap_or_default().trim();
        if !line.is_empty() && !line.starts_with('#') {
            candidates.push(start..end);
        }
        if start == 0 {
            break;
        }
        end = start - 1;
    }
    let tried = candidates.iter().map(|line| {
        let without = without_line(text, line);
        let next = first_error(&without).map_or(usize::MAX, |(next, _)| next);
        (next, without)
    });
    // The nearest of those that are as good: the first.
    let best = tried.reduce(|best, one| if one.0 > best.0 { one } else { best });
    match best {
        Some((next, without)) if next > at || without != text => without,
        Some(_) | None => " ".repeat(text.len()),
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.iter().position(|c| *c == b'\n').map_or(bytes.len(), |more| at + more)
}

/// As long as before: the head of a table becomes that of a table without meaning, anything else
/// nothing.
fn without_line(text: &str, line: &Range<usize>) -> String {
    let (before, rest) = text.split_at_checked(line.start).unwrap_or((text, ""));
    let (gone, after) = rest.split_at_checked(line.len()).unwrap_or((rest, ""));
    let head = format!("[[{LOST_TABLE}]]");
    let is_head = gone.trim_start().starts_with('[') && !gone.contains('=');
    let room = gone.len().checked_sub(head.len()).filter(|_| is_head);
    match room {
        Some(room) => format!("{before}{head}{}{after}", " ".repeat(room)),
        None => format!("{before}{}{after}", " ".repeat(gone.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &[u8]) -> (Option<toml::Table>, Vec<String>) {
        let mut told = Told::default();
        let text = Text::read("x.toml", raw, &mut told);
        let table = text.map(|text| {
            assert_eq!(text.toml().len(), raw.len());
            toml::from_str(text.toml()).unwrap()
        });
        (table, told.sentences())
    }

    fn check(raw: &[u8], kept: &str, lines: &[usize]) {
        let (table, told) = read(raw);
        let shown = String::from_utf8_lossy(raw);
        assert_eq!(table, Some(toml::from_str(kept).unwrap()), "{shown}");
        assert_eq!(told.len(), lines.len(), "{shown}: {told:?}");
        for (told, line) in told.iter().zip(lines) {
            assert!(told.starts_with(&format!("x.toml:{line}: ")), "{shown}: {told}");
        }
    }

    #[test]
    fn what_windows_editors_write_is_read() {
        check(b"\xef\xbb\xbf[a]\r\nb = 1\r\n", "[a]\nb = 1", &[]);
        check(b"", "", &[]);
        check(b"[a]\nb = 'M\xfcller'\n", "[a]\nb = 'M?ller'", &[2]);
        let (table, told) = read(b"\xff\xfe[\0a\0]\0");
        assert!(table.is_none() && told[0].contains("UTF-16"), "{told:?}");
    }

    #[test]
    fn a_broken_line_costs_no_other_line() {
        check(b"[a]\nb = x\nc = 1\n", "[a]\nc = 1", &[2]);
        check(b"[a]\nb = \"x\nc = 1\n", "[a]\nc = 1", &[2]);
        check(b"[a]\nb \"x\"\nc = 1\n[d]\ne = 2\n", "[a]\nc = 1\n[d]\ne = 2", &[2]);
        check(b"[a]\nc = 1\nc = 2\n[d]\ne = 2", "[a]\nc = 1\n[d]\ne = 2", &[3]);
        check(b"a = [\"x\",\n[b]\nc = 1\nd = 2\n", "[b]\nc = 1\nd = 2", &[2]);
        check(b"[a]\nb = 1\n[wlan\nb = 2\n[d]\nb = 3\n", "[a]\nb=1\n[[_]]\nb=2\n[d]\nb=3", &[3]);
        check(b"a = \"\"\"x\n[b]\nc = 1\n", "[b]\nc = 1", &[4]);
    }

    #[test]
    fn what_is_no_text_of_settings_is_told_once() {
        let noise: Vec<u8> = (0..4000_u32).map(|n| (n * n % 251) as u8).collect();
        let (_, told) = read(&noise);
        assert!(told.len() <= BROKEN_LINES_MAX + 3, "{}", told.len());
        let (table, told) = read(&[0; 5000]);
        assert_eq!(table.map(|table| table.len()), Some(0));
        assert_eq!(told.len(), 2);
    }
}
