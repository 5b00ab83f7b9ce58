//! A backup as a file: an archive that every `tar` reads, sealed with a passphrase as every `age`
//! opens it, both as streams. Knows nothing of what is in it.

mod archive;
mod sealed;

pub use archive::{Archive, ENTRY_NAME_LEN_MAX, Entry, Packed};
pub use sealed::{Opener, Sealer, Seeds, WORK_FACTOR};

/// Why a backup cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another kind of file.
    #[error("this is no backup: it does not begin as a file of age with a passphrase")]
    NoBackup,
    /// The key that is derived does not fit.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// It asks for more memory than anybody has.
    #[error("the work factor {0} of its passphrase is beyond what is taken")]
    WorkFactor(u8),
    /// Its bytes are not those that were written.
    #[error("the backup is damaged or cut off: nothing of it can be trusted")]
    Damaged,
    /// What is inside is no archive of ours.
    #[error("the archive in the backup is not understood: {0}")]
    NoArchive(&'static str),
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}
