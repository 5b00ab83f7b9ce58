//! Who may write: tokens, kept hashed in a file of their own that is read again when it changes.
//!
//! Whoever holds a token can put paths onto every machine that trusts this cache's key. The file
//! has one line for each token, `NAME SHA-256-IN-HEX CREATED-IN-SECONDS-SINCE-1970`; empty lines
//! and those that begin with `#` are nothing. Server and commands share it: a command changes it
//! whether a server runs or not, and a running one sees that at its next question.

use std::error::Error as _;
use std::fmt::Write as _;
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tracing::warn;

use crate::durable;
use crate::nix::base32;

/// What every token begins with, so that one that leaks is known for what it is.
const PREFIX: &str = "snowberry_";

/// Random bytes of a token: 160 bits are 32 characters of nix32, and nobody guesses them.
pub const SECRET_LEN: usize = 20;

/// Tokens at once: one for each builder of a house, many times over. Each question compares all.
const TOKENS_MAX: usize = 256;

/// Longest name, as that of a host.
const NAME_LEN_MAX: usize = 64;

/// A line has at most 64 + 64 + 20 characters and two spaces; the rest is room for comments.
const FILE_LEN_MAX: u64 = 128 * 1024;

/// Permission bits that let others than the owner write: whoever can, could add a token.
const OTHERS_WRITE: u32 = 0o022;

/// The tokens file.
#[derive(Debug)]
pub struct Tokens {
    /// Where it lies.
    path: PathBuf,
    /// What it said last.
    seen: Mutex<Seen>,
}

/// A token as the file knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created_s: u64,
    /// SHA-256 of its text.
    digest: [u8; 32],
}

/// What a writer's password is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No token was ever made: nobody may write.
    NoneMade,
    /// It is the token of this name.
    Writer(String),
    /// It is none of the tokens, or was revoked.
    Unknown,
}

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file system says so.
    #[error("{act} the tokens file {}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not what was written here.
    #[error("the tokens file {} is wrong: {why}", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// A sentence with the line, and without anything secret.
        why: String,
    },
    /// Others than its owner could add a token.
    #[error("the tokens file {} may be written by others than its owner: chmod 600 it",
        path.display())]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// A name that cannot stand in a line.
    #[error(
        "{name:?} is no name for a token: letters, digits, `.`, `_`, `-` and `@`, the first a \
         letter or digit, at most 64"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// There is one of this name.
    #[error("there is a token named {name} already: remove it first, or choose another name")]
    Exists {
        /// The name.
        name: String,
    },
    /// There are as many as there can be.
    #[error("there are {TOKENS_MAX} tokens, as many as there can be: remove some")]
    TooMany,
}

/// What says that a file is the one that was read: a file that is replaced has another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    len_bytes: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            len_bytes: metadata.len(),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What was read last, and what was said of it.
#[derive(Debug, Default)]
struct Seen {
    read: Option<(Stamp, Arc<[Token]>)>,
    /// The trouble that the log has heard, so that it hears each once.
    told: Option<String>,
}

