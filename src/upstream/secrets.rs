//! What proves who we are to an http(s) cache: netrc, header lines, user data of the URL. Parsed
//! from text; values are marked as sensitive and never printed.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

/// Most header lines: servers bound the head of a request to 8 KiB.
const HEADERS_MAX: usize = 32;

/// `Authorization: Basic` of a name and a password.
pub(super) fn basic(name: &str, password: &str) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
    let mut value =
        HeaderValue::try_from(text).expect("base 64 has only characters that a header may have");
    value.set_sensitive(true);
    value
}

/// What the URL says before its `@`.
pub(super) fn of_url(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let name = percent_decode_str(url.username()).decode_utf8_lossy();
    let password = percent_decode_str(url.password().unwrap_or("")).decode_utf8_lossy();
    Some(basic(&name, &password))
}

/// The header lines of a headers file. The error is a sentence that does not quote the file.
pub(super) fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || format!("line {number} is not `Name: value`");
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
        let mut value = HeaderValue::try_from(value.trim()).map_err(|_| wrong())?;
        if ["host", "content-length", "transfer-encoding", "connection", "range", "accept-encoding"]
            .contains(&name.as_str())
        {
            return Err(format!("line {number} sets a header that snowberry sets itself"));
        }
        value.set_sensitive(true);
        if headers.len() >= HEADERS_MAX {
            return Err(format!("it has more than {HEADERS_MAX} lines"));
        }
        headers.append(name, value);
    }
    Ok(headers)
}

/// The name and password for a host in a netrc file: its `machine` entry, else `default`.
pub(super) fn netrc(text: &str, host: &str) -> Option<HeaderValue> {
    let mut found: Option<(String, String)> = None;
    let mut ours = false;
    let mut words = Words { rest: text };
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" | "default" => {
                if found.is_some() {
                    break;
                }
                ours = word == "default"
                    || words.next().is_some_and(|name| name.eq_ignore_ascii_case(host));
                if ours {
                    found = Some((String::new(), String::new()));
                }
            }
            "login" | "password" | "account" => {
                let value = words.next()?;
                if let (true, Some(entry)) = (ours, found.as_mut()) {
                    match word.as_str() {
                        "login" => entry.0 = value,
                        "password" => entry.1 = value,
                        _ => {}
                    }
                }
            }
            "macdef" => words.skip_macro(),
            _ => {}
        }
    }
    found.map(|(name, password)| basic(&name, &password))
}

/// White space parts words, quotes keep it, `#` at a word's start comments the line out.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    fn skip_macro(&mut self) {
        let (end, skip) = self.rest.find("\n\n").map_or((self.rest.len(), 0), |end| (end, 2));
        self.rest = self.rest.get(end + skip..).unwrap_or("");
    }
}

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                break;
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
        if self.rest.is_empty() {
            return None;
        }
        let Some(quoted) = self.rest.strip_prefix('"') else {
            let end = self.rest.find(char::is_whitespace).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at_checked(end)?;
            self.rest = rest;
            return Some(word.to_owned());
        };
        let mut word = String::new();
        let mut chars = quoted.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => word.extend(chars.next()),
                _ => word.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::AUTHORIZATION;

    use super::*;

    fn plain(value: Option<HeaderValue>) -> Option<String> {
        let value = value?;
        assert!(value.is_sensitive());
        let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
        Some(String::from_utf8(STANDARD.decode(text).unwrap()).unwrap())
    }

    #[test]
    fn netrc_names_the_password_of_a_host() {
        let text = "# comment\nmachine a.example login me password pw1\n\
            machine b.example\n  login \"my self\"\n  password \"p \\\"w\"\n\
            macdef init\nmachine c.example password no\n\n\
            default login any password thing\nmachine d.example login late password late";
        let check = |host: &str, wanted: &str| {
            assert_eq!(plain(netrc(text, host)).as_deref(), Some(wanted), "{host}");
        };
        check("a.example", "me:pw1");
        check("A.EXAMPLE", "me:pw1");
        check("b.example", "my self:p \"w");
        check("c.example", "any:thing");
        check("d.example", "any:thing");
        assert_eq!(netrc("machine a.example login me password pw", "x.example"), None);
        assert_eq!(netrc("machine", "x.example"), None);
    }

    #[test]
    fn user_data_of_a_url_is_decoded() {
        let of = |text: &str| plain(of_url(&Url::parse(text).unwrap()));
        assert_eq!(of("https://me:p%40w@h.example").as_deref(), Some("me:p@w"));
        assert_eq!(of("https://token@h.example").as_deref(), Some("token:"));
        assert_eq!(of("https://h.example"), None);
    }

    #[test]
    fn header_lines_are_read_and_sensitive() {
        let map = headers("# mine\nAuthorization: Bearer a:b\n\nX-Key:  k \r\n").unwrap();
        assert_eq!(map.get(AUTHORIZATION).unwrap(), "Bearer a:b");
        assert_eq!(map.get("x-key").unwrap(), "k");
        assert!(map.values().all(HeaderValue::is_sensitive));
        for text in ["secret", "a b: secret", "X: secret\u{1}", "Host: secret"] {
            let error = headers(text).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
