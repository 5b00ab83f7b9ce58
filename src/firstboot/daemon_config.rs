//! The daemon's configuration, from what the settings say of it: what its own parser refuses is
//! left out with that parser's words, so that the daemon always starts. Files are another's business.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::document::{Entry, UPSTREAM};
use super::told::{Place, Told};
use crate::config::{self, Config, Files, Problem, Surroundings};
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// Where the daemon finds the keys of buckets.
pub(super) const CREDENTIALS: &str = "/etc/snowberry/credentials";

/// Keys that the appliance decides, and why.
const REFUSED: [(&str, &str); 2] = [
    ("state-dir", "the appliance keeps its keys on its data partition"),
    ("admin.socket", "the appliance's own commands look for it at its usual place"),
];

/// Keys that name files, which the owner may lay beside the settings.
const FILES: [&str; 2] = ["tls.certificate-file", "tls.key-file"];

/// The same of an upstream.
const UPSTREAM_FILES: [&str; 4] = ["ca-file", "credentials-file", "netrc-file", "headers-file"];

/// Upstreams that are looked at: more is a mistake, and each is tried with all others.
const UPSTREAMS_MAX: usize = 32;

/// A file that the settings name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Brought {
    /// Where the daemon will find it.
    pub(super) path: String,
    /// Where it is now.
    pub(super) source: PathBuf,
}

/// Finds a file that the settings name; the error is a sentence.
pub(super) trait Bring {
    fn bring(&mut self, named: &str) -> Result<Brought, String>;
}

/// The configuration.
#[derive(Debug, PartialEq)]
pub(super) struct DaemonConfig {
    /// As a file.
    pub(super) text: String,
    /// Profiles that buckets are asked by.
    pub(super) profiles: Vec<String>,
}

/// What is said beside the entries.
pub(super) struct Given<'a> {
    pub(super) hostname: &'a str,
    /// Whether there are keys at [`CREDENTIALS`].
    pub(super) has_credentials: bool,
}

/// Makes it. `under` is what the image says, `over` what its owner says.
pub(super) fn make(
    under: &[&Entry],
    over: &[&Entry],
    given: &Given<'_>,
    files: &mut impl Bring,
    told: &mut Told,
) -> DaemonConfig {
    let is_said = |entry: &Entry| over.iter().any(|own| own.path == entry.path);
    let under = under.iter().filter(|entry| !is_said(entry));
    let mut pieces = Vec::new();
    let mut maker = Maker { files, told, brought: Vec::new() };
    for entry in under.chain(over) {
        pieces.extend(maker.piece(entry, given));
    }
    maker.judge_each(&mut pieces);
    maker.judge_whole(&mut pieces);
    maker.try_upstreams(&mut pieces);
    let mut table = assemble(&pieces);
    if !table.contains_key("name") {
        table.insert("name".to_owned(), Value::String(given.hostname.to_owned()));
    }
    let text = toml::to_string(&table).unwrap_or_default();
    let profiles = parse(&text).map(|config| profiles(&config)).unwrap_or_default();
    let head = "# Written by `snowberry first-boot` from the settings on the boot partition: change \
                them there.\n";
    DaemonConfig { text: format!("{head}{text}"), profiles }
}

/// The profile of each bucket, as the URL says it.
fn profiles(config: &Config) -> Vec<String> {
    let of_url = |url: &str| {
        let url = url::Url::parse(url).ok()?;
        let (_, profile) = url.query_pairs().find(|(name, _)| name == "profile")?;
        // It becomes the head of a section.
        let is_sound = !profile.contains(|c: char| c.is_control() || "[]".contains(c));
        is_sound.then(|| profile.into_owned())
    };
    let mut profiles: Vec<String> =
        config.upstreams.iter().filter_map(|upstream| of_url(&upstream.url)).collect();
    profiles.sort();
    profiles.dedup();
    profiles
}

/// One key, or one upstream, with what is known about it.
#[derive(Debug, Clone)]
struct Piece {
    path: String,
    value: Value,
    place: Place,
}

struct Maker<'a, B> {
    files: &'a mut B,
    told: &'a mut Told,
    brought: Vec<Brought>,
}

