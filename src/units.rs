//! Values that carry their unit in the configuration: sizes (`"200 GiB"`) and spans (`"15 s"`).

use std::{fmt, str::FromStr, time::Duration};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// Why a text is not a size or a span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct UnitError {
    text: String,
    wanted: &'static str,
}

const SIZE_WANTED: &str = "a size such as \"200 GiB\", \"500 MB\" or \"4096\"";
const SPAN_WANTED: &str = "a span such as \"500 ms\", \"15 s\", \"2 min\", \"24 h\" or \"30 d\"";

/// A number of bytes, written as `"200 GiB"`, `"500 MB"`, `"1024"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A length of time, written as `"500 ms"`, `"15 s"`, `"2 min"`, `"24 h"`, `"30 d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

const SIZE_UNITS: [(&str, u64); 12] = [
    ("", 1),
    ("b", 1),
    ("kb", 1000),
    ("mb", 1000 * 1000),
    ("gb", 1000 * 1000 * 1000),
    ("tb", 1000 * 1000 * 1000 * 1000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("k", 1 << 10),
    ("m", 1 << 20),
];

const SPAN_UNITS_MS: [(&str, u64); 7] = [
    ("ms", 1),
    ("s", 1000),
    ("min", 60 * 1000),
    ("m", 60 * 1000),
    ("h", 3600 * 1000),
    ("d", 24 * 3600 * 1000),
    ("days", 24 * 3600 * 1000),
];

/// A decimal number (digits, at most one point) and its unit, as `number * factor` rounded down.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
    let scaled = whole.parse::<u128>().ok()?.checked_mul(scale)?.checked_add(fraction)?;
    u64::try_from(scaled.checked_mul(u128::from(factor))? / scale).ok()
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { text: text.to_owned(), wanted: SIZE_WANTED };
        parse(text, &SIZE_UNITS).map(Self).ok_or_else(error)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError { text: text.to_owned(), wanted: SPAN_WANTED };
        parse(text, &SPAN_UNITS_MS).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(error)
    }
}

/// As people read it: `1.5 GiB`, always in binary units.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut tenths = u128::from(self.0) * 10 / 1024;
        let mut unit = UNITS[0];
        for next in &UNITS[1..] {
            if tenths < 10_240 {
                break;
            }
            tenths /= 1024;
            unit = next;
        }
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text { wanted: SIZE_WANTED, read: Self::from_str })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text { wanted: SPAN_WANTED, read: Self::from_str })
    }
}

/// Reads a text, and says what is wanted when it finds something else.
struct Text<T> {
    wanted: &'static str,
    read: fn(&str) -> Result<T, UnitError>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        let check =
            |text: &str, bytes: u64| assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        check("0", 0);
        check("4096", 4096);
        check("200 GiB", 200 << 30);
        check("1.5MiB", 3 << 19);
        check("500 MB", 500_000_000);
    }

    #[test]
    fn spans_are_read_with_their_unit() {
        let check = |text: &str, ms: u64| {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))), "{text}");
        };
        check("500 ms", 500);
        check("15 s", 15_000);
        check("2 min", 120_000);
        check("30 d", 2_592_000_000);
    }

    #[test]
    fn what_has_no_unit_or_number_is_refused() {
        for text in ["", "GiB", "1 parsec", "-1", "1.2.3 s", "99999999999 TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for text in ["", "15", "1 fortnight", "s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_as_people_read_them() {
        let check = |bytes: u64, text: &str| assert_eq!(ByteSize(bytes).to_string(), text);
        check(17, "17 B");
        check(1024, "1.0 KiB");
        check(1536 << 20, "1.5 GiB");
        check(200 << 30, "200.0 GiB");
    }
}
