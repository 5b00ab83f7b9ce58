//! The folder that is written: each file under a temporary name until it is whole and durable, so
//! that nothing half is ever under its own name, whenever a stick is full or pulled out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use url::Url;

use crate::nix::{FileHash, NarHash, NarInfo, StoreDir, StorePathHash};
use crate::upstream::{self, BucketAdmin};

/// What a temporary file's name begins with; nobody asks a cache for such a name.
const TEMPORARY: &str = ".snowberry-export-";

/// The file that makes a folder a cache.
const CACHE_INFO: &str = "nix-cache-info";

/// Where NAR files lie.
const NARS: &str = "nar";

/// Bytes that are read at once: a stick reaches its speed with this.
const PIECE_LEN: usize = 256 * 1024;

/// Bytes that are written between two syncs: a slow stick would otherwise take minutes at the end.
const SYNC_EVERY_LEN: u64 = 64 * 1024 * 1024;

/// The name of a NAR file, below the folder.
pub(super) fn nar_name(file_hash: FileHash) -> String {
    format!("{NARS}/{}.nar.zst", file_hash.to_nix32())
}

/// A folder that is a cache.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    store_dir: StoreDir,
}

impl Folder {
    /// Makes a cache of it where it is none, and removes what a process left there that was killed.
    pub(super) async fn open(root: &Path, store_dir: &StoreDir) -> anyhow::Result<Self> {
        let shown = root.display();
        let root = std::path::absolute(root).with_context(|| format!("where is {shown}?"))?;
        if let Some(parent) = root.parent().filter(|parent| !parent.is_dir()) {
            anyhow::bail!("there is no {} (is the stick mounted?)", parent.display());
        }
        let url = Url::from_directory_path(&root);
        let url = url.map_err(|()| anyhow::anyhow!("{shown} is no absolute path"))?;
        let config = upstream::Config {
            url: url.into(),
            trusted_public_keys: Vec::new(),
            unsigned: true,
            ca_file: None,
            credentials_file: None,
            netrc_file: None,
            headers_file: None,
            push: true,
            limit: None,
        };
        let admin = BucketAdmin::new(&config)?;
        admin.create().await.with_context(|| format!("make {shown}"))?;
        let made = admin.put_cache_info(store_dir).await;
        made.with_context(|| format!("make a cache of {shown}"))?;
        let folder = Self { root, store_dir: store_dir.clone() };
        let nars = folder.root.join(NARS);
        fs::create_dir_all(&nars).with_context(|| format!("make {}", nars.display()))?;
        for place in [&folder.root, &nars] {
            sweep(place).with_context(|| format!("look into {}", place.display()))?;
        }
        Ok(folder)
    }

    /// The path that a narinfo is about, for people.
    pub(super) fn full_path(&self, narinfo: &NarInfo) -> String {
        self.store_dir.join(&narinfo.store_path)
    }

    fn narinfo_path(&self, key: StorePathHash) -> PathBuf {
        self.root.join(format!("{key}.narinfo"))
    }

