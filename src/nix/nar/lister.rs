//! The push parser: bytes in pieces of any length in, a listing out. File contents are skipped
//! where they lie and never copied.

use super::listing::Listing;
use super::{DEPTH_MAX, MAGIC, NAME_LEN_MAX, NarError, TARGET_LEN_MAX};

/// Longest word of the grammar: Nix's own bound.
const WORD_LEN_MAX: usize = 32;
/// Bytes of a string's length field, and what strings are padded to.
const ALIGN: u8 = 8;

/// Makes the `.ls` listing of a NAR whose bytes are pushed through it in order.
///
/// It is stricter than the older Nix clients are. Whether a NAR is right is said by its hash and
/// nothing else: where the hash agrees and the lister says `Err`, the NAR is good and only has
/// no listing.
#[derive(Debug)]
pub struct Lister {
    listing: Listing,
    /// What the next string must be.
    expect: Expect,
    reading: Reading,
    /// The length field, string or padding that is being read: a few KiB at most.
    scratch: Vec<u8>,
    /// The last name seen in each directory that is open.
    directories: Vec<Vec<u8>>,
    /// Bytes read so far.
    offset: u64,
    /// Where the string that is being read begins.
    string_offset: u64,
    failed: Option<NarError>,
}

/// A place in the grammar, named by the string that must come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Magic,
    NodeOpen,
    Type,
    Kind,
    ExecutableOrContents,
    ExecutableValue,
    ContentsWord,
    Contents { executable: bool },
    TargetWord,
    Target,
    NodeClose,
    EntryOrClose,
    EntryOpen,
    NameWord,
    Name,
    NodeWord,
    EntryClose,
    Nothing,
}

#[derive(Debug, Clone, Copy)]
enum Reading {
    /// A length field.
    Length,
    /// A short string with its padding, both in the scratch.
    String { len: usize, padded: usize },
    /// Contents of a file, which are skipped.
    Contents { left: u64, padding: usize },
    /// The padding of contents, in the scratch.
    Padding { len: usize },
}

impl Lister {
    /// `len_max` bounds the listing, in bytes; beyond it the listing is given up (`finish` says
    /// `Ok(None)`) while the bytes are still parsed. The parser itself takes some 20 KiB at most.
    pub fn new(len_max: usize) -> Self {
        Self {
            listing: Listing::new(len_max),
            expect: Expect::Magic,
            reading: Reading::Length,
            scratch: Vec::new(),
            directories: Vec::new(),
            offset: 0,
            string_offset: 0,
            failed: None,
        }
    }

