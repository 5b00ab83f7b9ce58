//! The age format, version 1, with a passphrase: a head with the file's key, wrapped by scrypt and
//! ChaCha20-Poly1305, then pieces of 64 KiB, each sealed with its number and whether it is the last.
//! What is read was written so, in this order, to its end.

use std::io::{self, BufRead, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};

use super::Error;

/// Plain bytes of a piece, by the format.
const PIECE_LEN: usize = 64 << 10;

/// What sealing adds to a piece, by the cipher.
const TAG_LEN: usize = 16;

/// Bytes of salt, file key and nonce, by the format.
const SEED_LEN: usize = 16;

/// Bytes of a derived key, by the cipher.
const KEY_LEN: usize = 32;

/// Doublings of scrypt's work that a backup is made with: 64 MiB and about a second of a Pi. A Pi of
/// 512 MiB has that beside its cache.
pub const WORK_FACTOR: u8 = 16;

/// The most that is taken when one is opened, 1 GiB: `age` itself makes 18.
const WORK_FACTOR_MAX: u8 = 20;

/// A line of the head: each has fewer than 80 characters.
const HEAD_LINE_LEN_MAX: u64 = 128;

const VERSION_LINE: &str = "age-encryption.org/v1";

const SCRYPT_LABEL: &[u8] = b"age-encryption.org/v1/scrypt";

/// What must be random for one backup, and for no other.
pub struct Seeds {
    /// Of the passphrase.
    pub salt: [u8; SEED_LEN],
    /// The key of the file.
    pub file_key: [u8; SEED_LEN],
    /// Of the content.
    pub nonce: [u8; SEED_LEN],
}

/// Seals what is written. What is not finished has no end, and is refused.
pub struct Sealer<W> {
    out: W,
    pieces: Pieces,
    plain: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Writes the head.
    pub fn new(mut out: W, passphrase: &str, seeds: &Seeds, work_factor: u8) -> io::Result<Self> {
        let wrapping = wrapping_key(passphrase, &seeds.salt, work_factor)?;
        let mut body = seeds.file_key.to_vec();
        wrapping
            .seal_in_place_append_tag(zero_nonce(), Aad::empty(), &mut body)
            .map_err(|_| io::Error::other("the cipher refused"))?;
        let head = format!(
            "{VERSION_LINE}\n-> scrypt {} {work_factor}\n{}\n---",
            STANDARD_NO_PAD.encode(seeds.salt),
            STANDARD_NO_PAD.encode(&body),
        );
        let mac = hmac::sign(&head_key(&seeds.file_key), head.as_bytes());
        out.write_all(head.as_bytes())?;
        writeln!(out, " {}", STANDARD_NO_PAD.encode(mac.as_ref()))?;
        out.write_all(&seeds.nonce)?;
        let pieces = Pieces::new(&seeds.file_key, &seeds.nonce)?;
        Ok(Self { out, pieces, plain: Vec::with_capacity(PIECE_LEN + TAG_LEN) })
    }