impl<B: Bring> Maker<'_, B> {
    fn piece(&mut self, entry: &Entry, given: &Given<'_>) -> Option<Piece> {
        let Entry { path, value, place } = entry.clone();
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == path) {
            self.told.tell(place, &format!("{path} is not taken: {why}"));
            return None;
        }
        let mut piece = Piece { path, value, place };
        let found = if FILES.contains(&piece.path.as_str()) {
            self.bring(&mut piece.value)
        } else if let (UPSTREAM, Value::Table(upstream)) = (piece.path.as_str(), &mut piece.value) {
            self.upstream(upstream, place, given)
        } else {
            Ok(())
        };
        match found {
            Ok(()) => Some(piece),
            Err(what) => {
                self.told.tell(place, &format!("{} is not taken: {what}", piece.path));
                None
            }
        }
    }

    fn upstream(
        &mut self,
        upstream: &mut Table,
        place: Place,
        given: &Given<'_>,
    ) -> Result<(), String> {
        for name in UPSTREAM_FILES {
            if let Some(value) = upstream.get_mut(name) {
                self.bring(value).map_err(|what| format!("{name}: {what}"))?;
            }
        }
        let is_s3 = upstream.get("url").and_then(Value::as_str);
        let is_s3 = is_s3.is_some_and(|url| url.starts_with("s3://"));
        if !is_s3 || upstream.contains_key("credentials-file") {
            return Ok(());
        }
        if given.has_credentials {
            upstream.insert("credentials-file".to_owned(), Value::String(CREDENTIALS.to_owned()));
        } else if upstream.get("push").and_then(Value::as_bool) == Some(true) {
            self.told.tell(place, "a bucket with push = true needs [bucket-credentials]");
        }
        Ok(())
    }

    fn bring(&mut self, value: &mut Value) -> Result<(), String> {
        // What is no text the parser tells of.
        let Value::String(named) = value else { return Ok(()) };
        let brought = self.files.bring(named)?;
        named.clone_from(&brought.path);
        self.brought.push(brought);
        Ok(())
    }

    /// Keys that are not known and values of the wrong kind, each on its own.
    fn judge_each(&mut self, pieces: &mut Vec<Piece>) {
        pieces.retain_mut(|piece| {
            if let (UPSTREAM, Value::Table(upstream)) = (piece.path.as_str(), &mut piece.value) {
                self.drop_unknown(upstream, piece.place);
            }
            let problems = problems_of(std::slice::from_ref(piece));
            // What has no place is about what it means, and is judged with the others.
            let own: Vec<&Problem> = problems.iter().filter(|it| !it.place.is_empty()).collect();
            for problem in &own {
                self.told.tell(piece.place, &problem.message);
            }
            own.is_empty()
        });
        let mut upstreams = 0;
        pieces.retain(|piece| {
            upstreams += usize::from(piece.path == UPSTREAM);
            piece.path != UPSTREAM || upstreams <= UPSTREAMS_MAX
        });
        if upstreams > UPSTREAMS_MAX {
            self.told.say(&format!("only the first {UPSTREAMS_MAX} upstreams are taken"));
        }
    }

    /// A key of an upstream that nobody knows had no meaning, so the others keep theirs.
    fn drop_unknown(&mut self, upstream: &mut Table, place: Place) {
        let names: Vec<String> = upstream.keys().cloned().collect();
        for name in names {
            let path = format!("{UPSTREAM}.{name}");
            if !config::KEYS.iter().any(|key| key.path == path) {
                upstream.remove(&name);
                self.told.tell(place, &super::keys::unknown(UPSTREAM, &name));
            }
        }
    }

    /// What is wrong once all is together: whoever's absence ends a complaint is left out with it.
    fn judge_whole(&mut self, pieces: &mut Vec<Piece>) {
        loop {
            let problems = problems_of(pieces);
            if problems.is_empty() {
                return;
            }
            let Some((guilty, ended)) = blame(pieces, &problems) else {
                for problem in problems {
                    self.told.say(&format!("the configuration is not taken: {}", problem.message));
                }
                pieces.clear();
                return;
            };
            for message in ended {
                let place = pieces.get(guilty).map(|piece| piece.place);
                match place {
                    Some(place) => self.told.tell(place, &message),
                    None => self.told.say(&message),
                }
            }
            pieces.remove(guilty);
        }
    }

    /// Opens each upstream as the daemon will, which asks nobody.
    fn try_upstreams(&mut self, pieces: &mut Vec<Piece>) {
        let metrics = Metrics::new();
        pieces.retain(|piece| {
            if piece.path != UPSTREAM {
                return true;
            }
            let Ok(config) = parse(&text_of(std::slice::from_ref(piece))) else { return true };
            let opened = config.upstreams.iter().try_for_each(|upstream| {
                let mut upstream = upstream.clone();
                for path in [
                    &mut upstream.ca_file,
                    &mut upstream.credentials_file,
                    &mut upstream.netrc_file,
                    &mut upstream.headers_file,
                ] {
                    self.as_it_is_now(path);
                }
                Upstream::new(&upstream, &config.store_dir, &metrics).map(drop)
            });
            if let Err(error) = &opened {
                let mut text = error.to_string();
                let mut cause = error.source();
                while let Some(source) = cause {
                    text = format!("{text}: {source}");
                    cause = source.source();
                }
                self.told.tell(piece.place, &text);
            }
            opened.is_ok()
        });
    }

    /// Where the file is now; none for what is not written yet.
    fn as_it_is_now(&self, path: &mut Option<PathBuf>) {
        let of = |path: &Path| {
            let found = self.brought.iter().find(|it| Path::new(&it.path) == path);
            found.map(|it| it.source.clone())
        };
        *path = path.as_deref().and_then(of);
    }
}

