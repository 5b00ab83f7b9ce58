//! What the hook does: one build's outputs into the spool. It reads what Nix hands it, makes two
//! links for each, and never asks Nix anything, because a build waits for it.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::Path;

use super::entry::Entry;
use super::folder::{ENTRIES_MAX, Folder};
use super::{Config, Error, derivation};
use crate::nix::StorePath;

/// Outputs of one derivation that are noted: real ones have ten at most.
const OUTPUTS_MAX: usize = 1000;

/// Sentences for the log of one build at most: a hostile environment could bring thousands.
const REMARKS_MAX: usize = 5;

/// A derivation's outputs stand at its beginning, and no real ones take more.
const DERIVATION_LEN_MAX: u64 = 256 * 1024;

/// What Nix says of a build in the environment of its hook.
#[derive(Debug, Clone, Default)]
pub struct Built {
    /// `OUT_PATHS`: the outputs, with spaces between.
    pub out_paths: Option<OsString>,
    /// `DRV_PATH`.
    pub drv_path: Option<OsString>,
}

/// What became of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// The paths that wait now.
    pub paths: Vec<StorePath>,
    /// What did not go as it should, in sentences.
    pub remarks: Vec<String>,
}

impl Noted {
    fn remark(&mut self, remark: String) {
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(remark);
        }
    }
}

/// Notes what was built, at `now_s` seconds since 1970.
pub fn note(config: &Config, built: &Built, now_s: u64) -> Result<Noted, Error> {
    let mut noted = Noted::default();
    let paths = outputs(config, built, &mut noted);
    let is_wanted = |path: &StorePath| !config.exclude.iter().any(|pattern| pattern.fits(path));
    let wanted: Vec<StorePath> = paths.into_iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        return Ok(noted);
    }
    let folder = Folder::new(config);
    folder.make()?;
    if !folder.has_room()? {
        return Err(Error::Full { path: config.path.clone(), entries_max: ENTRIES_MAX });
    }
    for path in wanted {
        if folder.in_store(&path).symlink_metadata().is_err() {
            let shown = config.store_dir.join(&path);
            noted.remark(format!("{shown} is not there, so it cannot be pushed from here"));
            continue;
        }
        let entry = Entry { noted_s: now_s, path };
        // While this hook runs Nix itself keeps what it built, so the link may come first; the
        // other way round a collector could take its root for a stale one.
        folder.note(&entry).map_err(|source| Error::Note { path: entry.path.clone(), source })?;
        if let Err(error) = folder.hold(&entry) {
            let (shown, root) = (config.store_dir.join(&entry.path), folder.root(&entry));
            noted.remark(format!(
                "{shown} is not kept from garbage collection until it is pushed: {}: {error}",
                root.display()
            ));
        }
        noted.paths.push(entry.path);
    }
    if let Err(error) = folder.sync() {
        noted.remark(format!("a power cut now may forget it: {}: {error}", config.path.display()));
    }
    Ok(noted)
}

/// What the build made. Nix 2.8.0 leaves `OUT_PATHS` empty, and the derivation says it then.
fn outputs(config: &Config, built: &Built, noted: &mut Noted) -> Vec<StorePath> {
    let text = |value: &Option<OsString>| {
        value.as_deref().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
    };
    let mut named: Vec<String> =
        text(&built.out_paths).split_ascii_whitespace().map(str::to_owned).collect();
    let drv_path = text(&built.drv_path);
    if named.is_empty() && !drv_path.is_empty() {
        match config.store_dir.strip(&drv_path).map(|_| of_derivation(Path::new(&drv_path))) {
            Ok(Ok(outputs)) => named = outputs,
            Ok(Err(error)) => noted.remark(format!("read {drv_path:?}: {error}")),
            Err(error) => noted.remark(format!("DRV_PATH: {error}")),
        }
    }
    if named.is_empty() {
        noted.remark(
            "Nix names no outputs (OUT_PATHS, DRV_PATH): this is for post-build-hook".to_owned(),
        );
    }
    if named.len() > OUTPUTS_MAX {
        noted.remark(format!("only the first {OUTPUTS_MAX} outputs are noted"));
        named.truncate(OUTPUTS_MAX);
    }
    let mut paths = Vec::new();
    for path in named {
        match config.store_dir.strip(&path) {
            Ok(path) => paths.push(path),
            Err(error) => noted.remark(format!("left out: {error}")),
        }
    }
    paths
}

