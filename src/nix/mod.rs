//! The nouns of the field: values that parse, print and compare. No I/O, no clock, no tokio.

pub mod base32;
pub mod hash;
pub mod compression;
pub mod store_path;
pub mod signature;
pub mod narinfo;
pub mod nar_name;
pub mod cache_info;
pub mod nar;

pub use cache_info::CacheInfo;
pub use compression::Compression;
pub use hash::{FileHash, NarHash};
pub use nar_name::NarName;
pub use narinfo::NarInfo;
pub use signature::{PublicKey, SecretKey, Signature, TrustedKeys};
pub use store_path::{StoreDir, StorePath, StorePathHash};
