//! narinfo: parse, print, fingerprint, sanitise. The wire format is written here and nowhere else.
//!
//! What comes out of `parse` prints to a text that every Nix client accepts and reads alike. What
//! goes in may be looser: Nix's own parser is left behind where it swallows lines or characters.

#[cfg(test)]
mod tests;

use std::fmt::Write;

use super::hash::{self, HashError};
use super::store_path::StorePathError;
use super::{Compression, FileHash, NarHash, Signature, StoreDir, StorePath, excerpt};

/// Longest narinfo that is read, in bytes: the biggest in the wild (texlive's, with thousands of
/// references) have some hundred KiB.
pub const NARINFO_LEN_MAX: usize = 1024 * 1024;

/// Longest `URL`: signed links of object stores, with their tokens, stay below.
const URL_LEN_MAX: usize = 8 * 1024;

/// What a cache says about one store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The path.
    pub store_path: StorePath,
    /// Where its NAR file lies: relative to the cache, or absolute.
    pub url: String,
    /// The NAR file's codec.
    pub compression: Compression,
    /// SHA-256 of the NAR file, where known.
    pub file_hash: Option<FileHash>,
    /// Bytes of the NAR file, where known (never `Some(0)`).
    pub file_size: Option<u64>,
    /// SHA-256 of the NAR.
    pub nar_hash: NarHash,
    /// Bytes of the NAR, above 0.
    pub nar_size: u64,
    /// Direct references, itself included where it is, sorted and unique.
    pub references: Vec<StorePath>,
    /// The derivation it was built from.
    pub deriver: Option<StorePath>,
    /// Well-formed signatures, sorted and unique; malformed ones are dropped when parsed.
    pub signatures: Vec<Signature>,
    /// The content address, as it stands.
    pub ca: Option<String>,
}

/// Why a text is not a narinfo that may be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    /// Longer than [`NARINFO_LEN_MAX`].
    #[error("narinfo of {0} bytes is too long")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("narinfo is not UTF-8")]
    NotUtf8,
    /// A line that is not `Key: value`, or has a control character (a carriage return, say).
    #[error("line {0} of narinfo is not `Key: value`")]
    Line(usize),
    /// A mandatory key is not there.
    #[error("narinfo has no {0}")]
    Missing(&'static str),
    /// A key that may come once comes again.
    #[error("narinfo has {0} twice")]
    Repeated(&'static str),
    /// `StorePath` lies in another store directory.
    #[error("narinfo's {path:?} does not lie in {store_dir}")]
    OtherStore {
        /// The path as found.
        path: String,
        /// The store directory that is served here.
        store_dir: String,
    },
    /// `StorePath`, `References` or `Deriver` holds what is no store path.
    #[error("narinfo's {key}")]
    StorePath {
        /// The line's key.
        key: &'static str,
        /// What is wrong with it.
        source: StorePathError,
    },
    /// `URL` is empty, too long, or has characters that no URL has.
    #[error("narinfo's URL {0:?}")]
    Url(String),
    /// A codec that snowberry does not read.
    #[error("narinfo's Compression {0:?} is not supported")]
    Compression(String),
    /// `NarHash` or `FileHash` is no SHA-256.
    #[error("narinfo's {key}")]
    Hash {
        /// The line's key.
        key: &'static str,
        /// What is wrong with it.
        source: HashError,
    },
    /// `NarSize` or `FileSize` is no number of bytes, or `NarSize` is 0.
    #[error("narinfo's {key} {value:?} is no size")]
    Size {
        /// The line's key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// `CA` is no content address.
    #[error("narinfo's CA {0:?} is no content address")]
    ContentAddress(String),
}

impl NarInfo {
    /// Parses strictly enough to be safe, loosely enough for every cache in the wild.
    ///
    /// The last newline may be missing, and the space behind a colon where no value follows.
    pub fn parse(text: &[u8], store_dir: &StoreDir) -> Result<Self, NarInfoError> {
        if text.len() > NARINFO_LEN_MAX {
            return Err(NarInfoError::TooLong(text.len()));
        }
        let text = std::str::from_utf8(text).map_err(|_| NarInfoError::NotUtf8)?;
        let mut fields = Fields::default();
        for (index, line) in text.strip_suffix('\n').unwrap_or(text).split('\n').enumerate() {
            let (key, value) = key_and_value(line).ok_or(NarInfoError::Line(index + 1))?;
            fields.take(key, value, store_dir)?;
        }
        fields.finish()
    }

    /// As Nix writes it.
    pub fn print(&self, store_dir: &StoreDir) -> String {
        let mut text = format!("StorePath: {}\n", store_dir.join(&self.store_path));
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "{key}: {value}").expect("a String takes every text");
        };
        line("URL", &self.url);
        line("Compression", &self.compression.label());
        if let Some(file_hash) = &self.file_hash {
            line("FileHash", file_hash);
        }
        if let Some(file_size) = &self.file_size {
            line("FileSize", file_size);
        }
        line("NarHash", &self.nar_hash);
        line("NarSize", &self.nar_size);
        line("References", &join(" ", self.references.iter().map(StorePath::base_name)));
        if let Some(deriver) = &self.deriver {
            line("Deriver", deriver);
        }
        // Nix orders them as texts, where base 64 sorts otherwise than the bytes do.
        let mut signatures: Vec<_> = self.signatures.iter().map(Signature::to_string).collect();
        signatures.sort_unstable();
        for signature in &signatures {
            line("Sig", signature);
        }
        if let Some(ca) = &self.ca {
            line("CA", ca);
        }
        text
    }

    /// What a signature covers.
    pub fn fingerprint(&self, store_dir: &StoreDir) -> String {
        format!(
            "1;{};{};{};{}",
            store_dir.join(&self.store_path),
            self.nar_hash,
            self.nar_size,
            join(",", self.references.iter().map(|reference| store_dir.join(reference))),
        )
    }
}

