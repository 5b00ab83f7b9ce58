//! The nouns of the field: values that parse, print and compare. No I/O, no clock, no tokio.

pub mod base32;
pub mod hash;
pub mod compression;
pub mod store_path;
pub mod signature;
pub mod narinfo;
pub mod nar_name;
pub mod upload_name;
pub mod cache_info;
pub mod nar;

pub use cache_info::CacheInfo;
pub use compression::Compression;
pub use hash::{FileHash, NarHash};
pub use nar_name::NarName;
pub use narinfo::NarInfo;
pub use signature::{PublicKey, SecretKey, Signature, TrustedKeys};
pub use store_path::{StoreDir, StorePath, StorePathHash};
pub use upload_name::UploadName;

/// Characters of a refused text that an error repeats: enough to recognise it, too few for a
/// hostile upstream to flood the log.
const EXCERPT_LEN: usize = 100;

/// The beginning of a refused text, for an error message.
fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_LEN).collect()
}
