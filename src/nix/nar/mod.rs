//! The NAR format: a push parser that makes a listing while a NAR passes, and a writer for tests
//! and demos.
//!
//! ```text
//! nar   = str("nix-archive-1") node
//! node  = str("(") str("type") body str(")")
//! body  = str("regular") [ str("executable") str("") ] str("contents") str(data)
//!       | str("symlink") str("target") str(target)
//!       | str("directory") { str("entry") str("(") str("name") str(name) str("node") node str(")") }
//! str   = length (u64, little-endian), bytes, zeros up to a multiple of 8
//! ```

mod lister;
mod listing;
mod writer;

#[cfg(test)]
mod tests;

pub use lister::Lister;
pub use writer::Node;

/// The word that every NAR begins with.
const MAGIC: &[u8] = b"nix-archive-1";

/// Directories within each other, at most: the bound of Nix 2.35.
pub const DEPTH_MAX: usize = 64;
/// Longest name of an entry, in bytes: the bound of Nix 2.35 and of every file system.
pub const NAME_LEN_MAX: usize = 255;
/// Longest target of a symlink, in bytes: `PATH_MAX` less its zero byte.
pub const TARGET_LEN_MAX: usize = 4095;

/// Why bytes are not a NAR. Offsets are those of the offending string's first byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarError {
    /// It ends before its last parenthesis.
    #[error("NAR ends early")]
    Truncated,
    /// It goes on after its last parenthesis.
    #[error("NAR goes on after its end at byte {0}")]
    Trailing(u64),
    /// A word that the grammar does not have here.
    #[error("NAR has another word at byte {0} than its grammar wants")]
    Word(u64),
    /// A string that is longer than any that is allowed here.
    #[error("NAR has a string of {len_bytes} bytes at byte {offset}")]
    Length {
        /// Where it begins.
        offset: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// Padding that is not zero.
    #[error("NAR has padding other than zero after the string at byte {0}")]
    Padding(u64),
    /// A name that is empty, `.`, `..`, or has a slash or a zero byte.
    #[error("NAR has a name at byte {0} that no file can have")]
    Name(u64),
    /// A name that does not sort behind the one before it.
    #[error("NAR has a name at byte {0} that is out of order")]
    Order(u64),
    /// A target that is empty or has a zero byte.
    #[error("NAR has a symlink target at byte {0} that no symlink can have")]
    Target(u64),
    /// More than [`DEPTH_MAX`] directories within each other.
    #[error("NAR nests directories too deeply at byte {0}")]
    Depth(u64),
}
