//! The archive in a backup, as `tar` (ustar, with GNU's long names and sizes) writes it: plain files
//! only. What is read is held to what this file writes.

use std::io::{self, Read, Write};

use super::Error;

/// The unit of everything in the format.
const BLOCK_LEN: usize = 512;

/// Longest name: that of a build log, of a path's longest name, in its folder.
pub const ENTRY_NAME_LEN_MAX: usize = 512;

/// What a header has for a name, by the format.
const SHORT_NAME_LEN: usize = 100;

/// What eleven octal digits can say, by the format.
const OCTAL_SIZE_MAX: u64 = 0o777_7777_7777;

/// GNU's name of an entry that has the next one's name as its content.
const LONG_NAME: &str = "././@LongLink";

/// The format's own word, in GNU's spelling.
const MAGIC: &[u8] = b"ustar  \0";

/// An archive that is being written.
pub struct Packed<W> {
    out: W,
    left: u64,
    padding: usize,
}

impl<W: Write> Packed<W> {
    /// An empty one.
    pub fn new(out: W) -> Self {
        Self { out, left: 0, padding: 0 }
    }

    /// Begins an entry of this length, which is written next.
    pub fn begin(&mut self, name: &str, len: u64, made_at_s: u64) -> io::Result<()> {
        self.end_entry()?;
        if name.len() > ENTRY_NAME_LEN_MAX {
            return Err(io::Error::other("the name of an entry is too long"));
        }
        if name.len() >= SHORT_NAME_LEN {
            let content = [name.as_bytes(), b"\0"].concat();
            let content_len = u64::try_from(content.len()).unwrap_or(u64::MAX);
            self.out.write_all(&header(LONG_NAME.as_bytes(), content_len, made_at_s, b'L'))?;
            self.out.write_all(&content)?;
            self.out.write_all(&vec![0; padding(content_len)])?;
        }
        let short = name.as_bytes().get(..name.len().min(SHORT_NAME_LEN - 1)).unwrap_or_default();
        self.out.write_all(&header(short, len, made_at_s, b'0'))?;
        (self.left, self.padding) = (len, padding(len));
        Ok(())
    }

    /// A small file at once.
    pub fn file(&mut self, name: &str, content: &[u8], made_at_s: u64) -> io::Result<()> {
        self.begin(name, u64::try_from(content.len()).unwrap_or(u64::MAX), made_at_s)?;
        self.write_all(content)
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("an entry is shorter than it was said to be"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&vec![0; padding])
    }

    /// Writes the end.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.out.write_all(&[0; 2 * BLOCK_LEN])?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Packed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if len > self.left {
            return Err(io::Error::other("an entry is longer than it was said to be"));
        }
        self.out.write_all(bytes)?;
        self.left -= len;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name: relative, without `.` and `..`.
    pub name: String,
    /// Its bytes.
    pub len: u64,
}

/// An archive that is read. Its bytes are those of the entry that [`Archive::next_entry`] told last.
pub struct Archive<R> {
    source: R,
    left: u64,
    padding: usize,
}

impl<R: Read> Archive<R> {
    /// At its beginning.
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0 }
    }

    /// The next file; what was not read of the one before is left out. `None` at the end, which is
    /// read to the last byte.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let Some((first, kind)) = self.header()? else { return Ok(None) };
        if kind == b'0' {
            return Ok(Some(first));
        }
        let is_short = usize::try_from(first.len).is_ok_and(|len| len <= ENTRY_NAME_LEN_MAX + 1);
        if kind != b'L' || !is_short {
            return Err(Error::NoArchive("there is more in it than files").into());
        }
        let mut name = Vec::new();
        self.read_to_end(&mut name)?;
        let name =
            name.strip_suffix(b"\0").map(<[u8]>::to_vec).and_then(|it| String::from_utf8(it).ok());
        let name = name.filter(|name| is_name(name)).ok_or(Error::NoArchive("a name"))?;
        match self.header()? {
            Some((entry, b'0')) => Ok(Some(Entry { name, ..entry })),
            Some(_) | None => Err(Error::NoArchive("a name without its file").into()),
        }
    }

    fn header(&mut self) -> io::Result<Option<(Entry, u8)>> {
        let rest = self.left + u64::try_from(self.padding).unwrap_or_default();
        let skipped = io::copy(&mut self.source.by_ref().take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(Error::NoArchive("it is cut off").into());
        }
        (self.left, self.padding) = (0, 0);
        let mut block = [0; BLOCK_LEN];
        self.source.read_exact(&mut block).map_err(cut_off)?;
        if block.iter().all(|byte| *byte == 0) {
            io::copy(&mut self.source, &mut io::sink())?;
            return Ok(None);
        }
        let (entry, kind) = parse(&block)?;
        (self.left, self.padding) = (entry.len, padding(entry.len));
        Ok(Some((entry, kind)))
    }
}

fn cut_off(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Error::NoArchive("it is cut off").into();
    }
    error
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.by_ref().take(self.left).read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(Error::NoArchive("it is cut off").into());
        }
        self.left -= u64::try_from(count).unwrap_or_default();
        Ok(count)
    }
}

fn padding(len: u64) -> usize {
    let over = usize::try_from(len % BLOCK_LEN as u64).unwrap_or_default();
    (BLOCK_LEN - over) % BLOCK_LEN
}

