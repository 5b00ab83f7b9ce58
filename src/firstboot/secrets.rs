//! Secrets that were found on the boot partition: what is kept of them, and the same file without
//! them. Pure.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What stands in the place of a secret that was moved. No WPA password is that short.
pub(super) const MOVED: &str = "(moved)";

/// The line that says where it went.
const WHERE_IT_WENT: &str = "\
# (moved): snowberry keeps this secret on its data partition. To change it, write the new one there.";

/// Secrets that are kept: of networks and keys that were used before too, so that a settings file of
/// last year still works. More were never in one house.
const KEPT_MAX: usize = 16;

/// The shortest and longest password of WPA; 64 hexadecimal digits are its hash.
pub(super) const WPA_LENS: std::ops::RangeInclusive<usize> = 8..=63;

/// The digits of a hashed WPA password.
pub(super) const WPA_HASH_LEN: usize = 64;

/// What a secret is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Id {
    /// The network of this SSID.
    Wlan(String),
    /// The access key of this id.
    Bucket(String),
}

/// A secret and what it is for. Has no `Debug` of its own text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Secret {
    #[serde(rename = "for")]
    pub(super) id: Id,
    pub(super) value: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({:?})", self.id)
    }
}

impl Secret {
    /// `None` when it can be none: empty, moved already, or of a length that is none of WPA's, which
    /// stays where it is until it is put right.
    pub(super) fn new(id: Id, value: &str) -> Option<Self> {
        let is_sound = match &id {
            Id::Wlan(_) => wpa(value).is_ok(),
            Id::Bucket(_) => !value.is_empty() && !value.contains(char::is_control),
        };
        (is_sound && !is_moved(value)).then(|| Self { id, value: value.to_owned() })
    }
}

/// How a network's password is given.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Wpa {
    /// As people know it.
    Password(String),
    /// Hashed with the SSID.
    Hash(String),
}

impl std::fmt::Debug for Wpa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wpa")
    }
}

/// The error is a sentence that does not quote it.
pub(super) fn wpa(value: &str) -> Result<Wpa, &'static str> {
    if value.len() == WPA_HASH_LEN && value.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Ok(Wpa::Hash(value.to_ascii_lowercase()));
    }
    if value.contains(char::is_control) {
        return Err("it has control characters");
    }
    if !WPA_LENS.contains(&value.len()) {
        return Err("a WPA password has 8 to 63 characters, its hash 64 hexadecimal digits");
    }
    Ok(Wpa::Password(value.to_owned()))
}

pub(super) fn is_moved(value: &str) -> bool {
    value == MOVED
}

/// The secrets that are kept on the data partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Kept {
    /// The latest last.
    secret: Vec<Secret>,
}

impl Kept {
    pub(super) fn parse(text: &str) -> Option<Self> {
        toml::from_str(text).ok()
    }

    pub(super) fn text(&self) -> String {
        let body = toml::to_string(self).unwrap_or_default();
        format!(
            "# Secrets that stood on the boot partition. Written by `snowberry first-boot`.\n{body}"
        )
    }

    pub(super) fn of(&self, id: &Id) -> Option<&str> {
        let found = self.secret.iter().rev().find(|secret| secret.id == *id);
        found.map(|secret| secret.value.as_str())
    }

    /// Takes a secret in, in the place of another one for the same.
    pub(super) fn keep(&mut self, secret: &Secret) {
        if self.of(&secret.id) == Some(secret.value.as_str()) {
            return;
        }
        self.secret.retain(|known| known.id != secret.id);
        self.secret.push(secret.clone());
        let too_many = self.secret.len().saturating_sub(KEPT_MAX);
        self.secret.drain(..too_many);
    }
}

/// The file with [`MOVED`] in the places of its secrets and one line that says so; every other byte
/// as it was. Places are of `raw` and do not overlap.
pub(super) fn without(raw: &[u8], places: &[Range<usize>]) -> Vec<u8> {
    let mut places = places.to_vec();
    places.sort_by_key(|place| place.start);
    let mut text = Vec::with_capacity(raw.len());
    let mut from = 0;
    for place in places {
        text.extend_from_slice(raw.get(from..place.start).unwrap_or_default());
        text.extend_from_slice(format!("\"{MOVED}\"").as_bytes());
        from = place.end;
    }
    text.extend_from_slice(raw.get(from..).unwrap_or_default());
    let says_so = raw.windows(WHERE_IT_WENT.len()).any(|it| it == WHERE_IT_WENT.as_bytes());
    if !says_so {
        let line_end: &[u8] = if raw.windows(2).any(|it| it == b"\r\n") { b"\r\n" } else { b"\n" };
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.extend_from_slice(line_end);
        }
        text.extend_from_slice(WHERE_IT_WENT.as_bytes());
        text.extend_from_slice(line_end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_is_replaced_and_one_line_says_so() {
        let check = |raw: &str, secret: &str, wanted: &str| {
            let at = raw.find(secret).unwrap();
            let text = without(raw.as_bytes(), std::slice::from_ref(&(at..at + secret.len())));
            let text = String::from_utf8(text).unwrap();
            assert!(text.starts_with(wanted), "{text}");
            let rest = text.strip_prefix(wanted).unwrap();
            assert!(rest.trim_end().ends_with(WHERE_IT_WENT), "{text}");
            let again = text.find("\"(moved)\"").unwrap();
            let twice = without(text.as_bytes(), std::slice::from_ref(&(again..again + 9)));
            assert_eq!(twice, text.as_bytes());
        };
        check("# mine\na = 'x' # b\nc = 1\n", "'x'", "# mine\na = \"(moved)\" # b\nc = 1\n");
        check("a = 'x'", "'x'", "a = \"(moved)\"\n");
        check("a = {b = \"x\", c = 1}\r\n", "\"x\"", "a = {b = \"(moved)\", c = 1}\r\n");
        check("a = '''\nx'''\n", "'''\nx'''", "a = \"(moved)\"\n");
    }

    #[test]
    fn the_latest_secrets_are_kept_and_read_again() {
        let secret =
            |n: usize| Secret::new(Id::Wlan(format!("net \"{n}\"")), "p\\a\"ss word").unwrap();
        let mut kept = Kept::default();
        for n in 0..20 {
            kept.keep(&secret(n));
        }
        kept.keep(&Secret::new(Id::Bucket("K".into()), "S").unwrap());
        kept.keep(&Secret::new(Id::Bucket("K".into()), "T").unwrap());
        let read = Kept::parse(&kept.text()).unwrap();
        assert_eq!(read, kept);
        assert_eq!(read.of(&secret(19).id), Some("p\\a\"ss word"));
        assert_eq!(read.of(&secret(0).id), None);
        assert_eq!(read.of(&Id::Bucket("K".into())), Some("T"));
        assert!(!format!("{read:?}").contains("word"));
    }

    #[test]
    fn what_is_no_password_of_wpa_is_no_secret() {
        let is = |value: &str| Secret::new(Id::Wlan("x".into()), value).is_some();
        assert!(is("12345678") && is(&"f".repeat(64)) && is(&"x".repeat(63)));
        assert!(!is("1234567") && !is(&"x".repeat(64)) && !is("1234\n5678") && !is(MOVED));
    }
}