fn join(separator: &str, words: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut text = String::new();
    for (index, word) in words.enumerate() {
        if index > 0 {
            text.push_str(separator);
        }
        text.push_str(word.as_ref());
    }
    text
}

/// The lines read so far.
#[derive(Default)]
struct Fields {
    store_path: Option<StorePath>,
    url: Option<String>,
    compression: Option<Compression>,
    file_hash: Option<FileHash>,
    file_size: Option<u64>,
    nar_hash: Option<NarHash>,
    nar_size: Option<u64>,
    references: Vec<StorePath>,
    deriver: Option<StorePath>,
    signatures: Vec<Signature>,
    ca: Option<String>,
}

impl Fields {
    /// One line. Of a key that comes again the last one counts, as in Nix; each must be valid.
    fn take(&mut self, key: &str, value: &str, store_dir: &StoreDir) -> Result<(), NarInfoError> {
        match key {
            "StorePath" => self.store_path = Some(parse_full_path(value, store_dir)?),
            "URL" => self.url = Some(parse_url(value)?),
            "Compression" => {
                let unknown = || NarInfoError::Compression(excerpt(value));
                self.compression = Some(Compression::from_label(value).ok_or_else(unknown)?);
            }
            "FileHash" => self.file_hash = Some(named_hash("FileHash", FileHash::parse(value))?),
            "FileSize" => self.file_size = Some(parse_size("FileSize", value)?).filter(|n| *n > 0),
            "NarHash" => self.nar_hash = Some(named_hash("NarHash", NarHash::parse(value))?),
            "NarSize" => {
                let size = parse_size("NarSize", value)?;
                self.nar_size = Some(size);
            }
            "References" if !self.references.is_empty() => {
                return Err(NarInfoError::Repeated("References"));
            }
            "References" => self.references = parse_references(value)?,
            "Deriver" => self.deriver = parse_deriver(value)?,
            // Since 2.34 one malformed signature makes Nix refuse the whole narinfo.
            "Sig" => self.signatures.extend(Signature::parse(value).ok()),
            "CA" if self.ca.is_some() => return Err(NarInfoError::Repeated("CA")),
            "CA" if value.is_empty() => {}
            "CA" if is_content_address(value) => self.ca = Some(value.to_owned()),
            "CA" => return Err(NarInfoError::ContentAddress(excerpt(value))),
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self) -> Result<NarInfo, NarInfoError> {
        self.signatures.sort_unstable();
        self.signatures.dedup();
        let nar_size = self.nar_size.ok_or(NarInfoError::Missing("NarSize"))?;
        if nar_size == 0 {
            return Err(NarInfoError::Size { key: "NarSize", value: "0".to_owned() });
        }
        Ok(NarInfo {
            store_path: self.store_path.ok_or(NarInfoError::Missing("StorePath"))?,
            url: self.url.ok_or(NarInfoError::Missing("URL"))?,
            compression: self.compression.unwrap_or(Compression::Bzip2),
            file_hash: self.file_hash,
            file_size: self.file_size,
            nar_hash: self.nar_hash.ok_or(NarInfoError::Missing("NarHash"))?,
            nar_size,
            references: self.references,
            deriver: self.deriver,
            signatures: self.signatures,
            ca: self.ca,
        })
    }
}

/// The separator is exactly one space: Nix skips one character there, whatever it is.
fn key_and_value(line: &str) -> Option<(&str, &str)> {
    if line.contains(char::is_control) {
        return None;
    }
    let (key, rest) = line.split_once(':')?;
    if rest.is_empty() {
        return Some((key, rest));
    }
    Some((key, rest.strip_prefix(' ')?))
}

fn parse_full_path(value: &str, store_dir: &StoreDir) -> Result<StorePath, NarInfoError> {
    store_dir.strip(value).map_err(|error| match error {
        StorePathError::NotInStore { path, store_dir } => {
            NarInfoError::OtherStore { path, store_dir }
        }
        source @ (StorePathError::Hash(_)
        | StorePathError::Name(_)
        | StorePathError::StoreDir(_)) => NarInfoError::StorePath { key: "StorePath", source },
    })
}

/// Only what RFC 3986 lets stand: newer clients refuse other characters.
fn parse_url(value: &str) -> Result<String, NarInfoError> {
    let legal = |c: char| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c);
    if value.is_empty() || value.len() > URL_LEN_MAX || !value.chars().all(legal) {
        return Err(NarInfoError::Url(excerpt(value)));
    }
    Ok(value.to_owned())
}

