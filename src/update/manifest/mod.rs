//! The signed head of an update file: what is in it, and who says so. Pure; `docs/format.md` has the
//! format byte by byte. The file `latest` of a server is such a head alone.

use serde::Deserialize;

use super::version::Version;
use crate::nix::{Signature, TrustedKeys};

/// What the first line begins with; a number follows. Part of what is signed, so that no signature
/// of the same key over anything else counts here.
const MAGIC: &str = "snowberry-update-1 ";

/// Longest manifest: 512 parts of some 350 bytes.
const MANIFEST_LEN_MAX: usize = 256 * 1024;

/// Signatures that are looked at: one by each of two keys while one replaces the other, and spares.
const SIGNATURES_MAX: usize = 4;

/// Longest line of a signature: 88 characters after the key's name.
const SIGNATURE_LINE_LEN_MAX: usize = 256;

/// Longest head. What is read of a file before anything in it is believed.
pub(super) const HEAD_LEN_MAX: usize =
    MANIFEST_LEN_MAX + SIGNATURES_MAX * SIGNATURE_LINE_LEN_MAX + 64;

/// Parts of an update: kernel, initrd, root, and device trees with their overlays, of which Raspberry
/// Pi OS has some three hundred.
const PARTS_MAX: usize = 512;

/// Longest name of a part; real ones have up to 50 characters.
const NAME_LEN_MAX: usize = 100;

/// Folders in a part's name: `boot/overlays/x.dtbo`.
const DEPTH_MAX: usize = 3;

/// Longest part. Slots have 512 MiB; this keeps sums far from overflowing.
const PART_LEN_MAX: u64 = 4 << 30;

/// The part that is the root file system.
const ROOT: &str = "root.squashfs";

/// What the names of all others begin with.
const BOOT: &str = "boot/";

/// A SHA-256 as it stands in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Sha256Hex(pub [u8; 32]);

impl TryFrom<String> for Sha256Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("a SHA-256 is 64 lower-case hexadecimal digits")
    }
}

/// Where a part goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The slot's partition.
    Root,
    /// The slot's folder on the boot partition, under this name.
    Boot(String),
}

/// One part of an update.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Part {
    /// `root.squashfs`, or `boot/...`.
    pub name: String,
    /// Its length.
    pub size: u64,
    /// Its hash.
    pub sha256: Sha256Hex,
    /// Its length in the file, as zstd.
    pub packed_size: u64,
    /// The hash of that.
    pub packed_sha256: Sha256Hex,
}

impl Part {
    /// Where it goes.
    pub fn place(&self) -> Place {
        match self.name.strip_prefix(BOOT) {
            Some(name) => Place::Boot(name.to_owned()),
            None => Place::Root,
        }
    }
}

/// What an update is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// Its version.
    pub version: Version,
    /// The machines it is for: `arm64`.
    pub arch: String,
    /// When it was made, in seconds since 1970; for people.
    pub time: u64,
    /// The name of its file on a server.
    pub file: String,
    /// The format of the stores that it makes.
    pub store_format: u64,
    /// The oldest format of a store that it opens.
    pub store_format_min: u64,
    /// What it is made of, in the order of the file.
    #[serde(rename = "part")]
    pub parts: Vec<Part>,
}

impl Manifest {
    /// The root file system.
    pub fn root(&self) -> Option<&Part> {
        self.parts.iter().find(|part| part.place() == Place::Root)
    }

    /// What goes to the boot partition.
    pub fn boot_parts(&self) -> impl Iterator<Item = (&Part, String)> {
        self.parts.iter().filter_map(|part| match part.place() {
            Place::Root => None,
            Place::Boot(name) => Some((part, name)),
        })
    }
}

/// A manifest that a trusted key has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What it says.
    pub manifest: Manifest,
    /// The head as it stands in the file.
    pub bytes: Vec<u8>,
}

/// Why a head does not count.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is something else, or was cut.
    #[error("it is no update of snowberry, or was cut short: {0}")]
    Shape(&'static str),
    /// No key of this image has signed it.
    #[error(
        "none of this image's release keys ({known}) has signed it; it has signatures by {signers}"
    )]
    Unsigned {
        /// Names of the keys that count.
        known: String,
        /// Names of the keys that it claims.
        signers: String,
    },
    /// It is signed, and not understood: a newer program made it.
    #[error("its manifest cannot be read by this version")]
    Parse {
        /// What is not understood.
        source: Box<toml::de::Error>,
    },
    /// It is signed, and must not be done.
    #[error("its manifest is wrong: {0}")]
    Wrong(String),
}