fn of_derivation(file: &Path) -> std::io::Result<Vec<String>> {
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(DERIVATION_LEN_MAX).read_to_end(&mut text)?;
    derivation::output_paths(&text).ok_or_else(|| std::io::Error::other("it is no derivation"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::kit;

    fn built(out_paths: &str) -> Built {
        Built { out_paths: Some(out_paths.into()), drv_path: None }
    }

    fn entries(config: &Config) -> Vec<Entry> {
        Folder::new(config).entries().unwrap_or_default()
    }

    #[test]
    fn each_output_waits_but_for_what_is_excluded() {
        let (top, mut config) = kit::spool();
        config.exclude = vec!["*-source".parse().unwrap()];
        let full = |name: &str| kit::in_store(&config, name);
        let all = format!("{} {}  {}", full("a"), full("a-source"), full("a-dev"));
        let noted = note(&config, &built(&all), 1_795_000_000).unwrap();
        assert_eq!(noted.paths, [kit::path("a"), kit::path("a-dev")]);
        assert_eq!(noted.remarks, <[String; 0]>::default());
        let wanted = ["a", "a-dev"].map(|name| kit::entry(1_795_000_000, name));
        assert_eq!(entries(&config), wanted);
        drop(top);
    }

    #[test]
    fn only_what_is_excluded_makes_no_folder() {
        let (top, mut config) = kit::spool();
        config.exclude = vec!["*".parse().unwrap()];
        note(&config, &built(&kit::in_store(&config, "a")), 1_795_000_000).unwrap();
        assert!(!config.path.exists());
        drop(top);
    }

    #[test]
    fn without_outputs_the_derivation_says_them() {
        let (top, config) = kit::spool();
        let out = kit::in_store(&config, "a");
        let drv_path = kit::in_store(&config, "a.drv");
        std::fs::write(&drv_path, format!("Derive([(\"out\",\"{out}\",\"\",\"\")],[],")).unwrap();
        for out_paths in [None, Some(OsString::new())] {
            let built = Built { out_paths, drv_path: Some(drv_path.clone().into()) };
            let noted = note(&config, &built, 1_795_000_000).unwrap();
            assert_eq!(noted.paths, [kit::path("a")]);
        }
        drop(top);
    }

    #[test]
    fn absurd_environments_are_told_in_few_words() {
        let (top, config) = kit::spool();
        let many = "/etc/passwd ".repeat(100_000);
        let hostile = [
            "",
            " ",
            "..",
            "/",
            "/nix/store",
            "/etc/passwd",
            &many,
            "\u{1}\u{2}",
            "/nix/store/x/y",
            &format!("{}/../../etc", config.store_dir),
        ];
        for text in hostile {
            let noted = note(&config, &built(text), 1_795_000_000).unwrap();
            assert!(noted.paths.is_empty(), "{text}");
            assert!((1..=REMARKS_MAX).contains(&noted.remarks.len()), "{text}: {noted:?}");
            assert!(noted.remarks.iter().all(|remark| remark.len() < 500), "{noted:?}");
        }
        let noted = note(&config, &Built::default(), 0).unwrap();
        assert_eq!(noted.remarks.len(), 1);
        for drv in ["/etc/passwd", "relative.drv"] {
            let built = Built { out_paths: None, drv_path: Some(drv.into()) };
            assert!(note(&config, &built, 0).unwrap().remarks[0].starts_with("DRV_PATH: "));
        }
        drop(top);
    }

    #[test]
    fn a_missing_path_is_left_out_and_a_root_that_cannot_be_is_told() {
        let (top, mut config) = kit::spool();
        let missing = format!("{}/{}", config.store_dir, kit::path("missing"));
        let noted = note(&config, &built(&missing), 1_795_000_000).unwrap();
        assert!(noted.paths.is_empty() && noted.remarks[0].contains("is not there"), "{noted:?}");
        // A file where a folder must be, so that root fails too.
        config.nix_state_dir = top.path().join("file");
        std::fs::write(&config.nix_state_dir, "").unwrap();
        let there = kit::in_store(&config, "a");
        let noted = note(&config, &built(&there), 1_795_000_000).unwrap();
        assert_eq!(noted.paths, [kit::path("a")]);
        assert!(noted.remarks[0].contains("not kept from garbage collection"), "{noted:?}");
    }

    #[test]
    fn what_cannot_be_noted_is_an_error_that_says_where() {
        let (top, mut config) = kit::spool();
        config.path = top.path().join("file/spool");
        std::fs::write(top.path().join("file"), "").unwrap();
        let error = note(&config, &built(&kit::in_store(&config, "a")), 0).unwrap_err();
        assert!(error.to_string().contains("file/spool"), "{error}");
    }
}
