//! What of a stored NAR a client gets: `Range`, `If-Range` and `If-None-Match` against its `ETag` and
//! length (RFC 9110, 13 and 14). Pure.

use hyper::HeaderMap;
use hyper::header::{HeaderName, IF_NONE_MATCH, IF_RANGE, RANGE};

/// What a `Range` header asks for, before the length is known. Everything that need not be
/// honoured (no header, another unit, several ranges, nonsense) is `All`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    /// No range that counts.
    All,
    /// `bytes=N-`
    From(u64),
    /// `bytes=N-M`, both included, N <= M.
    Between(u64, u64),
    /// `bytes=-N`: the last N.
    Last(u64),
}

/// The conditions that came with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    /// The range.
    pub(super) range: Range,
    /// `If-Range`, as it came.
    pub(super) if_range: Option<&'a str>,
    /// `If-None-Match`, as it came.
    pub(super) if_none_match: Option<&'a str>,
}

/// What is known of a NAR that is whole here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole<'a> {
    /// Its strong `ETag`, with quotes.
    pub(super) etag: &'a str,
    /// Its length in bytes.
    pub(super) len: u64,
    /// Whether other bytes stood behind this URL a short time ago.
    pub(super) changed_lately: bool,
}

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// All of it.
    All,
    /// From the first to the last byte, both included.
    Part(u64, u64),
    /// The client has it already.
    NotModified,
    /// The range begins behind the end.
    Unsatisfiable,
    /// The bytes that the client has may be other ones: it must not go on with these.
    Changed,
}

impl<'a> Asked<'a> {
    /// Reads the headers of a GET. A header that came twice counts as absent.
    pub(super) fn of_get(headers: &'a HeaderMap) -> Self {
        let range = only(headers, &RANGE).map_or(Range::All, Range::parse);
        Self {
            range,
            if_range: only(headers, &IF_RANGE),
            if_none_match: only(headers, &IF_NONE_MATCH),
        }
    }

    /// Reads the headers of a HEAD, for which `Range` has no meaning.
    pub(super) fn of_head(headers: &'a HeaderMap) -> Self {
        Self { range: Range::All, if_range: None, if_none_match: only(headers, &IF_NONE_MATCH) }
    }

    /// Whether an answer that begins at the first byte will do. `bytes=0-` is a whole NAR, and
    /// `If-Range` with a validator that does not hold falls back to one.
    pub(super) fn takes_whole(&self) -> bool {
        matches!(self.range, Range::All | Range::From(0)) || self.if_range.is_some()
    }

    /// What to send of a NAR that is whole here.
    pub(super) fn plan(&self, whole: Whole<'_>) -> Plan {
        if self.if_none_match.is_some_and(|value| names(value, whole.etag)) {
            return Plan::NotModified;
        }
        // If-Range compares strongly: a weak tag never equals ours.
        if self.if_range.is_some_and(|value| value.trim() != whole.etag) {
            return Plan::All;
        }
        if whole.changed_lately && !self.takes_whole() {
            return Plan::Changed;
        }
        self.range.of(whole.len)
    }
}

impl Range {
    /// From the header's value.
    pub(super) fn parse(value: &str) -> Self {
        Self::read(value).unwrap_or(Self::All)
    }

    fn read(value: &str) -> Option<Self> {
        let (unit, set) = value.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = set.trim().split_once('-')?;
        match (first.trim_end(), last.trim_start()) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// What of `len` bytes that is.
    fn of(self, len: u64) -> Plan {
        let part = |first: u64, last: u64| {
            if first < len { Plan::Part(first, last.min(len - 1)) } else { Plan::Unsatisfiable }
        };
        match self {
            Self::All => Plan::All,
            Self::From(first) => part(first, u64::MAX),
            Self::Between(first, last) => part(first, last),
            Self::Last(0) => Plan::Unsatisfiable,
            Self::Last(count) => part(len.saturating_sub(count), u64::MAX),
        }
    }
}

/// Digits only; a number too long for 64 bits is behind every end.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Whether an `If-None-Match` names this `ETag` (weak comparison, as for every GET).
fn names(value: &str, etag: &str) -> bool {
    let plain = |tag: &str| tag.trim().strip_prefix("W/").unwrap_or(tag.trim()) == etag;
    value.trim() == "*" || value.split(',').any(plain)
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"abc\"";
    const WHOLE: Whole<'_> = Whole { etag: ETAG, len: 1000, changed_lately: false };
    const CHANGED: Whole<'_> = Whole { changed_lately: true, ..WHOLE };

    fn asked(range: &str) -> Asked<'_> {
        Asked { range: Range::parse(range), if_range: None, if_none_match: None }
    }