/// The piece without which some of `problems` are gone, and the messages of those. Later pieces are
/// blamed before earlier ones: of two that cannot be together the first stays.
fn blame(pieces: &[Piece], problems: &[Problem]) -> Option<(usize, Vec<String>)> {
    (0..pieces.len()).rev().find_map(|index| {
        let mut without = pieces.to_vec();
        without.remove(index);
        let left = problems_of(&without);
        let ended: Vec<String> = problems
            .iter()
            .filter(|problem| !left.iter().any(|it| it.message == problem.message))
            .map(|problem| problem.message.clone())
            .collect();
        (!ended.is_empty()).then_some((index, ended))
    })
}

fn problems_of(pieces: &[Piece]) -> Vec<Problem> {
    match parse(&text_of(pieces)) {
        Ok(_) => Vec::new(),
        Err(config::Error::Wrong(problems)) => problems.0,
        Err(error @ config::Error::Read { .. }) => {
            vec![Problem { place: String::new(), message: error.to_string() }]
        }
    }
}

fn text_of(pieces: &[Piece]) -> String {
    toml::to_string(&assemble(pieces)).unwrap_or_default()
}

/// As on a machine of its own, where the files are not yet.
fn parse(text: &str) -> Result<Config, config::Error> {
    let surroundings = Surroundings {
        is_root: true,
        state_directory: Some("/var/lib/snowberry".to_owned()),
        home: Some(PathBuf::from("/")),
        files: Files::Elsewhere,
        ..Surroundings::default()
    };
    config::parse(text, &surroundings)
}

