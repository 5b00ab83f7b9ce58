//! Tests of the configuration.

use std::fmt;

use serde::de::{self, Visitor};

use super::*;

fn surroundings() -> Surroundings {
    Surroundings { home: Some(PathBuf::from("/ada")), ..Surroundings::default() }
}

fn load_text(text: &str, sets: &[&str]) -> Result<Config, Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snowberry.toml");
    std::fs::write(&file, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    load(Some(&file), &sets, &surroundings())
}

/// The problems of a text, with the folder of the file left out.
fn problems(text: &str, sets: &[&str]) -> Vec<String> {
    let Err(Error::Wrong(problems)) = load_text(text, sets) else {
        panic!("{text:?} with {sets:?} is taken");
    };
    let bare = |problem: &Problem| problem.to_string().rsplit_once('/').map(|it| it.1.to_owned());
    let in_file = |problem: &Problem| problem.place.starts_with('/');
    problems
        .0
        .iter()
        .map(|problem| {
            let shown = problem.to_string();
            if in_file(problem) { bare(problem).unwrap_or(shown) } else { shown }
        })
        .collect()
}

const FOLDER: &str = "upstream=[{url=\"file:///x\",unsigned=true}]";

#[test]
fn no_file_at_all_is_a_valid_configuration() {
    let config = load(None, &[], &surroundings()).unwrap();
    assert_eq!(config.listen, None);
    assert_eq!(config.state_dir, Path::new("/ada/.local/state/snowberry"));
    assert_eq!(config.store.path, Some(config.state_dir.join("store")));
    assert_eq!(config.upstreams.len(), 1);
    assert_eq!(config.upstreams[0].url, DEFAULT_UPSTREAM);
    assert_eq!(config.upstreams[0].trusted_public_keys, [DEFAULT_UPSTREAM_KEY]);
    assert_eq!(config.push.tokens_file, config.state_dir.join("tokens"));
    assert_eq!((config.push.plain, config.push.everything), (false, false));
    assert_eq!((config.push.limit, config.push.sign), (None, Sign::Pushed));
    assert_eq!(config.push.nar_size_max, crate::units::ByteSize(64 << 30));
    assert_eq!(config.admin.socket, config.state_dir.join("admin.sock"));
}

#[test]
fn the_state_directory_is_found_where_each_kind_of_user_expects_it() {
    let check = |surroundings: Surroundings, path: &str| {
        assert_eq!(surroundings.state_dir(), Some(PathBuf::from(path)));
    };
    let root = Surroundings { is_root: true, ..surroundings() };
    check(root.clone(), "/var/lib/snowberry");
    check(Surroundings { state_directory: Some("/s/a:/s/b".into()), ..root }, "/s/a");
    let xdg = Surroundings { xdg_state_home: Some("/x".into()), ..surroundings() };
    check(xdg, "/x/snowberry");
    assert_eq!(Surroundings::default().state_dir(), None);
}

#[test]
fn a_named_file_that_is_missing_is_an_error_and_the_default_one_is_not() {
    let missing = Path::new("/nonexistent/snowberry.toml");
    let named = load(Some(missing), &[], &surroundings());
    assert!(matches!(named, Err(Error::Read { .. })), "{named:?}");
    let by_default = Surroundings { default_file: Some(missing.into()), ..surroundings() };
    assert!(load(None, &[], &by_default).is_ok());
    let by_name = Surroundings { config_file: Some(missing.into()), ..surroundings() };
    assert!(load(None, &[], &by_name).is_err());
}

