//! `snowberry.conf`, which nix.conf includes: what Nix is told, and a list of what else was written,
//! for people and for `--undo`. Pure.

use std::path::{Path, PathBuf};

use crate::nix::PublicKey;

const HEAD: &str =
    "# Written by `snowberry join`; `snowberry join --undo` removes it and what it lists.";
const ALSO: &str = "# also written: ";

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OwnConf {
    /// Where Nix asks.
    pub(super) substituter: String,
    /// Keys of the cache itself that are trusted.
    pub(super) keys: Vec<PublicKey>,
    /// The program that notes what was built.
    pub(super) hook: Option<PathBuf>,
    /// What else was written.
    pub(super) also: Vec<PathBuf>,
}

impl OwnConf {
    pub(super) fn text(&self) -> String {
        let mut lines = vec![HEAD.to_owned()];
        lines.extend(self.also.iter().map(|path| format!("{ALSO}{}", path.display())));
        lines.push(format!("extra-substituters = {}", self.substituter));
        if !self.keys.is_empty() {
            let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
            lines.push(format!("extra-trusted-public-keys = {}", keys.join(" ")));
        }
        // What the house built a minute ago is not taken for absent for an hour.
        lines.push("narinfo-cache-negative-ttl = 60".to_owned());
        lines.extend(self.hook.iter().map(|hook| format!("post-build-hook = {}", hook.display())));
        lines.join("\n") + "\n"
    }
}

/// Whether a file of that name is ours.
pub(super) fn is_ours(text: &[u8]) -> bool {
    text.starts_with(HEAD.as_bytes())
}

/// What else was written, as the file lists it.
pub(super) fn also_written(text: &[u8]) -> Vec<PathBuf> {
    let text = String::from_utf8_lossy(text);
    let paths = text.lines().filter_map(|line| line.strip_prefix(ALSO)).map(PathBuf::from);
    paths.filter(|path| path.is_absolute() && is_plain(path)).collect()
}

fn is_plain(path: &Path) -> bool {
    path.components().all(|part| part != std::path::Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_else_was_written_is_read_again() {
        let conf = OwnConf {
            substituter: "http://127.0.0.1:8501".into(),
            keys: Vec::new(),
            hook: Some("/usr/local/bin/snowberry-hook".into()),
            also: vec!["/etc/snowberry/joined.toml".into(), "/etc/snowberry/ca.pem".into()],
        };
        let text = conf.text();
        assert!(is_ours(text.as_bytes()) && !is_ours(b"extra-substituters = x\n"));
        assert_eq!(also_written(text.as_bytes()), conf.also);
        assert!(text.contains("\nextra-substituters = http://127.0.0.1:8501\n"), "{text}");
        assert!(text.contains("\npost-build-hook = /usr/local/bin/snowberry-hook\n"), "{text}");
        assert!(!text.contains("trusted-public-keys"), "{text}");
        let odd = b"# also written: relative\n# also written: /a/../b\n# also written: /c\n";
        assert_eq!(also_written(odd), [Path::new("/c")]);
    }
}