    /// The next bytes. After an error every call gives that error again.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.parse(bytes);
        self.failed = result.clone().err();
        result
    }

    /// The `.ls` document (JSON, version 1), when the NAR is complete; `None` where it would be
    /// too long, or a name or target is not UTF-8.
    pub fn finish(self) -> Result<Option<String>, NarError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.expect != Expect::Nothing {
            return Err(NarError::Truncated);
        }
        Ok(self.listing.finish())
    }

    fn parse(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            if self.expect == Expect::Nothing {
                return Err(NarError::Trailing(self.offset));
            }
            bytes = match self.reading {
                Reading::Length => self.read_length(bytes)?,
                Reading::String { len, padded } => self.read_string(bytes, len, padded)?,
                Reading::Contents { left, padding } => self.skip_contents(bytes, left, padding),
                Reading::Padding { len } => self.read_padding(bytes, len)?,
            };
        }
        Ok(())
    }

    fn read_length<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], NarError> {
        let rest = self.fill(bytes, usize::from(ALIGN));
        let Ok(field) = <[u8; 8]>::try_from(self.scratch.as_slice()) else {
            return Ok(rest);
        };
        self.scratch.clear();
        self.string_offset = self.offset;
        self.begin_string(u64::from_le_bytes(field))?;
        Ok(rest)
    }

    fn begin_string(&mut self, len_bytes: u64) -> Result<(), NarError> {
        let len_max = match self.expect {
            Expect::Contents { executable } => {
                self.listing.regular(len_bytes, executable, self.offset);
                self.begin_contents(len_bytes);
                return Ok(());
            }
            Expect::Name => NAME_LEN_MAX,
            Expect::Target => TARGET_LEN_MAX,
            Expect::Magic
            | Expect::NodeOpen
            | Expect::Type
            | Expect::Kind
            | Expect::ExecutableOrContents
            | Expect::ExecutableValue
            | Expect::ContentsWord
            | Expect::TargetWord
            | Expect::NodeClose
            | Expect::EntryOrClose
            | Expect::EntryOpen
            | Expect::NameWord
            | Expect::NodeWord
            | Expect::EntryClose
            | Expect::Nothing => WORD_LEN_MAX,
        };
        match usize::try_from(len_bytes) {
            Ok(0) => self.accept(b""),
            Ok(len) if len <= len_max => {
                let padded = len.next_multiple_of(usize::from(ALIGN));
                self.reading = Reading::String { len, padded };
                Ok(())
            }
            Ok(_) | Err(_) => Err(NarError::Length { offset: self.string_offset, len_bytes }),
        }
    }

    fn read_string<'a>(
        &mut self,
        bytes: &'a [u8],
        len: usize,
        padded: usize,
    ) -> Result<&'a [u8], NarError> {
        let rest = self.fill(bytes, padded);
        if self.scratch.len() < padded {
            return Ok(rest);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let (string, padding) = scratch.split_at(len);
        self.check_padding(padding)?;
        self.reading = Reading::Length;
        self.accept(string)?;
        scratch.clear();
        self.scratch = scratch;
        Ok(rest)
    }

    fn begin_contents(&mut self, len_bytes: u64) {
        self.expect = Expect::NodeClose;
        let align = u64::from(ALIGN);
        let padding = usize::try_from((align - len_bytes % align) % align)
            .expect("padding is shorter than eight bytes");
        self.reading = match (len_bytes, padding) {
            (0, _) => Reading::Length,
            (left, padding) => Reading::Contents { left, padding },
        };
    }

    /// The one place that sees most of a NAR's bytes, and it only counts them.
    fn skip_contents<'a>(&mut self, bytes: &'a [u8], left: u64, padding: usize) -> &'a [u8] {
        let available = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (skipped, rest) = bytes.split_at(available);
        let left = left - self.advance(skipped);
        self.reading = match (left, padding) {
            (0, 0) => Reading::Length,
            (0, len) => Reading::Padding { len },
            (left, padding) => Reading::Contents { left, padding },
        };
        rest
    }

    fn read_padding<'a>(&mut self, bytes: &'a [u8], len: usize) -> Result<&'a [u8], NarError> {
        let rest = self.fill(bytes, len);
        self.check_padding(&self.scratch)?;
        if self.scratch.len() == len {
            self.scratch.clear();
            self.reading = Reading::Length;
        }
        Ok(rest)
    }

    /// Moves bytes into the scratch until it holds `want` of them, and returns the rest.
    fn fill<'a>(&mut self, bytes: &'a [u8], want: usize) -> &'a [u8] {
        let missing = want.saturating_sub(self.scratch.len());
        let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
        self.scratch.extend_from_slice(taken);
        self.advance(taken);
        rest
    }

    fn advance(&mut self, read: &[u8]) -> u64 {
        let len = u64::try_from(read.len()).expect("a length in memory fits into 64 bits");
        self.offset += len;
        len
    }

    fn check_padding(&self, padding: &[u8]) -> Result<(), NarError> {
        if padding.iter().any(|byte| *byte != 0) {
            return Err(NarError::Padding(self.string_offset));
        }
        Ok(())
    }

    /// The grammar: one string further.
    fn accept(&mut self, string: &[u8]) -> Result<(), NarError> {
        self.expect = match (self.expect, string) {
            (Expect::Magic, MAGIC) | (Expect::NodeWord, b"node") => Expect::NodeOpen,
            (Expect::NodeOpen, b"(") => Expect::Type,
            (Expect::Type, b"type") => Expect::Kind,
            (Expect::Kind, b"regular") => Expect::ExecutableOrContents,
            (Expect::Kind, b"symlink") => Expect::TargetWord,
            (Expect::Kind, b"directory") => self.open_directory()?,
            (Expect::ExecutableOrContents, b"executable") => Expect::ExecutableValue,
            (Expect::ExecutableOrContents, b"contents") => Expect::Contents { executable: false },
            (Expect::ExecutableValue, b"") => Expect::ContentsWord,
            (Expect::ContentsWord, b"contents") => Expect::Contents { executable: true },
            (Expect::TargetWord, b"target") => Expect::Target,
            (Expect::Target, target) => self.symlink(target)?,
            (Expect::NodeClose, b")") => self.after_node(),
            (Expect::EntryOrClose, b"entry") => Expect::EntryOpen,
            (Expect::EntryOrClose, b")") => self.close_directory(),
            (Expect::EntryOpen, b"(") => Expect::NameWord,
            (Expect::NameWord, b"name") => Expect::Name,
            (Expect::Name, name) => self.name(name)?,
            (Expect::EntryClose, b")") => Expect::EntryOrClose,
            (_, _) => return Err(NarError::Word(self.string_offset)),
        };
        Ok(())
    }

    fn open_directory(&mut self) -> Result<Expect, NarError> {
        if self.directories.len() == DEPTH_MAX {
            return Err(NarError::Depth(self.string_offset));
        }
        self.directories.push(Vec::new());
        self.listing.open_directory();
        Ok(Expect::EntryOrClose)
    }

    fn close_directory(&mut self) -> Expect {
        self.directories.pop();
        self.listing.close_directory();
        self.after_node()
    }

    fn after_node(&self) -> Expect {
        if self.directories.is_empty() { Expect::Nothing } else { Expect::EntryClose }
    }

    fn symlink(&mut self, target: &[u8]) -> Result<Expect, NarError> {
        if target.is_empty() || target.contains(&0) {
            return Err(NarError::Target(self.string_offset));
        }
        self.listing.symlink(target);
        Ok(Expect::NodeClose)
    }

    fn name(&mut self, name: &[u8]) -> Result<Expect, NarError> {
        let impossible = name.contains(&0) || name.contains(&b'/');
        if impossible || matches!(name, b"" | b"." | b"..") {
            return Err(NarError::Name(self.string_offset));
        }
        if let Some(last) = self.directories.last_mut() {
            // No name is empty, so the first one sorts behind the empty start.
            if name <= last.as_slice() {
                return Err(NarError::Order(self.string_offset));
            }
            last.clear();
            last.extend_from_slice(name);
        }
        self.listing.name(name);
        Ok(Expect::NodeWord)
    }
}