    /// Writes the last piece.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.out)
    }

    fn seal(&mut self, is_last: bool) -> io::Result<()> {
        self.pieces.seal(&mut self.plain, is_last)?;
        self.out.write_all(&self.plain)?;
        self.plain.clear();
        Ok(())
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full piece waits until there is more: only then it is not the last.
        if self.plain.len() == PIECE_LEN && !bytes.is_empty() {
            self.seal(false)?;
        }
        let taken = bytes.len().min(PIECE_LEN - self.plain.len());
        self.plain.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Opens what was sealed. Each byte that is read was written by who has the passphrase; the end is
/// the end that was written.
pub struct Opener<R> {
    source: R,
    pieces: Pieces,
    plain: Vec<u8>,
    at: usize,
    next: Vec<u8>,
}

impl<R: BufRead> Opener<R> {
    /// Reads the head.
    pub fn new(mut source: R, passphrase: &str) -> io::Result<Self> {
        let version = line(&mut source)?;
        if version != VERSION_LINE {
            return Err(Error::NoBackup.into());
        }
        let stanza = line(&mut source)?;
        let (salt, work_factor) = scrypt_stanza(&stanza).ok_or(Error::NoBackup)?;
        if work_factor > WORK_FACTOR_MAX {
            return Err(Error::WorkFactor(work_factor).into());
        }
        let body = line(&mut source)?;
        let end = line(&mut source)?;
        let mac = end.strip_prefix("--- ").ok_or(Error::NoBackup)?;
        let mac = STANDARD_NO_PAD.decode(mac).map_err(|_| Error::Damaged)?;
        let mut wrapped = STANDARD_NO_PAD.decode(&body).map_err(|_| Error::Damaged)?;
        let wrapping = wrapping_key(passphrase, &salt, work_factor)?;
        let file_key = wrapping
            .open_in_place(zero_nonce(), Aad::empty(), &mut wrapped)
            .map_err(|_| Error::WrongPassphrase)?;
        let file_key: [u8; SEED_LEN] = (&*file_key).try_into().map_err(|_| Error::Damaged)?;
        let head = format!("{version}\n{stanza}\n{body}\n---");
        hmac::verify(&head_key(&file_key), head.as_bytes(), &mac).map_err(|_| Error::Damaged)?;
        let mut nonce = [0; SEED_LEN];
        source.read_exact(&mut nonce).map_err(|_| Error::Damaged)?;
        let pieces = Pieces::new(&file_key, &nonce)?;
        let mut opener = Self { source, pieces, plain: Vec::new(), at: 0, next: Vec::new() };
        opener.next = opener.sealed_piece()?;
        if opener.next.is_empty() {
            return Err(Error::Damaged.into());
        }
        Ok(opener)
    }

    fn sealed_piece(&mut self) -> io::Result<Vec<u8>> {
        let len = u64::try_from(PIECE_LEN + TAG_LEN).unwrap_or(u64::MAX);
        let mut piece = Vec::with_capacity(PIECE_LEN + TAG_LEN);
        self.source.by_ref().take(len).read_to_end(&mut piece)?;
        Ok(piece)
    }

    fn open_next(&mut self) -> io::Result<()> {
        let mut piece = std::mem::take(&mut self.next);
        self.next = self.sealed_piece()?;
        let is_first = self.pieces.number == 0;
        let is_last = self.next.is_empty();
        self.pieces.open(&mut piece, is_last)?;
        if piece.is_empty() && !is_first {
            return Err(Error::Damaged.into());
        }
        (self.plain, self.at) = (piece, 0);
        Ok(())
    }
}

impl<R: BufRead> Read for Opener<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.plain.len() && !self.next.is_empty() {
            self.open_next()?;
        }
        let mut rest = self.plain.get(self.at..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

/// The cipher of the content.
struct Pieces {
    key: LessSafeKey,
    number: u64,
}

impl Pieces {
    fn new(file_key: &[u8], nonce: &[u8]) -> io::Result<Self> {
        let mut key = [0; KEY_LEN];
        derive(file_key, nonce, b"payload", &mut key)?;
        Ok(Self { key: cipher(&key)?, number: 0 })
    }

    /// Eleven bytes of number, one that says whether it is the last.
    fn nonce(&mut self, is_last: bool) -> Nonce {
        let mut nonce = [0; 12];
        let (number, last) = nonce.split_at_mut(11);
        if let Some(low) = number.last_chunk_mut::<8>() {
            *low = self.number.to_be_bytes();
        }
        last.fill(u8::from(is_last));
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, piece: &mut Vec<u8>, is_last: bool) -> io::Result<()> {
        let nonce = self.nonce(is_last);
        let sealed = self.key.seal_in_place_append_tag(nonce, Aad::empty(), piece);
        sealed.map_err(|_| io::Error::other("the cipher refused"))
    }

    fn open(&mut self, piece: &mut Vec<u8>, is_last: bool) -> io::Result<()> {
        let nonce = self.nonce(is_last);
        let opened = self.key.open_in_place(nonce, Aad::empty(), piece);
        let len = opened.map_err(|_| Error::Damaged)?.len();
        piece.truncate(len);
        Ok(())
    }
}

fn wrapping_key(passphrase: &str, salt: &[u8], work_factor: u8) -> io::Result<LessSafeKey> {
    // Block size and parallelism are the format's.
    let params =
        scrypt::Params::new(work_factor, 8, 1).map_err(|_| Error::WorkFactor(work_factor))?;
    let mut key = [0; KEY_LEN];
    scrypt::scrypt(passphrase.as_bytes(), &[SCRYPT_LABEL, salt].concat(), &params, &mut key)
        .map_err(io::Error::other)?;
    cipher(&key)
}

fn cipher(key: &[u8]) -> io::Result<LessSafeKey> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key);
    Ok(LessSafeKey::new(key.map_err(|_| io::Error::other("the cipher refused its key"))?))
}

/// Each wrapping key is of a salt of its own, so that its nonce may be the same.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn head_key(file_key: &[u8]) -> hmac::Key {
    let mut key = [0; KEY_LEN];
    // It is refused only for lengths that no key has.
    drop(derive(file_key, &[], b"header", &mut key));
    hmac::Key::new(hmac::HMAC_SHA256, &key)
}

struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive(from: &[u8], salt: &[u8], info: &[u8], key: &mut [u8]) -> io::Result<()> {
    let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(from);
    let filled = derived.expand(&[info], Len(key.len())).and_then(|okm| okm.fill(key));
    filled.map_err(|_| io::Error::other("a key cannot be derived"))
}

/// `-> scrypt SALT WORK_FACTOR`, and no other recipient.
fn scrypt_stanza(line: &str) -> Option<(Vec<u8>, u8)> {
    let (salt, work_factor) = line.strip_prefix("-> scrypt ")?.split_once(' ')?;
    let salt = STANDARD_NO_PAD.decode(salt).ok().filter(|salt| salt.len() == SEED_LEN)?;
    let is_plain = work_factor.bytes().all(|c| c.is_ascii_digit()) && !work_factor.starts_with('0');
    let work_factor = work_factor.parse().ok().filter(|_| is_plain)?;
    Some((salt, work_factor))
}