    #[test]
    fn ranges_are_planned_as_the_rfc_says() {
        for (range, plan) in [
            ("bytes=0-", Plan::Part(0, 999)),
            ("bytes=1-", Plan::Part(1, 999)),
            ("bytes=999-", Plan::Part(999, 999)),
            ("bytes=1000-", Plan::Unsatisfiable),
            ("bytes=0-0", Plan::Part(0, 0)),
            ("bytes=10-19", Plan::Part(10, 19)),
            ("bytes=10-5000", Plan::Part(10, 999)),
            ("bytes=2000-5000", Plan::Unsatisfiable),
            ("bytes=-1", Plan::Part(999, 999)),
            ("bytes=-1000", Plan::Part(0, 999)),
            ("bytes=-9999", Plan::Part(0, 999)),
            ("bytes=-0", Plan::Unsatisfiable),
            ("Bytes = 3 - 4", Plan::Part(3, 4)),
            ("bytes=99999999999999999999999-", Plan::Unsatisfiable),
            ("bytes=5-99999999999999999999999", Plan::Part(5, 999)),
            // Nothing that must be honoured: all of it.
            ("bytes=0-1,5-6", Plan::All),
            ("bytes=5-4", Plan::All),
            ("bytes=-", Plan::All),
            ("bytes=a-b", Plan::All),
            ("bytes=+1-2", Plan::All),
            ("bytes=--1", Plan::All),
            ("bytes 1-2", Plan::All),
            ("rows=1-2", Plan::All),
            ("", Plan::All),
        ] {
            assert_eq!(asked(range).plan(WHOLE), plan, "{range}");
        }
    }

    #[test]
    fn only_a_range_behind_the_start_wants_a_part() {
        for (range, whole) in [
            ("", true),
            ("bytes=0-", true),
            ("bytes=0-1,5-6", true),
            ("bytes=1-", false),
            ("bytes=0-9", false),
            ("bytes=-5", false),
        ] {
            assert_eq!(asked(range).takes_whole(), whole, "{range}");
            let conditional = Asked { if_range: Some(ETAG), ..asked(range) };
            assert!(conditional.takes_whole(), "{range} with If-Range");
        }
    }

    #[test]
    fn if_range_that_does_not_hold_gives_all() {
        let with = |tag| Asked { if_range: Some(tag), ..asked("bytes=5-") };
        assert_eq!(with(ETAG).plan(WHOLE), Plan::Part(5, 999));
        assert_eq!(with("\"other\"").plan(WHOLE), Plan::All);
        assert_eq!(with("W/\"abc\"").plan(WHOLE), Plan::All);
        assert_eq!(with("Sat, 21 Nov 2026 12:00:00 GMT").plan(WHOLE), Plan::All);
    }

    #[test]
    fn bytes_that_changed_lately_are_not_continued_without_a_validator() {
        assert_eq!(asked("bytes=5-").plan(CHANGED), Plan::Changed);
        assert_eq!(asked("bytes=-5").plan(CHANGED), Plan::Changed);
        assert_eq!(asked("bytes=5000-").plan(CHANGED), Plan::Changed);
        assert_eq!(asked("bytes=0-").plan(CHANGED), Plan::Part(0, 999));
        assert_eq!(asked("").plan(CHANGED), Plan::All);
        let same = Asked { if_range: Some(ETAG), ..asked("bytes=5-") };
        assert_eq!(same.plan(CHANGED), Plan::Part(5, 999));
        let other = Asked { if_range: Some("\"old\""), ..asked("bytes=5-") };
        assert_eq!(other.plan(CHANGED), Plan::All);
    }

    #[test]
    fn if_none_match_comes_first() {
        let with = |tags| Asked { if_none_match: Some(tags), ..asked("bytes=5-") };
        for tags in [ETAG, "W/\"abc\"", "*", "\"x\", \"abc\"", " \"abc\" "] {
            assert_eq!(with(tags).plan(WHOLE), Plan::NotModified, "{tags}");
        }
        for tags in ["\"x\"", "abc", "\"x\",\"y\"", ""] {
            assert_eq!(with(tags).plan(WHOLE), Plan::Part(5, 999), "{tags}");
        }
    }

    #[test]
    fn a_header_that_came_twice_counts_as_absent() {
        let mut headers = HeaderMap::new();
        headers.append(RANGE, "bytes=1-2".parse().expect("a value"));
        assert_eq!(Asked::of_get(&headers).range, Range::Between(1, 2));
        assert_eq!(Asked::of_head(&headers).range, Range::All);
        headers.append(RANGE, "bytes=3-4".parse().expect("a value"));
        assert_eq!(Asked::of_get(&headers).range, Range::All);
    }
}
