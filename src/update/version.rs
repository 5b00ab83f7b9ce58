//! Versions of the appliance: three numbers, and perhaps what comes before a release. Pure.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest version: it is part of file names.
const VERSION_LEN_MAX: usize = 64;

/// Digits of a number at most, so that it fits.
const DIGITS_MAX: usize = 9;

/// `1.2.3`, or `1.2.3-rc.1`, which comes before it. Ordered as semantic versions are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version {
    numbers: [u32; 3],
    before: String,
}

/// Why a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version such as 1.2.3 or 1.2.3-rc.1")]
pub struct NoVersion(String);

fn number(text: &str) -> Option<u32> {
    let fits = (1..=DIGITS_MAX).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit());
    fits.then(|| text.parse().ok()).flatten()
}

impl FromStr for Version {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let wrong = || NoVersion(text.chars().take(VERSION_LEN_MAX).collect());
        if text.len() > VERSION_LEN_MAX {
            return Err(wrong());
        }
        let (numbers, before) = match text.split_once('-') {
            Some((numbers, before)) => (numbers, Some(before)),
            None => (text, None),
        };
        let mut found = numbers.split('.').map(number);
        let mut next = || found.next().flatten();
        let numbers = next().zip(next()).zip(next()).ok_or_else(wrong)?;
        let ((major, minor), patch) = numbers;
        let is_word =
            |word: &str| !word.is_empty() && word.bytes().all(|c| c.is_ascii_alphanumeric());
        let rest_is_fine = before.is_none_or(|before| before.split('.').all(is_word));
        if found.next().is_some() || !rest_is_fine {
            return Err(wrong());
        }
        let before = before.unwrap_or_default().to_owned();
        Ok(Self { numbers: [major, minor, patch], before })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        let hyphen = if self.before.is_empty() { "" } else { "-" };
        write!(f, "{major}.{minor}.{patch}{hyphen}{}", self.before)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let words = |version: &Self| -> Vec<(u8, u32, String)> {
            // Numbers come before words, and by their value.
            let word = |word: &str| match number(word) {
                Some(number) => (0, number, word.to_owned()),
                None => (1, 0, word.to_owned()),
            };
            version.before.split('.').map(word).collect()
        };
        let release = |version: &Self| version.before.is_empty();
        self.numbers
            .cmp(&other.numbers)
            .then_with(|| release(self).cmp(&release(other)))
            .then_with(|| words(self).cmp(&words(other)))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_people_mean_them() {
        let ordered = [
            "0.1.0",
            "0.1.9",
            "0.1.10",
            "0.2.0-1",
            "0.2.0-alpha",
            "0.2.0-rc.2",
            "0.2.0-rc.10",
            "0.2.0-rc.10.a",
            "0.2.0",
            "1.0.0",
            "10.0.0",
        ];
        let parsed: Vec<Version> = ordered.iter().map(|text| text.parse().unwrap()).collect();
        assert!(parsed.is_sorted_by(|a, b| a < b), "{parsed:?}");
        for (version, text) in parsed.iter().zip(ordered) {
            assert_eq!(version.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        let long = format!("1.2.3-{}", "x".repeat(VERSION_LEN_MAX));
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "v1.2.3",
            "1.2.x",
            "1.2.3-",
            "1.2.3-a..b",
            "1.2.3-/",
            "1..3",
            "1.2.-3",
            "1.2.3-\u{e4}",
            "1.2.9999999999",
            &long,
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