    /// What is there of a path; one that does not parse is none.
    pub(super) fn narinfo(&self, key: StorePathHash) -> anyhow::Result<Option<NarInfo>> {
        let path = self.narinfo_path(key);
        match fs::read(&path) {
            Ok(text) => Ok(NarInfo::parse(&text, &self.store_dir)
                .ok()
                .filter(|narinfo| narinfo.store_path.hash() == key)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Whether the file that a narinfo names is there, and is the one that it says.
    pub(super) fn has_nar(&self, narinfo: &NarInfo) -> anyhow::Result<bool> {
        let Some((file_hash, file_size)) = narinfo.file_hash.zip(narinfo.file_size) else {
            return Ok(false);
        };
        let name = narinfo.url.strip_prefix("nar/").unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
            return Ok(false);
        }
        let path = self.root.join(NARS).join(name);
        match sum(&path, file_size) {
            Ok(found) => Ok(found == Some(file_hash)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Begins a NAR file.
    pub(super) fn begin(&self) -> anyhow::Result<Making> {
        let draft = Draft::begin(&self.root, &self.root.join(NARS))?;
        let decoder = zstd::stream::write::Decoder::new(NarSum::default());
        let decoder = decoder.context("make a decoder")?;
        Ok(Making { draft, file: Sha256::new(), decoder, len: 0, unsynced: 0 })
    }

    /// Writes a narinfo, over what is there.
    pub(super) fn put_narinfo(&self, narinfo: &NarInfo) -> anyhow::Result<()> {
        let mut draft = Draft::begin(&self.root, &self.root)?;
        draft.write(narinfo.print(&self.store_dir).as_bytes())?;
        draft.finish(&self.narinfo_path(narinfo.store_path.hash()))
    }
}

/// Removes what was left under temporary names.
fn sweep(place: &Path) -> io::Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let is_left = entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY));
        if is_left {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// SHA-256 of a file that has this length.
fn sum(path: &Path, len: u64) -> io::Result<Option<FileHash>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() != len {
        return Ok(None);
    }
    let mut sha256 = Sha256::new();
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let got = file.read(&mut piece)?;
        if got == 0 {
            return Ok(Some(FileHash::from_bytes(sha256.finalize().into())));
        }
        sha256.update(piece.get(..got).unwrap_or_default());
    }
}

/// A file under a temporary name; dropped before it is finished, it is gone.
#[derive(Debug)]
struct Draft {
    root: PathBuf,
    path: PathBuf,
    file: File,
    is_finished: bool,
}

impl Draft {
    fn begin(root: &Path, place: &Path) -> anyhow::Result<Self> {
        let random =
            getrandom::u64().map_err(|error| anyhow::anyhow!("no random number: {error}"))?;
        let path = place.join(format!("{TEMPORARY}{random:016x}"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("write a file in {}", place.display()))?;
        Ok(Self { root: root.to_path_buf(), path, file, is_finished: false })
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).context("write a file (is there room for it?)")
    }

    /// Durable, and only then under its name.
    fn finish(mut self, to: &Path) -> anyhow::Result<()> {
        self.file.sync_all().context("write a file (is there room for it?)")?;
        // What a pulled stick leaves behind is a folder like any other.
        let is_cache = self.root.join(CACHE_INFO).try_exists();
        anyhow::ensure!(
            is_cache.unwrap_or(false),
            "{} has no nix-cache-info any more: was the stick pulled out?",
            self.root.display()
        );
        fs::rename(&self.path, to).with_context(|| format!("write {}", to.display()))?;
        self.is_finished = true;
        let place = to.parent().unwrap_or(&self.root);
        match File::open(place).and_then(|place| place.sync_all()) {
            // Some file systems of sticks cannot say that of a folder.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            synced => synced.with_context(|| format!("write {}", to.display())),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_finished {
            // What stays is swept by the next export.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// What the unpacked NAR is.
#[derive(Debug, Default)]
struct NarSum {
    sha256: Sha256,
    len: u64,
}

impl Write for NarSum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sha256.update(bytes);
        self.len += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A NAR file in the making: unpacked on its way, to be compared.
pub(super) struct Making {
    draft: Draft,
    file: Sha256,
    decoder: zstd::stream::write::Decoder<'static, NarSum>,
    len: u64,
    unsynced: u64,
}

impl Making {
    /// The next bytes of the file.
    pub(super) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.decoder.write_all(bytes).context("unpack it")?;
        self.draft.write(bytes)?;
        self.file.update(bytes);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.len += len;
        self.unsynced += len;
        if self.unsynced >= SYNC_EVERY_LEN {
            self.draft.file.sync_data().context("write a file (is there room for it?)")?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Gives it its name, when it is the NAR of this narinfo. Says what the file is.
    pub(super) fn finish(mut self, narinfo: &NarInfo) -> anyhow::Result<(FileHash, u64)> {
        self.decoder.flush().context("unpack it")?;
        let NarSum { sha256, len } = self.decoder.into_inner();
        let nar_hash = NarHash::from_bytes(sha256.finalize().into());
        anyhow::ensure!(
            nar_hash == narinfo.nar_hash && len == narinfo.nar_size,
            "the cache gave another NAR than its narinfo says"
        );
        let file_hash = FileHash::from_bytes(self.file.finalize().into());
        let to = self.draft.root.join(nar_name(file_hash));
        self.draft.finish(&to)?;
        Ok((file_hash, self.len))
    }
}