fn assemble(pieces: &[Piece]) -> Table {
    let mut table = Table::new();
    for Piece { path, value, .. } in pieces {
        let is_upstream = path == UPSTREAM && value.is_table();
        match path.split_once('.') {
            None if is_upstream => {
                let list = table.entry(path.clone()).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(value.clone());
                }
            }
            None => {
                table.insert(path.clone(), value.clone());
            }
            Some((outer, inner)) => {
                let outer =
                    table.entry(outer.to_owned()).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(outer) = outer {
                    outer.insert(inner.to_owned(), value.clone());
                }
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::document::Document;
    use super::super::text::Text;
    use super::*;

    /// Every file is there but `gone.pem`.
    struct Here;

    impl Bring for Here {
        fn bring(&mut self, named: &str) -> Result<Brought, String> {
            if named == "gone.pem" {
                return Err("gone.pem is not there".to_owned());
            }
            let path = format!("/etc/snowberry/files/{named}");
            Ok(Brought { path, source: PathBuf::from("/dev/null") })
        }
    }

    fn made(text: &str, has_credentials: bool) -> (Table, Vec<String>, DaemonConfig) {
        let mut told = Told::default();
        let text = Text::read("s.toml", text.as_bytes(), &mut told).unwrap();
        let document = Document::read("s.toml", &text, &mut told);
        let given = Given { hostname: "attic", has_credentials };
        let entries: Vec<&Entry> = document.entries.iter().collect();
        let made = make(&[], &entries, &given, &mut Here, &mut told);
        (toml::from_str(&made.text).unwrap(), told.sentences(), made)
    }

    const KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

    fn check(text: &str, kept: &str, told: &[&str]) {
        let text = text.replace("KEY", KEY);
        let kept: Table = toml::from_str(&kept.replace("KEY", KEY)).unwrap();
        let (found, said, _) = made(&text, false);
        assert_eq!(found, kept, "{text}: {said:?}");
        assert_eq!(said.len(), told.len(), "{text}: {said:?}");
        for (said, told) in said.iter().zip(told) {
            assert!(said.contains(told), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_right_passes_through_under_the_name_of_the_host() {
        check("", "name = 'attic'", &[]);
        check("name = 'x'", "name = 'x'", &[]);
        let whole = "names = ['a.b']\n[store]\nbudget = '20 GiB'\n[[upstream]]\nurl = \
                     'https://a.example'\ntrusted-public-keys = ['KEY']\n[[upstream]]\nurl = \
                     'https://b.example'\nunsigned = true\n";
        check(whole, &format!("name = 'attic'\n{whole}"), &[]);
        check("upstream = []", "name = 'attic'\nupstream = []", &[]);
    }

    #[test]
    fn a_wrong_key_costs_no_other_key() {
        let right = "[store]\nbudget = '20 GiB'\n";
        let kept = format!("name = 'attic'\n{right}");
        check(
            &format!("{right}pth = '/x'\n"),
            &kept,
            &["s.toml:3: there is no key store.pth; did"],
        );
        check(
            &format!("listen = ['x']\nname = 'A B'\n{right}compression-level = 99\n"),
            &kept,
            &["s.toml:1: listen", "level", "s.toml:2: name"],
        );
        check("[store]\nbudget = 7\npath = '/x'", "name='attic'\n[store]\npath='/x'", &["budget"]);
        check("state-dir = '/x'", "name = 'attic'", &["s.toml:1: state-dir is not taken"]);
        check("store = 7", "name = 'attic'", &["store is a table"]);
    }

    #[test]
    fn an_upstream_that_cannot_be_used_costs_no_other_one() {
        let right = "[[upstream]]\nurl = 'https://a.example'\ntrusted-public-keys = ['KEY']\n";
        let kept = format!("name = 'attic'\n{right}");
        for (wrong, why) in [
            ("url = 'https://b.example'\n", "no trusted-public-keys"),
            ("url = 'b.example'\nunsigned = true\n", "neither https"),
            ("url = 'https://a.example'\nunsigned = true\n", "named twice"),
            ("url = 'https://b.example'\nunsigned = 'yes'\n", "expected a boolean"),
            ("url = 'https://b.example'\ntrusted-public-keys = ['KEX']\n", "trusted-public-keys"),
            ("url = 'https://b.example'\nunsigned = true\npush = true\n", "push = true is for"),
            ("url = 'https://b.example'\nunsigned = true\nca-file = 'gone.pem'\n", "gone.pem"),
            ("url = 'https://b.example'\nunsigned = true\nca-file = 'no.pem'\n", "ca-file"),
            ("url = 's3://'\nunsigned = true\n", "upstream s3://"),
            ("unsigned = true\n", "url"),
        ] {
            check(&format!("{right}[[upstream]]\n{wrong}"), &kept, &[why]);
        }
        let typo = format!("{right}prioritty = 3\n");
        check(&typo, &kept, &["there is no key upstream.prioritty"]);
    }

    #[test]
    fn keys_that_belong_together_stay_together_or_go_together() {
        let both = "[tls]\ncertificate-file = 'c.pem'\nkey-file = 'k.pem'\n";
        let kept = "name = 'attic'\n[tls]\ncertificate-file = '/etc/snowberry/files/c.pem'\n\
                    key-file = '/etc/snowberry/files/k.pem'\n";
        check(&format!("{both}listen = ['x']"), kept, &["listen"]);
        check(
            "[tls]\ncertificate-file = 'gone.pem'\nkey-file = 'k.pem'\n",
            "name = 'attic'",
            &["gone.pem", "tls"],
        );
    }

    #[test]
    fn buckets_get_the_keys_that_were_given() {
        let text = "[[upstream]]\nurl = 's3://b?endpoint=m.lan&profile=nix%20b'\nunsigned = true\n\
                    push = true\n";
        let (table, told, made) = made(text, true);
        assert_eq!(told, [""; 0]);
        assert_eq!(made.profiles, ["nix b"]);
        let first = table["upstream"].as_array().unwrap()[0].as_table().unwrap();
        assert_eq!(first["credentials-file"].as_str(), Some(CREDENTIALS));
        let kept = format!("name = 'attic'\n{text}");
        check(text, &kept, &["needs [bucket-credentials]"]);
    }
}
