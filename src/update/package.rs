//! An update file on a disk: verified whole, then unpacked part by part. Nothing of it is given to a
//! decoder before its signed hash was right.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Watcher;
use super::error::{Error, io_error};
use super::manifest::{HEAD_LEN_MAX, Head, Part};
use crate::nix::TrustedKeys;

/// Read and written at once: cards reach their speed with it, and it is little beside a Pi's memory.
const BLOCK_LEN: usize = 256 << 10;

/// zstd's window, as a power of two: 8 MiB, which is what levels up to 19 need.
const WINDOW_LOG_MAX: u32 = 23;

/// An update file whose head is signed.
#[derive(Debug)]
pub struct Package {
    file: File,
    path: PathBuf,
    head: Head,
    /// Whether all of it was compared already: that takes a Pi some seconds.
    verified: Cell<bool>,
}

impl Package {
    /// Reads the head and compares the file's length with it.
    pub fn open(path: &Path, keys: &TrustedKeys) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(io_error("open the update", path))?;
        let mut start = Vec::new();
        let bound = u64::try_from(HEAD_LEN_MAX).unwrap_or(u64::MAX);
        let read = (&mut file).take(bound).read_to_end(&mut start);
        read.map_err(io_error("read the update", path))?;
        let wrong = |source| Error::Manifest { name: path.display().to_string(), source };
        let head = Head::parse(&start, keys).map_err(wrong)?;
        let found = file.seek(SeekFrom::End(0)).map_err(io_error("measure the update", path))?;
        let wanted = head.file_len();
        if found != wanted {
            return Err(Error::Length { path: path.to_path_buf(), found, wanted });
        }
        Ok(Self { file, path: path.to_path_buf(), head, verified: Cell::new(false) })
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Compares every part with its hashes, packed first; once. What is written is read back and
    /// compared besides.
    pub fn verify(&self, watcher: &mut dyn Watcher) -> Result<(), Error> {
        if self.verified.get() {
            return Ok(());
        }
        let of = self.head.file_len();
        let mut done = 0;
        for part in &self.head.manifest.parts {
            let mut hash = Sha256::new();
            let mut packed = self.packed(part)?;
            let mut block = vec![0; BLOCK_LEN];
            loop {
                let len = packed.read(&mut block).map_err(io_error("read", &self.path))?;
                let Some(bytes) = block.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
                hash.update(bytes);
                done += u64::try_from(len).unwrap_or(u64::MAX);
                watcher.progress("verify", done, of);
            }
            if <[u8; 32]>::from(hash.finalize()) != part.packed_sha256.0 {
                let (part, path) = (part.name.clone(), self.path.clone());
                return Err(Error::Damaged { part, path });
            }
            self.unpack(part, &mut |_| Ok(()))?;
        }
        self.verified.set(true);
        Ok(())
    }

    /// A small part whole.
    pub fn small(&self, part: &Part) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.unpack(part, &mut |block| {
            bytes.extend_from_slice(block);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Gives the part's bytes away, never more than its size; an error at the end when their hash is
    /// another one.
    pub fn unpack(
        &self,
        part: &Part,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let wrong = |source| Error::Unpack { part: part.name.clone(), source };
        let packed = BufReader::with_capacity(BLOCK_LEN, self.packed(part)?);
        let decoder = zstd::Decoder::with_buffer(packed).and_then(|mut decoder| {
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Ok(decoder)
        });
        let mut decoder = decoder.map_err(|error| wrong(Some(error)))?;
        let (mut hash, mut left) = (Sha256::new(), part.size);
        let mut block = vec![0; BLOCK_LEN];
        loop {
            let len = decoder.read(&mut block).map_err(|error| wrong(Some(error)))?;
            let Some(bytes) = block.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
            let len = u64::try_from(len).unwrap_or(u64::MAX);
            left = left.checked_sub(len).ok_or_else(|| wrong(None))?;
            hash.update(bytes);
            take(bytes)?;
        }
        let is_right = <[u8; 32]>::from(hash.finalize()) == part.sha256.0;
        if left == 0 && is_right { Ok(()) } else { Err(wrong(None)) }
    }

    /// The bytes of a part as they stand in the file.
    fn packed(&self, part: &Part) -> Result<impl Read + '_, Error> {
        let parts = &self.head.manifest.parts;
        let before = parts.iter().take_while(|other| other.name != part.name);
        let offset: u64 = before.map(|part| part.packed_size).sum();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.head.len() + offset))
            .map_err(io_error("read the update", &self.path))?;
        Ok(file.take(part.packed_size))
    }
}

/// The SHA-256 of the first `len` bytes of what is read, block by block.
pub(super) fn hash_of(from: impl Read, len: u64) -> io::Result<[u8; 32]> {
    let mut from = from.take(len);
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK_LEN];
    loop {
        let len = from.read(&mut block)?;
        let Some(bytes) = block.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
    }
    Ok(hash.finalize().into())
}
