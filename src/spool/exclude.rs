//! Patterns for what is not pushed, on the name of a store path. Pure.

use std::fmt;
use std::str::FromStr;

use crate::nix::StorePath;

/// Longer than any name can be.
const PATTERN_LEN_MAX: usize = 255;

/// A pattern on the name of a store path, which is what follows the hash and its hyphen. `*` is any
/// run of characters, none too; `?` is one; all else is itself. The whole name must fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is empty or longer than a name.
    #[error("a pattern has 1 to {PATTERN_LEN_MAX} characters")]
    Length,
    /// It has a character that no name has, so that it could never fit.
    #[error("{0:?} has {1:?}, which is in no name of a store path; * and ? stand for others")]
    Character(String, char),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() || text.len() > PATTERN_LEN_MAX {
            return Err(PatternError::Length);
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "+-._?=*".contains(c);
        match text.chars().find(|c| !fits(*c)) {
            Some(c) => Err(PatternError::Character(text.to_owned(), c)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Whether the name of this path fits.
    pub fn fits(&self, path: &StorePath) -> bool {
        self.fits_name(path.name().as_bytes())
    }

    /// Goes back to the last `*` alone, so it takes the product of both lengths at most.
    fn fits_name(&self, name: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut at, mut of_pattern) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while let Some(c) = name.get(at) {
            match pattern.get(of_pattern) {
                Some(b'*') => {
                    star = Some((at, of_pattern));
                    of_pattern += 1;
                }
                Some(wanted) if wanted == c || *wanted == b'?' => {
                    at += 1;
                    of_pattern += 1;
                }
                Some(_) | None => {
                    let Some((from, of_star)) = star else { return false };
                    // The star takes one more.
                    star = Some((from + 1, of_star));
                    (at, of_pattern) = (from + 1, of_star + 1);
                }
            }
        }
        pattern.iter().skip(of_pattern).all(|c| *c == b'*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_the_whole_name() {
        let check = |pattern: &str, name: &str, fits: bool| {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.fits_name(name.as_bytes()), fits, "{pattern} {name}");
        };
        check("*-source", "hello-source", true);
        check("*-source", "-source", true);
        check("*-source", "source", false);
        check("*-source", "hello-source-1", false);
        check("hello", "hello", true);
        check("hello", "hello-1", false);
        check("hello", "hell", false);
        check("*", "anything", true);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("nixos-system-*-??.??", "nixos-system-tower-26.11", true);
        check("nixos-system-*-??.??", "nixos-system-tower-26.1", false);
        check("?", "", false);
        check("**", "", true);
        check("Hello", "hello", false);
        check("*a*a*a*a*a*a*a*a*b", &"a".repeat(211), false);
    }

    #[test]
    fn what_could_never_fit_is_refused() {
        for text in ["", "/nix/store/*", "a b", "[ab]", "{a,b}", "\u{e4}*", &"a".repeat(256)] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_hash_is_no_part_of_the_name() {
        let path = StorePath::parse("9d82wl65gr2phigksgzzimbdf176rx4c-a-1.0").unwrap();
        assert!("a-*".parse::<Pattern>().unwrap().fits(&path));
        assert!(!"9d82*".parse::<Pattern>().unwrap().fits(&path));
    }
}