#[test]
fn every_key_is_read() {
    let text = r#"
        listen = ["[::]:80", "127.0.0.1:8500"]
        name = "attic"
        names = ["cache.example"]
        allow = ["203.0.113.0/24", "2001:db8::/32"]
        state-dir = "/state"
        store-dir = "/other/store"
        [store]
        path = "/disk"
        budget = "20 GiB"
        compression-level = 5
        [[upstream]]
        url = "file:///one"
        unsigned = true
        push = true
        [[upstream]]
        url = "https://two.example"
        trusted-public-keys = ["cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="]
        [push]
        tokens-file = "/etc/snowberry/tokens"
        plain = true
        everything = true
        limit = "10 MiB"
        nar-size-max = "2 GiB"
        sign = "verified"
        [admin]
        socket = "/run/attic/admin.sock"
    "#;
    let config = load_text(text, &[]).unwrap();
    let push = Push {
        tokens_file: "/etc/snowberry/tokens".into(),
        plain: true,
        everything: true,
        limit: Some(crate::units::ByteSize(10 << 20)),
        nar_size_max: crate::units::ByteSize(2 << 30),
        sign: Sign::Verified,
    };
    assert_eq!(config.push, push);
    assert_eq!(config.admin.socket, Path::new("/run/attic/admin.sock"));
    assert_eq!(config.listen.unwrap().len(), 2);
    assert_eq!(config.name, "attic");
    assert_eq!(config.names, ["cache.example"]);
    assert_eq!(config.allow.len(), 2);
    assert_eq!(config.state_dir, Path::new("/state"));
    assert_eq!(config.store_dir.as_str(), "/other/store");
    assert_eq!(config.store.path, Some("/disk".into()));
    assert_eq!(config.store.budget, Some(crate::units::ByteSize(20 << 30)));
    assert_eq!(config.store.compression_level, Some(5));
    assert_eq!(config.store.marker, Some("/state/store-begun".into()));
    let urls: Vec<&str> = config.upstreams.iter().map(|it| it.url.as_str()).collect();
    assert_eq!(urls, ["file:///one", "https://two.example"]);
    assert_eq!(config.upstreams.iter().map(|it| it.push).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn set_goes_over_the_file_and_the_last_one_holds() {
    let text = "name = \"one\"\n[store]\nbudget = \"1 GiB\"\ncompression-level = 1\n";
    let sets = ["store.budget=\"2 GiB\"", "name=\"two\"", "name=\"three\"", FOLDER];
    let config = load_text(text, &sets).unwrap();
    assert_eq!(config.name, "three");
    assert_eq!(config.store.budget, Some(crate::units::ByteSize(2 << 30)));
    assert_eq!(config.store.compression_level, Some(1));
    assert_eq!(config.upstreams.len(), 1);
    assert_eq!(config.upstreams[0].url, "file:///x");
    let any_port = load_text("", &[FOLDER, "listen=[\"127.0.0.1:0\"]"]).unwrap();
    assert_eq!(any_port.listen.unwrap()[0].port(), 0);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_right_one() {
    let check = |text: &str, told: &str| assert_eq!(problems(text, &[FOLDER]), [told]);
    check("lisen = []", "snowberry.toml:1: there is no key lisen; did you mean listen?");
    check(
        "\n[store]\nbugdet = \"1 GiB\"",
        "snowberry.toml:3: there is no key store.bugdet; did you mean store.budget?",
    );
    check("budget = 1", "snowberry.toml:1: there is no key budget; did you mean store.budget?");
    check("[upstreams]", "snowberry.toml:1: there is no key upstreams; did you mean upstream?");
    check(
        "[[upstream]]\nurl = \"file:///x\"\ntrusted-keys = []",
        "snowberry.toml:3: there is no key upstream.trusted-keys; \
         did you mean upstream.trusted-public-keys?",
    );
    check("qqq = 1", "snowberry.toml:1: there is no key qqq; snowberry.toml(5) lists them all");
    assert_eq!(
        problems("", &["nmae=\"x\""]),
        ["--set nmae=\"x\": there is no key nmae; did you mean name?"]
    );
}

#[test]
fn all_problems_are_told_at_once_with_their_lines() {
    let text = "nope = 1\nlisten = \"x\"\n[store]\nbudget = \"much\"\npath = 7\n[[upstream]]\n";
    let told = problems(text, &["store.budget=plenty"]);
    let starts = [
        "snowberry.toml:1: there is no key nope",
        "snowberry.toml:2: listen: ",
        "snowberry.toml:4: store.budget: \"much\" is not a size",
        "snowberry.toml:5: store.path: ",
        "snowberry.toml:6: upstream: missing field `url`",
        "--set store.budget=plenty: ",
    ];
    for start in starts {
        assert!(told.iter().any(|problem| problem.starts_with(start)), "{start}\n{told:#?}");
    }
    assert_eq!(told.len(), starts.len(), "{told:#?}");
}

#[test]
fn a_set_without_value_or_into_a_list_says_what_is_wanted() {
    for (set, told) in [("name", "KEY=TOML-VALUE"), ("name=attic", "quotes around strings")] {
        let problems = problems("", &[set]);
        assert!(problems.iter().any(|problem| problem.contains(told)), "{problems:?}");
    }
    let bare = problems("", &["store.budget=1"]);
    assert!(bare[0].ends_with("expected a size such as \"200 GiB\", \"500 MB\" or \"4096\""));
    let list = problems("", &["upstream.url=\"file:///x\""]);
    assert!(list[0].ends_with("upstream is a list of tables: [[upstream]]"), "{list:?}");
}

#[test]
fn what_the_types_allow_and_the_house_does_not_is_told() {
    let text = r#"
        listen = []
        name = "Not a label"
        names = ["cache.example:80"]
        allow = ["10.0.0", "10.0.0.0/33"]
        state-dir = "relative"
        [store]
        budget = "1 KiB"
        compression-level = 20
        [push]
        tokens-file = "tokens"
        limit = "1 B"
        nar-size-max = "0 B"
        [admin]
        socket = "admin.sock"
        [[upstream]]
        url = "https://user:secret@one.example/x"
        [[upstream]]
        url = "gopher://two.example"
        unsigned = true
        ca-file = "/nonexistent/ca.pem"
        [[upstream]]
        url = "file:///x"
        unsigned = true
        [[upstream]]
        url = "file:///x"
        unsigned = true
    "#;
    let told = problems(text, &[]);
    let wanted = [
        "listen: an empty list",
        "name: \"Not a label\"",
        "names: \"cache.example:80\"",
        "allow: \"10.0.0\"",
        "allow: \"10.0.0.0/33\"",
        "state-dir: relative",
        "store.path: relative/store",
        "store.budget: less than",
        "store.compression-level: 20",
        "push.tokens-file: tokens is not absolute",
        "push.limit: less than",
        "push.nar-size-max: ",
        "admin.socket: admin.sock is not absolute",
        "upstream https://one.example/x: no trusted-public-keys",
        "upstream gopher://two.example: url: ",
        "upstream gopher://two.example: ca-file: /nonexistent/ca.pem: ",
        "upstream file:///x: named twice",
    ];
    for (told, wanted) in told.iter().zip(wanted) {
        assert!(told.starts_with(wanted), "{told}\n{wanted}");
    }
    assert_eq!(told.len(), wanted.len(), "{told:#?}");
}

#[test]
fn a_configuration_for_another_machine_may_name_files_that_are_not_here() {
    let set = |ca_file: &str| {
        vec![format!(
            "upstream=[{{url=\"https://one.example\",unsigned=true,ca-file=\"{ca_file}\"}}]"
        )]
    };
    let there = Surroundings { files: Files::Elsewhere, ..surroundings() };
    assert!(load(None, &set("/nonexistent/ca.pem"), &there).is_ok());
    assert!(load(None, &set("/nonexistent/ca.pem"), &surroundings()).is_err());
    assert!(load(None, &set("relative/ca.pem"), &there).is_err(), "that is wrong anywhere");
}

/// Asks a type for the names of its fields as serde reads them, and for nothing else.
struct FieldNames<'a>(&'a mut Vec<&'static str>);

#[derive(Debug)]
struct Asked;

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("only asked for the names")
    }
}
impl std::error::Error for Asked {}
impl de::Error for Asked {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl<'de> de::Deserializer<'de> for FieldNames<'_> {
    type Error = Asked;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Asked> {
        Err(Asked)
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Asked> {
        self.0.extend_from_slice(fields);
        Err(Asked)
    }
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn field_names<'de, T: Deserialize<'de>>() -> Vec<&'static str> {
    let mut names = Vec::new();
    assert!(T::deserialize(FieldNames(&mut names)).is_err());
    names
}

#[test]
fn the_declared_keys_are_those_of_the_types() {
    let declared = |table: &str| -> Vec<&str> {
        KEYS.iter().map(Key::split).filter(|key| key.0 == table).map(|key| key.1).collect()
    };
    let mut top = declared("");
    top.extend([
        "store", "scrub", "upstream", "push", "admin", "mdns", "spool", "tls", "page", "forward",
    ]);
    top.extend(["update", "appliance"]);
    assert_eq!(field_names::<Document>(), top);
    assert_eq!(field_names::<store::Config>(), declared("store"));
    assert_eq!(field_names::<scrub::ScrubTable>(), declared("scrub"));
    assert_eq!(field_names::<upstream::Config>(), declared("upstream"));
    assert_eq!(field_names::<push::PushTable>(), declared("push"));
    assert_eq!(field_names::<push::AdminTable>(), declared("admin"));
    assert_eq!(field_names::<speaking::Config>(), declared("mdns"));
    assert_eq!(field_names::<spool::SpoolTable>(), declared("spool"));
    assert_eq!(field_names::<tls::TlsTable>(), declared("tls"));
    assert_eq!(field_names::<Page>(), declared("page"));
    assert_eq!(field_names::<forward::ForwardTable>(), declared("forward"));
    assert_eq!(field_names::<update::UpdateTable>(), declared("update"));
    assert_eq!(field_names::<update::ApplianceTable>(), declared("appliance"));
}
