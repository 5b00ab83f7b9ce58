//! The NAR format: a push parser that makes a listing while a NAR passes, and a writer for tests
//! and demos.

/// Why bytes are not a NAR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NarError {
    /// It ends before its last parenthesis.
    #[error("NAR ends early")]
    Truncated,
}

/// Makes the `.ls` listing of a NAR whose bytes are pushed through it in order.
#[derive(Debug, Default)]
pub struct Lister {}

impl Lister {
    /// `len_max` bounds the memory that names and nodes may take, in bytes; beyond it the listing
    /// is given up (`finish` says `Ok(None)`) while the bytes are still parsed.
    pub fn new(_len_max: usize) -> Self {
        todo!()
    }
    /// The next bytes.
    pub fn push(&mut self, _bytes: &[u8]) -> Result<(), NarError> {
        todo!()
    }
    /// The `.ls` document (JSON, version 1), when the NAR is complete.
    pub fn finish(self) -> Result<Option<String>, NarError> {
        todo!()
    }
}
