//! A NAR file that comes in: through the ingest into the store, under the name it was put.

use crate::nix::UploadName;

use super::{Push, Refusal};

/// The uploads under way: bounds of number and bytes.
#[derive(Default)]
pub(super) struct Uploads;

/// An upload under way. Dropped, it leaves nothing.
pub struct NarUpload;

impl Push {
    /// Begins an upload of `len_bytes` (Content-Length). What is refused for good is refused here,
    /// before any byte of the body.
    pub async fn begin_nar(
        &self,
        _name: UploadName,
        _len_bytes: u64,
    ) -> Result<NarUpload, Refusal> {
        todo!()
    }
}

impl NarUpload {
    /// The next bytes of the file.
    pub async fn feed(&mut self, _bytes: bytes::Bytes) -> Result<(), Refusal> {
        todo!()
    }

    /// The file is complete: it is what its name says, and its NAR waits for its narinfo.
    pub async fn finish(self) -> Result<(), Refusal> {
        todo!()
    }
}