fn named_hash<T>(key: &'static str, hash: Result<T, HashError>) -> Result<T, NarInfoError> {
    hash.map_err(|source| NarInfoError::Hash { key, source })
}

/// Digits alone: no sign, no white space.
fn parse_size(key: &'static str, value: &str) -> Result<u64, NarInfoError> {
    let size = value.parse().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
    size.ok_or_else(|| NarInfoError::Size { key, value: excerpt(value) })
}

fn parse_references(value: &str) -> Result<Vec<StorePath>, NarInfoError> {
    let mut references = value
        .split(' ')
        .filter(|base_name| !base_name.is_empty())
        .map(|base_name| parse_base_name("References", base_name))
        .collect::<Result<Vec<_>, _>>()?;
    references.sort_unstable();
    references.dedup();
    Ok(references)
}

fn parse_deriver(value: &str) -> Result<Option<StorePath>, NarInfoError> {
    match value {
        "" | "unknown-deriver" => Ok(None),
        base_name => parse_base_name("Deriver", base_name).map(Some),
    }
}

fn parse_base_name(key: &'static str, base_name: &str) -> Result<StorePath, NarInfoError> {
    StorePath::parse(base_name).map_err(|source| NarInfoError::StorePath { key, source })
}

/// `text:sha256:<digits>` or `fixed:[r:|git:]<algorithm>:<digits>`. Clients refuse a narinfo with
/// any other.
fn is_content_address(value: &str) -> bool {
    if let Some(digits) = value.strip_prefix("text:sha256:") {
        return hash::parse_digits::<32>(digits).is_ok();
    }
    let Some(rest) = value.strip_prefix("fixed:") else { return false };
    let rest = rest.strip_prefix("r:").or_else(|| rest.strip_prefix("git:")).unwrap_or(rest);
    match rest.split_once(':') {
        Some(("md5", digits)) => hash::parse_digits::<16>(digits).is_ok(),
        Some(("sha1", digits)) => hash::parse_digits::<20>(digits).is_ok(),
        Some(("sha256", digits)) => hash::parse_digits::<32>(digits).is_ok(),
        Some(("sha512", digits)) => hash::parse_digits::<64>(digits).is_ok(),
        Some(_) | None => false,
    }
}