/// The places of a header, by the format.
fn put(block: &mut [u8; BLOCK_LEN], at: usize, bytes: &[u8]) {
    if let Some(place) = block.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn header(name: &[u8], len: u64, made_at_s: u64, kind: u8) -> [u8; BLOCK_LEN] {
    let mut block = [0; BLOCK_LEN];
    put(&mut block, 0, name);
    put(&mut block, 100, b"0000600\0");
    put(&mut block, 108, b"0000000\0");
    put(&mut block, 116, b"0000000\0");
    if len <= OCTAL_SIZE_MAX {
        put(&mut block, 124, format!("{len:011o}\0").as_bytes());
    } else {
        // GNU's way with sizes of more than 8 GiB: the number itself, marked.
        put(&mut block, 124, &[0x80]);
        put(&mut block, 128, &len.to_be_bytes());
    }
    put(&mut block, 136, format!("{:011o}\0", made_at_s.min(OCTAL_SIZE_MAX)).as_bytes());
    put(&mut block, 156, &[kind]);
    put(&mut block, 257, MAGIC);
    let sum = format!("{:06o}\0 ", sum(&block));
    put(&mut block, 148, sum.as_bytes());
    block
}

/// With the place of the sum as blanks.
fn sum(block: &[u8; BLOCK_LEN]) -> u32 {
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { *byte };
    block.iter().enumerate().map(|it| u32::from(byte(it))).sum()
}

fn parse(block: &[u8; BLOCK_LEN]) -> Result<(Entry, u8), Error> {
    let part = |from: usize, len: usize| block.get(from..from + len).unwrap_or_default();
    let octal = |part: &[u8]| {
        let text = part.split(|c| [0, b' '].contains(c)).next().unwrap_or_default();
        u64::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok()
    };
    if part(257, MAGIC.len()) != MAGIC || octal(part(148, 8)) != Some(u64::from(sum(block))) {
        return Err(Error::NoArchive("a header"));
    }
    let size = part(124, 12);
    let len = match size.split_first() {
        Some((0x80, rest)) => rest
            .last_chunk::<8>()
            .map(|low| u64::from_be_bytes(*low))
            .filter(|_| rest.get(..3).is_some_and(|high| high.iter().all(|byte| *byte == 0))),
        Some(_) | None => octal(size),
    };
    let len = len.filter(|len| *len <= u64::MAX / 2).ok_or(Error::NoArchive("a size"))?;
    let name = part(0, SHORT_NAME_LEN).split(|c| *c == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).ok().filter(|name| is_name(name));
    let kind = part(156, 1).first().copied().unwrap_or_default();
    match (name, kind) {
        (Some(name), _) => Ok((Entry { name: name.to_owned(), len }, kind)),
        (None, b'L') => Ok((Entry { name: String::new(), len }, kind)),
        (None, _) => Err(Error::NoArchive("a name")),
    }
}

/// Relative, and never above where it is unpacked.
fn is_name(name: &str) -> bool {
    name.len() <= ENTRY_NAME_LEN_MAX
        && !name.contains(char::is_control)
        && name.split('/').all(|part| !["", ".", ".."].contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut packed = Packed::new(Vec::new());
        for (name, content) in files {
            packed.file(name, content, 1_700_000_000).unwrap();
        }
        packed.finish().unwrap()
    }

    fn unpacked(archive: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
        let mut archive = Archive::new(archive);
        let mut files = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            let mut content = Vec::new();
            archive.read_to_end(&mut content)?;
            assert_eq!(u64::try_from(content.len()).unwrap(), entry.len);
            files.push((entry.name, content));
        }
        Ok(files)
    }

    #[test]
    fn files_come_back_and_tar_reads_them() {
        let long = format!("cache/log/{}", "x".repeat(250));
        let edge = "e".repeat(99);
        let files: [(&str, &[u8]); 5] = [
            ("state/secret-key", b"k"),
            ("empty", b""),
            (&long, &[7; 512]),
            (&edge, &[8; 513]),
            ("cache/nar/x", &[9; 5000]),
        ];
        let archive = packed(&files);
        let wanted: Vec<(String, Vec<u8>)> =
            files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        assert_eq!(unpacked(&archive).unwrap(), wanted);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, &archive).unwrap();
        let mut tar = std::process::Command::new("tar");
        let done = tar.arg("-xf").arg(&path).arg("-C").arg(folder.path()).output().unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
        for (name, content) in wanted {
            assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), content);
        }
    }

    #[test]
    fn what_is_not_read_is_passed_over() {
        let archive = packed(&[("a", &[1; 700]), ("b", b"2")]);
        let mut archive = Archive::new(&*archive);
        assert_eq!(archive.next_entry().unwrap().unwrap().name, "a");
        assert_eq!(archive.next_entry().unwrap().unwrap().name, "b");
        assert_eq!(archive.next_entry().unwrap(), None);
    }

    #[test]
    fn sizes_beyond_eight_gibibytes_are_said() {
        let len = 20 << 30;
        let block = header(b"big", len, 0, b'0');
        assert_eq!(parse(&block).unwrap(), (Entry { name: "big".to_owned(), len }, b'0'));
    }

    #[test]
    fn what_is_no_archive_of_ours_is_refused() {
        let good = packed(&[("a", b"1")]);
        for cut in [0, 100, 512, 513, 1024] {
            assert!(unpacked(&good[..cut]).is_err(), "{cut}");
        }
        for name in ["../x", "/x", "a//b", "a/../b", "."] {
            let mut bad = header(name.as_bytes(), 0, 0, b'0').to_vec();
            bad.extend_from_slice(&[0; 1024]);
            assert!(unpacked(&bad).is_err(), "{name}");
        }
        for kind in [b'2', b'5', b'x'] {
            let mut bad = header(b"a", 0, 0, kind).to_vec();
            bad.extend_from_slice(&[0; 1024]);
            assert!(unpacked(&bad).is_err(), "{kind}");
        }
        let mut packed = Packed::new(Vec::new());
        packed.begin("a", 2, 0).unwrap();
        assert!(packed.write_all(b"123").is_err());
        assert!(packed.finish().is_err());
    }
}
