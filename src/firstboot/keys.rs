//! The keys that are the appliance's own, beside those of `snowberry.toml(5)`, and the nearest right
//! one to a wrong one. Pure.

use crate::config;

/// One key of the appliance.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted from the top.
    pub path: &'static str,
    /// Whether it is only there because other programs write it.
    pub is_ignored: bool,
}

const fn key(path: &'static str) -> Key {
    Key { path, is_ignored: false }
}

const fn ignored(path: &'static str) -> Key {
    Key { path, is_ignored: true }
}

/// All of them. Raspberry Pi Imager writes underscores for the hyphens.
pub const KEYS: [Key; 22] = [
    key("system.hostname"),
    key("wlan.ssid"),
    key("wlan.password"),
    key("wlan.country"),
    key("wlan.hidden"),
    ignored("wlan.password-encrypted"),
    key("ssh.authorized-keys"),
    key("ssh.enabled"),
    key("ssh.password-authentication"),
    key("locale.timezone"),
    ignored("locale.keymap"),
    ignored("locale.language"),
    key("network.address"),
    key("network.gateway"),
    key("network.dns"),
    key("network.interface"),
    key("bucket-credentials.access-key-id"),
    key("bucket-credentials.secret-access-key"),
    key("bucket-credentials.profile"),
    ignored("user.name"),
    ignored("user.password"),
    ignored("user.password-encrypted"),
];

/// What Raspberry Pi Imager writes first.
const VERSION: &str = "config-version";

/// How like a key must be to be offered: below this a guess confuses more than it helps.
const LIKENESS_MIN: f64 = 0.7;

/// Tables under other names than ours, which no likeness would find.
const OTHER_NAMES: [(&str, &str); 6] = [
    ("wifi", "wlan"),
    ("wireless", "wlan"),
    ("timezone", "locale.timezone"),
    ("credentials", "bucket-credentials"),
    ("aws", "bucket-credentials"),
    ("s3", "bucket-credentials"),
];

/// What a name at the top of the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Top {
    /// A table of the appliance.
    Appliance,
    /// Of the daemon's configuration.
    Daemon,
    /// Means nothing, and is no mistake.
    Ignored,
    /// Nobody knows it.
    Unknown,
}

/// `name` with hyphens.
pub(super) fn top(name: &str) -> Top {
    if name == VERSION || name == super::text::LOST_TABLE {
        Top::Ignored
    } else if KEYS.iter().any(|key| split(key.path).0 == name) {
        Top::Appliance
    } else if config::KEYS.iter().any(|key| key.path == name || key.split().0 == name) {
        Top::Daemon
    } else {
        Top::Unknown
    }
}

pub(super) fn is_known(path: &str) -> bool {
    KEYS.iter().any(|key| key.path == path)
}

/// The sentence about a key that nobody knows, with the nearest right one: of the same table first.
pub(super) fn unknown(table: &str, name: &str) -> String {
    let shown = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
    match nearest(table, name) {
        Some(near) => format!("there is no key {shown}; did you mean {near}?"),
        None => format!("there is no key {shown}; docs/settings.md lists them all"),
    }
}

fn nearest(table: &str, name: &str) -> Option<&'static str> {
    let ours = KEYS.iter().filter(|key| !key.is_ignored).map(|key| key.path);
    let paths: Vec<&str> = ours.chain(config::KEYS.iter().map(|key| key.path)).collect();
    let elsewhere = paths.iter().find(|path| table.is_empty() && split(path).1 == name);
    if let Some(path) = elsewhere {
        return Some(path);
    }
    let of_table = paths.iter().filter(|path| split(path).0 == table);
    let own = best(of_table.map(|path| (split(path).1, *path)), name);
    let renamed = OTHER_NAMES.iter().find(|(other, _)| table.is_empty() && *other == name);
    let tables =
        paths.iter().map(|path| split(path).0).filter(|it| table.is_empty() && !it.is_empty());
    own.or(renamed.map(|(_, ours)| *ours))
        .or_else(|| best(tables.map(|it| (it, it)), name))
        .or_else(|| best(paths.iter().map(|path| (split(path).1, *path)), name))
}

fn best(
    candidates: impl Iterator<Item = (&'static str, &'static str)>,
    name: &str,
) -> Option<&'static str> {
    candidates
        .map(|(known, offered)| (strsim::jaro_winkler(known, name), offered))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .reduce(|best, one| if one.0 > best.0 { one } else { best })
        .map(|(_, offered)| offered)
}

fn split(path: &'static str) -> (&'static str, &'static str) {
    path.split_once('.').unwrap_or(("", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_right_key_is_offered() {
        for (table, name, near) in [
            ("wlan", "pasword", "wlan.password"),
            ("wlan", "SSID", "wlan.ssid"),
            ("", "hostname", "system.hostname"),
            ("", "wifi", "wlan"),
            ("", "upstreams", "upstream"),
            ("", "netwrok", "network"),
            ("", "authorized-keys", "ssh.authorized-keys"),
            ("system", "timezone", "locale.timezone"),
            ("network", "adress", "network.address"),
        ] {
            let told = unknown(table, &name.to_lowercase());
            assert!(told.ends_with(&format!("did you mean {near}?")), "{told}");
        }
        assert!(unknown("", "xyzzy").contains("lists them all"));
    }

    #[test]
    fn a_name_at_the_top_is_ours_or_the_daemons() {
        assert_eq!(top("wlan"), Top::Appliance);
        assert_eq!(top("upstream"), Top::Daemon);
        assert_eq!(top("store"), Top::Daemon);
        assert_eq!(top("name"), Top::Daemon);
        assert_eq!(top("config-version"), Top::Ignored);
        assert_eq!(top("wifi"), Top::Unknown);
    }
}
