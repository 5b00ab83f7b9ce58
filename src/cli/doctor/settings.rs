//! Nix's own settings: as the Nix that is there tells them, else as its files say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Includes within includes: more is a circle.
const INCLUDES_MAX: usize = 8;

/// Where Nix looks for the machine's settings unless `$NIX_CONF_DIR` says otherwise.
const CONF_DIR: &str = "/etc/nix";

/// What Nix has without any file, of the keys that are asked for here.
const DEFAULTS: [(&str, &str); 4] = [
    ("substituters", "https://cache.nixos.org/"),
    ("trusted-public-keys", "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="),
    ("trusted-users", "root"),
    ("narinfo-cache-negative-ttl", "3600"),
];

/// Names that Nix still takes for these keys.
const ALIASES: [(&str, &str); 3] = [
    ("binary-caches", "substituters"),
    ("binary-cache-public-keys", "trusted-public-keys"),
    ("trusted-binary-caches", "trusted-substituters"),
];

/// Whose settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// This user's: the machine's files, then the user's, then `$NIX_CONFIG`.
    User,
    /// The daemon's, which reads the machine's files only.
    Machine,
}

/// Keys and their values. Lists are kept as Nix writes them, with spaces between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Asks `nix`; `None` where there is none or it does not tell. Blocks for as long as that takes.
    pub(super) fn of_nix(whose: Whose) -> Option<Self> {
        // The name changed with Nix 2.19, and what is old goes away some time.
        [["config", "show"].as_slice(), &["show-config"]].into_iter().find_map(|words| {
            let mut nix = Command::new("nix");
            nix.args(["--extra-experimental-features", "nix-command"]).args(words).arg("--json");
            if whose == Whose::Machine {
                nix.env("NIX_USER_CONF_FILES", "").env_remove("NIX_CONFIG");
            }
            let told = nix.stdin(Stdio::null()).output().ok()?;
            told.status.success().then(|| Self::from_json(&told.stdout))?
        })
    }

    /// Reads the files as Nix does.
    pub(super) fn of_files(whose: Whose) -> Self {
        let mut settings =
            Self::from_conf(&conf_files(whose), |path| std::fs::read_to_string(path).ok());
        if let (Whose::User, Ok(text)) = (whose, std::env::var("NIX_CONFIG")) {
            settings.lay(&text, Path::new("/"), &mut |_| None, 0);
        }
        settings
    }

    /// `{"key": {"value": ...}, ...}`.
    fn from_json(text: &[u8]) -> Option<Self> {
        let read: BTreeMap<String, Value> = serde_json::from_slice(text).ok()?;
        let shown = |value: &Value| match value {
            Value::Array(all) => {
                Some(all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
            }
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(yes) => Some(yes.to_string()),
            Value::Null | Value::Object(_) => None,
        };
        let value = |(key, setting): (String, Value)| Some((key, shown(setting.get("value")?)?));
        Some(Self(read.into_iter().filter_map(value).collect()))
    }

    /// The files in this order, each laid over the ones before.
    fn from_conf(files: &[PathBuf], mut read: impl FnMut(&Path) -> Option<String>) -> Self {
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let mut settings = Self(DEFAULTS.into_iter().map(own).collect());
        for file in files {
            if let Some(text) = read(file) {
                let folder = file.parent().unwrap_or(Path::new("/"));
                settings.lay(&text, folder, &mut read, 0);
            }
        }
        settings
    }

    fn lay(
        &mut self,
        text: &str,
        folder: &Path,
        read: &mut dyn FnMut(&Path) -> Option<String>,
        depth: usize,
    ) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["include" | "!include", path] if depth < INCLUDES_MAX => {
                    let path = folder.join(path);
                    if let Some(inner) = read(&path) {
                        let folder = path.parent().unwrap_or(folder).to_path_buf();
                        self.lay(&inner, &folder, read, depth + 1);
                    }
                }
                [key, "=", values @ ..] => self.set(key, &values.join(" ")),
                _ => {}
            }
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        let (name, extends) = match key.strip_prefix("extra-") {
            Some(name) => (name, true),
            None => (key, false),
        };
        let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
        let name = alias.map_or(name, |(_, name)| name);
        let before = self.0.get(name).filter(|_| extends).map(String::as_str).unwrap_or_default();
        self.0.insert(name.to_owned(), format!("{before} {value}").trim().to_owned());
    }

    #[cfg(test)]
    pub(super) fn of_pairs(pairs: &[(&str, &str)]) -> Self {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Self(pairs.iter().map(own).collect())
    }

    /// The words of a list.
    pub(super) fn list<'a>(&'a self, key: &str) -> std::str::SplitWhitespace<'a> {
        self.0.get(key).map(String::as_str).unwrap_or_default().split_whitespace()
    }

    /// A value as it is written.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|text| !text.is_empty())
    }
}