impl Head {
    /// The head at the beginning of these bytes, when a key has signed it. Nothing of the manifest is
    /// parsed before that.
    pub fn parse(start: &[u8], keys: &TrustedKeys) -> Result<Self, ManifestError> {
        let shape = ManifestError::Shape;
        let (first, after_first) = line(start).ok_or(shape("it has no first line"))?;
        let digits = first.strip_prefix(MAGIC).ok_or(shape("it begins differently"))?;
        let len = digits.parse().ok().filter(|len| *len <= MANIFEST_LEN_MAX);
        let len: usize = len.ok_or(shape("its manifest has no length, or too long a one"))?;
        let (text, mut rest) =
            after_first.split_at_checked(len).ok_or(shape("its manifest is not whole"))?;
        let text = std::str::from_utf8(text).map_err(|_| shape("its manifest is no text"))?;
        let mut signatures = Vec::new();
        loop {
            let (next, after) = line(rest).ok_or(shape("its signatures are not whole"))?;
            rest = after;
            if next.is_empty() {
                break;
            }
            let signature = next.strip_prefix("Sig: ").map(Signature::parse);
            let signature = signature.and_then(Result::ok);
            signatures.push(signature.ok_or(shape("it has a line that is no signature"))?);
            if signatures.len() > SIGNATURES_MAX {
                return Err(shape("it has too many signatures"));
            }
        }
        check_signed(&format!("{MAGIC}{len}\n{text}"), &signatures, keys)?;
        let manifest: Manifest = toml::from_str(text)
            .map_err(|source| ManifestError::Parse { source: Box::new(source) })?;
        check(&manifest).map_err(ManifestError::Wrong)?;
        let bytes = start.strip_suffix(rest).unwrap_or(start).to_vec();
        Ok(Self { manifest, bytes })
    }

    /// The length of the whole file.
    pub fn file_len(&self) -> u64 {
        let packed: u64 = self.manifest.parts.iter().map(|part| part.packed_size).sum();
        packed.saturating_add(self.len())
    }

    /// The length of the head.
    pub fn len(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// Never: it has a first line at least.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// A line without its end, and what follows it.
fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().take(SIGNATURE_LINE_LEN_MAX).position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at_checked(end)?;
    Some((std::str::from_utf8(line).ok()?, rest.strip_prefix(b"\n")?))
}

fn check_signed(
    text: &str,
    signatures: &[Signature],
    keys: &TrustedKeys,
) -> Result<(), ManifestError> {
    let by_one =
        |signature: &Signature| keys.keys().iter().any(|key| key.verifies(text, signature));
    if signatures.iter().any(by_one) {
        return Ok(());
    }
    let list = |names: Vec<&str>| {
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    Err(ManifestError::Unsigned {
        known: list(keys.keys().iter().map(crate::nix::PublicKey::name).collect()),
        signers: list(signatures.iter().map(Signature::key_name).collect()),
    })
}

/// What a signed manifest must be all the same: a key can be lent to a wrong script.
fn check(manifest: &Manifest) -> Result<(), String> {
    let Manifest { parts, file, .. } = manifest;
    if !is_name(file) || file.len() > NAME_LEN_MAX {
        return Err(format!("{file:?} is no name of a file"));
    }
    if parts.len() > PARTS_MAX {
        return Err(format!("it has more than {PARTS_MAX} parts"));
    }
    for part in parts {
        let inner = part.name.strip_prefix(BOOT).unwrap_or(&part.name);
        let is_known = part.name == ROOT || part.name.starts_with(BOOT);
        let depth = part.name.split('/').count();
        let is_plain = inner.split('/').all(is_name);
        if !is_known || !is_plain || depth > DEPTH_MAX || part.name.len() > NAME_LEN_MAX {
            return Err(format!("{:?} is no name of a part", part.name));
        }
        if part.size > PART_LEN_MAX || part.packed_size > PART_LEN_MAX {
            return Err(format!("{} is longer than any part may be", part.name));
        }
    }
    // A FAT does not tell upper case from lower.
    let mut names: Vec<String> = parts.iter().map(|it| it.name.to_ascii_lowercase()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair.first() == pair.last()) {
        return Err(format!("it has {:?} twice", twice.first()));
    }
    for needed in [ROOT, "boot/vmlinuz", "boot/initrd.img", "boot/cmdline.txt"] {
        if !parts.iter().any(|part| part.name == needed && part.size > 0) {
            return Err(format!("it has no {needed}"));
        }
    }
    Ok(())
}

/// Letters, digits, and `. _ - + ,` inside: what device trees are called, and nothing that leads
/// elsewhere.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-+,".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(fits)
        && !text.ends_with('.')
}

#[cfg(test)]
mod tests;