impl Tokens {
    /// The file at `path`, which need not exist.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::new(Seen::default()) }
    }

    /// Whose token `password` is, compared in constant time. Reads the file again when it changed;
    /// meant for blocking threads.
    pub fn verdict(&self, password: &str) -> Result<Verdict, TokensError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = match self.current(&mut seen) {
            Ok(tokens) => {
                seen.told = None;
                tokens
            }
            Err(error) => {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                let told = format!("{error}{cause}");
                if seen.told.as_ref() != Some(&told) {
                    warn!(error = told, "the tokens file cannot be used, nobody may write");
                    seen.told = Some(told);
                }
                return Err(error);
            }
        };
        drop(seen);
        Ok(verdict(&tokens, password))
    }

    /// All tokens, in the order in which they were made.
    pub fn list(&self) -> Result<Vec<Token>, TokensError> {
        Ok(self.read()?.map(|(_, tokens)| tokens).unwrap_or_default())
    }

    /// Makes a token of this name out of `secret`, which must be random, and returns its text:
    /// nobody sees that again. It can be used once this returns.
    pub fn add(
        &self,
        name: &str,
        secret: [u8; SECRET_LEN],
        created_s: u64,
    ) -> Result<String, TokensError> {
        if !is_name(name) {
            return Err(TokensError::Name { name: name.to_owned() });
        }
        let token = format!("{PREFIX}{}", base32::encode(&secret));
        self.change(|tokens| {
            if tokens.iter().any(|token| token.name == name) {
                return Err(TokensError::Exists { name: name.to_owned() });
            }
            if tokens.len() >= TOKENS_MAX {
                return Err(TokensError::TooMany);
            }
            let digest = digest(&token);
            tokens.push(Token { name: name.to_owned(), created_s, digest });
            Ok(true)
        })?;
        Ok(token)
    }

    /// Revokes the token of this name. Says whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool, TokensError> {
        self.change(|tokens| {
            let before = tokens.len();
            tokens.retain(|token| token.name != name);
            Ok(tokens.len() < before)
        })
    }

    fn current(&self, seen: &mut Seen) -> Result<Arc<[Token]>, TokensError> {
        let now = match self.path.metadata() {
            Ok(metadata) => Some(Stamp::of(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.io("see", error)),
        };
        if let Some((stamp, tokens)) = &seen.read
            && Some(*stamp) == now
        {
            return Ok(Arc::clone(tokens));
        }
        seen.read = self.read()?.map(|(stamp, tokens)| (stamp, tokens.into()));
        Ok(seen.read.as_ref().map(|(_, tokens)| Arc::clone(tokens)).unwrap_or_default())
    }

    /// The file as it is now; `None` when there is none.
    fn read(&self) -> Result<Option<(Stamp, Vec<Token>)>, TokensError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("open", error)),
        };
        let metadata = file.metadata().map_err(|error| self.io("see", error))?;
        if metadata.permissions().mode() & OTHERS_WRITE != 0 {
            return Err(TokensError::Open { path: self.path.clone() });
        }
        let mut text = String::new();
        let read = file.take(FILE_LEN_MAX + 1).read_to_string(&mut text);
        match read {
            Ok(len) if u64::try_from(len).is_ok_and(|len| len <= FILE_LEN_MAX) => {}
            Ok(_) => return Err(self.wrong(format!("more than {FILE_LEN_MAX} bytes"))),
            Err(error) => return Err(self.io("read", error)),
        }
        let tokens = parse(&text).map_err(|why| self.wrong(why))?;
        Ok(Some((Stamp::of(&metadata), tokens)))
    }

    /// One change by one writer at a time; `change` says whether there is something to write.
    fn change(
        &self,
        change: impl FnOnce(&mut Vec<Token>) -> Result<bool, TokensError>,
    ) -> Result<bool, TokensError> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| self.io("make the folder of", error))?;
        let lock = durable::lock_folder(folder).map_err(|error| self.io("lock", error))?;
        let mut tokens = self.read()?.map(|(_, tokens)| tokens).unwrap_or_default();
        let changed = change(&mut tokens)?;
        if changed {
            durable::write_private(&self.path, &print(&tokens))
                .map_err(|error| self.io("write", error))?;
        }
        drop(lock);
        Ok(changed)
    }

    fn io(&self, act: &'static str, source: io::Error) -> TokensError {
        TokensError::Io { act, path: self.path.clone(), source }
    }

    fn wrong(&self, why: String) -> TokensError {
        TokensError::Contents { path: self.path.clone(), why }
    }
}

/// Looks at every line, whichever fits: how long it takes tells nothing.
fn verdict(tokens: &[Token], password: &str) -> Verdict {
    if tokens.is_empty() {
        return Verdict::NoneMade;
    }
    let asked = digest(password);
    let mut found = u64::MAX;
    for (index, token) in (0_u64..).zip(tokens) {
        found.conditional_assign(&index, token.digest.ct_eq(&asked));
    }
    let named = usize::try_from(found).ok().and_then(|index| tokens.get(index));
    named.map_or(Verdict::Unknown, |token| Verdict::Writer(token.name.clone()))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_LEN_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-@".contains(c))
}

/// Any line that is not understood makes the whole wrong: half a file must not open a door.
fn parse(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens: Vec<Token> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let token = parse_line(line).map_err(|why| format!("line {number}: {why}"))?;
        if tokens.iter().any(|other| other.name == token.name) {
            return Err(format!("line {number}: a second token named {}", token.name));
        }
        if tokens.len() >= TOKENS_MAX {
            return Err(format!("line {number}: more than {TOKENS_MAX} tokens"));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

fn parse_line(line: &str) -> Result<Token, &'static str> {
    let mut words = line.split_ascii_whitespace();
    let name = words.next().filter(|name| is_name(name)).ok_or("no name of a token")?;
    let digest = words.next().and_then(digest_of_hex).ok_or("no SHA-256 in hexadecimal digits")?;
    let created_s =
        words.next().and_then(|word| word.parse().ok()).ok_or("no time in seconds since 1970")?;
    match words.next() {
        None => Ok(Token { name: name.to_owned(), created_s, digest }),
        Some(_) => Err("more than a name, a hash and a time"),
    }
}

fn digest_of_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

fn print(tokens: &[Token]) -> String {
    let mut text = String::from("# Tokens of writers: name, SHA-256 of the token, made at.\n");
    for Token { name, created_s, digest } in tokens {
        text.push_str(name);
        text.push(' ');
        for byte in digest {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        }
        writeln!(text, " {created_s}").expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests;
