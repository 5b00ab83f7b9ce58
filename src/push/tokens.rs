//! Who may write: tokens, kept hashed in a file of their own that is read again when it changes.

use std::path::PathBuf;

/// The tokens file.
#[derive(Debug)]
pub struct Tokens {
    /// Where it lies.
    path: PathBuf,
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
        source: std::io::Error,
    },
}

impl Tokens {
    /// The file at `path`, which need not exist.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Whose token `password` is, compared in constant time. Reads the file again when it changed;
    /// meant for blocking threads.
    pub fn verdict(&self, _password: &str) -> Result<Verdict, TokensError> {
        let _ = &self.path;
        todo!()
    }
}