fn line(source: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    source.take(HEAD_LINE_LEN_MAX).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(Error::NoBackup.into());
    }
    String::from_utf8(line).map_err(|_| Error::NoBackup.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quick, for tests.
    const LITTLE: u8 = 2;

    fn sealed(plain: &[u8], passphrase: &str) -> Vec<u8> {
        let seeds = Seeds { salt: [1; 16], file_key: [2; 16], nonce: [3; 16] };
        let mut sealer = Sealer::new(Vec::new(), passphrase, &seeds, LITTLE).unwrap();
        // In pieces of odd lengths.
        for piece in plain.chunks(40_001) {
            sealer.write_all(piece).unwrap();
        }
        sealer.finish().unwrap()
    }

    fn opened(sealed: &[u8], passphrase: &str) -> Result<Vec<u8>, String> {
        let read = || {
            let mut plain = Vec::new();
            Opener::new(sealed, passphrase)?.read_to_end(&mut plain)?;
            Ok::<_, io::Error>(plain)
        };
        read().map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_sealed_opens_whatever_its_length() {
        for len in [0, 1, PIECE_LEN - 1, PIECE_LEN, PIECE_LEN + 1, 3 * PIECE_LEN, 200_000] {
            let plain: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
            assert_eq!(opened(&sealed(&plain, "p w"), "p w").unwrap(), plain, "{len}");
        }
    }

    #[test]
    fn a_wrong_passphrase_and_other_files_are_told_apart() {
        let file = sealed(b"secret", "right");
        assert_eq!(opened(&file, "wrong").unwrap_err(), Error::WrongPassphrase.to_string());
        for other in [&b""[..], b"PK\x03\x04", b"age-encryption.org/v1\n-> X25519 abc\n", &[0; 999]]
        {
            assert_eq!(opened(other, "right").unwrap_err(), Error::NoBackup.to_string());
        }
        let greedy = String::from_utf8_lossy(&file).replacen(" 2\n", " 40\n", 1);
        assert!(opened(greedy.as_bytes(), "right").unwrap_err().contains("work factor 40"));
    }

    /// Made by another program, and opened by age too: `correct horse`, work factor 10.
    const BY_ANOTHER: &str = "\
        YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCBBQUVDQXdRRkJnY0lDUW9MREEwT0R3IDEwCmwzdXZQ\
        d0d6SWNLcVRCQVEvZWZaMFVYVkxYVWJrZHJIaTVCN1VTMldDSzAKLS0tIDlQUURUUzMvUHRUYklGaTNFQjFT\
        cEwyNkc2T3phZHF1RkdUM1VMSmdBS3MKICEiIyQlJicoKSorLC0uL7GSoIK2CVm7a069RWQMurb/xGiOnpQR\
        Fh7soh0wxmyJNe02hQ==";

    #[test]
    fn a_file_of_another_program_opens() {
        let file = base64::engine::general_purpose::STANDARD.decode(BY_ANOTHER).unwrap();
        assert_eq!(opened(&file, "correct horse").unwrap(), b"made by another hand");
        let seeds = Seeds {
            salt: std::array::from_fn(|n| u8::try_from(n).unwrap()),
            file_key: std::array::from_fn(|n| u8::try_from(n + 16).unwrap()),
            nonce: std::array::from_fn(|n| u8::try_from(n + 32).unwrap()),
        };
        let mut sealer = Sealer::new(Vec::new(), "correct horse", &seeds, 10).unwrap();
        sealer.write_all(b"made by another hand").unwrap();
        assert_eq!(sealer.finish().unwrap(), file);
    }

    #[test]
    fn every_change_and_every_cut_is_seen() {
        let plain = vec![7; 2 * PIECE_LEN];
        let file = sealed(&plain, "p");
        assert_eq!(opened(&file, "p").unwrap(), plain);
        let step = file.len() / 97;
        for at in (0..file.len()).step_by(step).chain([30, 60, 100, 150, file.len() - 1]) {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(opened(&changed, "p").is_err(), "byte {at} was changed");
            assert!(opened(&file[..at], "p").is_err(), "cut at {at}");
        }
        // Cut between two pieces, or with a piece taken out.
        let content = file.len() - 2 * (PIECE_LEN + TAG_LEN);
        assert!(opened(&file[..content + PIECE_LEN + TAG_LEN], "p").is_err());
        let mut gap = file[..content].to_vec();
        gap.extend_from_slice(&file[content + PIECE_LEN + TAG_LEN..]);
        assert!(opened(&gap, "p").is_err());
        let mut more = file.clone();
        more.push(0);
        assert!(opened(&more, "p").is_err());
    }
}
