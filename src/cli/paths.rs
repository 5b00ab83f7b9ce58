//! PATH...: what people and their tools name the paths of a Nix store by.

use std::collections::HashSet;
use std::io::{BufRead, Read as _};
use std::path::Path;

use anyhow::Context;

use crate::nix::{StoreDir, StorePath, StorePathHash};

/// Lines of stdin: ten times what the largest closures have.
const LINES_MAX: usize = 1_000_000;

/// No path is longer on any Linux.
const LINE_LEN_MAX: u64 = 4096;

/// A path that was named: by which it is asked for, and as it was named.
pub(super) type Named = (StorePathHash, String);

/// What the arguments name: store paths, anything below one, links to one (`./result`), the 32
/// characters of a hash; `-` is a line each of stdin, as `nix path-info -r` prints them. None twice.
pub(super) fn named(args: &[String], store_dir: &StoreDir) -> anyhow::Result<Vec<Named>> {
    from(args, store_dir, std::io::stdin().lock())
}

fn from(args: &[String], store_dir: &StoreDir, stdin: impl BufRead) -> anyhow::Result<Vec<Named>> {
    let mut all = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |text: &str| {
        let key = key(text, store_dir)?;
        if seen.insert(key) {
            all.push((key, text.to_owned()));
        }
        anyhow::Ok(())
    };
    let mut stdin = Some(stdin);
    for arg in args {
        if arg != "-" {
            add(arg)?;
        } else if let Some(mut stdin) = stdin.take() {
            for_each_line(&mut stdin, &mut add)?;
        }
    }
    Ok(all)
}

fn for_each_line(
    stdin: &mut impl BufRead,
    act: &mut impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        let len = stdin.take(LINE_LEN_MAX).read_line(&mut line).context("read stdin")?;
        if len == 0 {
            break;
        }
        anyhow::ensure!(number <= LINES_MAX, "stdin has more than {LINES_MAX} lines");
        let is_whole =
            line.ends_with('\n') || u64::try_from(len).is_ok_and(|len| len < LINE_LEN_MAX);
        anyhow::ensure!(is_whole, "line {number} of stdin is longer than any path");
        let text = line.trim();
        if !text.is_empty() {
            act(text).with_context(|| format!("line {number} of stdin"))?;
        }
    }
    Ok(())
}

fn key(text: &str, store_dir: &StoreDir) -> anyhow::Result<StorePathHash> {
    if let Ok(hash) = StorePathHash::parse(text) {
        return Ok(hash);
    }
    // It need not be on this machine.
    let inside = text.strip_prefix(store_dir.as_str()).and_then(|rest| rest.strip_prefix('/'));
    let name = inside.map(|inside| inside.split('/').next().unwrap_or_default());
    if let Some(path) = name.or(Some(text)).and_then(|name| StorePath::parse(name).ok()) {
        return Ok(path.hash());
    }
    store_path(Path::new(text), store_dir).map(|path| path.hash())
}

/// The store path that a path of this machine is, or lies in, or leads to.
pub(super) fn store_path(path: &Path, store_dir: &StoreDir) -> anyhow::Result<StorePath> {
    let real = path.canonicalize().with_context(|| format!("look for {}", path.display()))?;
    let inside = real.strip_prefix(store_dir.as_str()).ok();
    let top = inside.and_then(|inside| inside.components().next());
    let name = top.and_then(|top| top.as_os_str().to_str());
    let name = name.with_context(|| format!("{} is not in {store_dir}", path.display()))?;
    StorePath::parse(name).with_context(|| format!("{} is no store path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "9d82wl65gr2phigksgzzimbdf176rx4c";

    #[test]
    fn a_link_leads_to_its_store_path() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let store_dir = StoreDir::parse(folder.to_str().unwrap()).unwrap();
        let name = "9d82wl65gr2phigksgzzimbdf176rx4c-wire-a-1.0";
        std::fs::create_dir_all(folder.join(name).join("bin")).unwrap();
        std::os::unix::fs::symlink(folder.join(name), folder.join("result")).unwrap();
        for path in [folder.join("result"), folder.join(name).join("bin")] {
            assert_eq!(store_path(&path, &store_dir).unwrap().base_name(), name);
            assert_eq!(key(path.to_str().unwrap(), &store_dir).unwrap().to_string(), HASH);
        }
        assert!(store_path(&folder, &store_dir).is_err());
        assert!(store_path(Path::new("/"), &store_dir).is_err());
        assert!(store_path(&folder.join("missing"), &store_dir).is_err());
    }

    #[test]
    fn a_path_is_named_in_many_ways_and_counts_once() {
        let store_dir = StoreDir::default();
        let other = "0c4zb6w9b8xqjyzcwbh1nq5drjjg3n8z";
        let stdin = format!("\n/nix/store/{other}-y\n{HASH}\n  /nix/store/{HASH}-a/lib \n");
        let args: Vec<String> = ["/nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-a/bin/a", "-", "-"]
            .map(str::to_owned)
            .to_vec();
        let named = from(&args, &store_dir, stdin.as_bytes()).unwrap();
        let keys: Vec<String> = named.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(keys, [HASH, other]);
    }

    #[test]
    fn what_is_no_path_is_named_with_its_line() {
        let stdin = format!("{HASH}\nnonsense\n");
        let error = from(&["-".to_owned()], &StoreDir::default(), stdin.as_bytes()).unwrap_err();
        assert!(format!("{error:#}").contains("line 2 of stdin"), "{error:#}");
        let long = "x".repeat(5000);
        let error = from(&["-".to_owned()], &StoreDir::default(), long.as_bytes()).unwrap_err();
        assert!(format!("{error:#}").contains("longer than any path"), "{error:#}");
    }
}