/// In the order in which Nix reads them: what comes later wins.
fn conf_files(whose: Whose) -> Vec<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let machine = folder("NIX_CONF_DIR").unwrap_or_else(|| PathBuf::from(CONF_DIR));
    let mut files = vec![machine.join("nix.conf")];
    if whose == Whose::Machine {
        return files;
    }
    if let Some(named) = std::env::var_os("NIX_USER_CONF_FILES") {
        // The first one wins there.
        let named: Vec<PathBuf> = std::env::split_paths(&named).collect();
        files.extend(named.into_iter().rev());
    } else {
        let home = || folder("HOME").map(|home| home.join(".config"));
        let config = folder("XDG_CONFIG_HOME").or_else(home);
        files.extend(config.map(|config| config.join("nix/nix.conf")));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_tells_is_read_whatever_its_kind() {
        let text = br#"{"substituters":{"value":["http://a","https://b/"],"defaultValue":[]},
            "narinfo-cache-negative-ttl":{"value":60},"fallback":{"value":true},
            "netrc-file":{"value":"/etc/nix/netrc"},"odd":{"value":{}},"none":{}}"#;
        let settings = Settings::from_json(text).unwrap();
        assert_eq!(settings.list("substituters").collect::<Vec<_>>(), ["http://a", "https://b/"]);
        assert_eq!(settings.text("narinfo-cache-negative-ttl"), Some("60"));
        assert_eq!(settings.text("fallback"), Some("true"));
        assert_eq!(settings.text("netrc-file"), Some("/etc/nix/netrc"));
        assert_eq!((settings.text("odd"), settings.text("nothing")), (None, None));
        assert!(Settings::from_json(b"error: no such command").is_none());
    }

    #[test]
    fn files_are_laid_over_each_other_with_what_they_include() {
        let read = |path: &Path| match path.to_str().unwrap() {
            "/etc/nix/nix.conf" => Some(
                "# the machine's\nsubstituters = https://one  # first\n\
                 include snowberry.conf\n!include /none\ntrusted-users = root @wheel\n"
                    .to_owned(),
            ),
            "/etc/nix/snowberry.conf" => Some(
                "extra-substituters = http://127.0.0.1:8501\nnarinfo-cache-negative-ttl = 60\n"
                    .to_owned(),
            ),
            "/home/ada/nix.conf" => Some("extra-binary-caches = http://two\n".to_owned()),
            _ => None,
        };
        let files = ["/etc/nix/nix.conf", "/home/ada/nix.conf"].map(PathBuf::from);
        let settings = Settings::from_conf(&files, read);
        let list = |key| settings.list(key).collect::<Vec<_>>();
        assert_eq!(list("substituters"), ["https://one", "http://127.0.0.1:8501", "http://two"]);
        assert_eq!(list("trusted-users"), ["root", "@wheel"]);
        assert_eq!(settings.text("narinfo-cache-negative-ttl"), Some("60"));
        let bare = Settings::from_conf(&[], read);
        assert_eq!(bare.list("substituters").collect::<Vec<_>>(), ["https://cache.nixos.org/"]);
    }

    #[test]
    fn a_circle_of_includes_ends() {
        let files = [PathBuf::from("/etc/nix/nix.conf")];
        let settings = Settings::from_conf(&files, |_| {
            Some("include nix.conf\nextra-substituters = http://a\n".to_owned())
        });
        assert_eq!(settings.list("substituters").count(), INCLUDES_MAX + 2);
    }
}
