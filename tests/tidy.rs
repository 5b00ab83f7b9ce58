//! The house rules that a compiler cannot see, held by reading the sources. Each rule is one test;
//! a failure names file, line and what to do. A wall that moves is moved here too.

#![allow(
    clippy::unwrap_used,
    clippy::string_slice,
    clippy::indexing_slicing,
    reason = "a test: where it panics, it fails"
)]

mod tidied;

use std::fmt::Write as _;
use std::fs;

use snowberry::config::KEYS;
use tidied::{Source, files, house, name_of, sources, top};

/// The hard bound of a file's lines; what is longer is two ideas.
const LINES_MAX: usize = 600;

/// What each floor, and each room beside the house, may name of the crate besides itself.
const MAY_USE: [(&str, &[&str]); 25] = [
    ("nix", &[]),
    ("store", &["nix", "units", "metrics", "allocator"]),
    ("upstream", &["nix", "units", "metrics", "ciphers", "limit"]),
    ("cache", &["nix", "store", "upstream", "units", "metrics", "limit", "allocator", "pressure"]),
    ("push", &["nix", "store", "upstream", "cache", "durable", "units", "metrics", "limit"]),
    (
        "http",
        &["nix", "cache", "push", "durable", "units", "metrics", "ciphers", "pinned", "appliance"],
    ),
    ("allocator", &[]),
    ("ciphers", &[]),
    ("durable", &[]),
    ("pinned", &["ciphers"]),
    ("units", &[]),
    ("limit", &[]),
    ("pressure", &[]),
    ("metrics", &[]),
    ("systemd", &[]),
    ("mdns", &["nix", "units"]),
    ("spool", &["nix", "units", "durable"]),
    ("forward", &["nix", "units", "systemd", "mdns", "spool", "pinned"]),
    ("appliance", &[]),
    // A server of updates is asked as an upstream is: TLS, redirects and going on are there.
    ("update", &["nix", "upstream", "appliance", "durable", "units", "metrics"]),
    (
        "config",
        &[
            "nix", "store", "upstream", "push", "http", "mdns", "spool", "forward", "update",
            "units",
        ],
    ),
    ("backup", &[]),
    ("firstboot", &["appliance", "config", "upstream", "metrics", "durable"]),
    (
        "daemon",
        &[
            "nix",
            "store",
            "upstream",
            "cache",
            "push",
            "http",
            "durable",
            "units",
            "metrics",
            "config",
            "systemd",
            "mdns",
            "pinned",
            "appliance",
            "pressure",
        ],
    ),
    (
        "cli",
        &[
            "nix",
            "store",
            "upstream",
            "push",
            "http",
            "units",
            "metrics",
            "config",
            "systemd",
            "mdns",
            "spool",
            "pinned",
            "forward",
            "appliance",
            "update",
            "firstboot",
            "backup",
            "durable",
            "daemon",
        ],
    ),
];

/// Gathers what is wrong, so that one run tells all of it.
#[derive(Default)]
struct Verdict(String);

impl Verdict {
    fn tell(&mut self, place: &str, line: usize, what: &str) {
        writeln!(self.0, "{place}:{line}: {what}").unwrap();
    }

    #[track_caller]
    fn expect_clean(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

fn is_word(text: &str, at: usize, len: usize) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !text[..at].ends_with(part) && !text[at + len..].starts_with(part)
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| is_word(text, at, word.len()))
}

#[test]
fn each_file_opens_with_what_it_is_for() {
    let mut verdict = Verdict::default();
    for source in sources() {
        let first = source.text.lines().next().unwrap_or_default();
        if !first.starts_with("//! ") || first.len() < "//! four words at least".len() {
            verdict.tell(&source.name, 1, "must open with a `//!` sentence");
        }
    }
    verdict.expect_clean();
}

#[test]
fn no_file_is_too_long() {
    let mut verdict = Verdict::default();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            let what = format!("{lines} lines, at most {LINES_MAX}: cut it where a second idea is");
            verdict.tell(&source.name, lines, &what);
        }
    }
    verdict.expect_clean();
}

#[test]
fn sources_are_ascii_without_tabs_and_trailing_space() {
    let mut verdict = Verdict::default();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(odd) = line.chars().find(|c| !c.is_ascii() || *c == '\t') {
                verdict.tell(&source.name, index + 1, &format!("{odd:?} is not plain ASCII"));
            }
            if line.ends_with(' ') {
                verdict.tell(&source.name, index + 1, "space at the end of the line");
            }
        }
    }
    verdict.expect_clean();
}

#[test]
fn no_path_of_a_machine_is_kept() {
    // Put together here, or this file would be found by its own rule.
    let of_machines = ["/root/", concat!("/wo", "rk/"), "/Users/"];
    let own_rule = "let of_machines";
    let mut verdict = Verdict::default();
    let endings = [".rs", ".md", ".toml", ".sh", ".service", ".nix", "run", "Makefile"];
    for path in files(&["."], &endings) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            let own = top().to_string_lossy();
            let found = of_machines.iter().any(|start| line.contains(start));
            if (found && !line.contains(own_rule)) || line.contains(own.as_ref()) {
                verdict.tell(&name_of(&path), index + 1, "a path of one machine");
            }
        }
    }
    verdict.expect_clean();
}

/// The modules of the crate that a line of code names, by `crate::` or by enough `super::`.
fn named_modules(line: &str, depth: usize) -> Vec<String> {
    let mut named = Vec::new();
    let mut take = |rest: &str| match rest.strip_prefix('{') {
        Some(group) => {
            let mut nesting = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '}' if nesting == 0 => break,
                    '{' => nesting += 1,
                    '}' => nesting -= 1,
                    ',' if nesting == 0 => named.push(std::mem::take(&mut item)),
                    _ if nesting == 0 => item.push(c),
                    _ => {}
                }
            }
            named.push(item);
        }
        None => named.push(rest.to_owned()),
    };
    for (at, _) in line.match_indices("crate::") {
        if is_word(line, at, "crate".len()) {
            take(&line[at + "crate::".len()..]);
        }
    }
    let up = "super::".repeat(depth);
    for (at, _) in line.match_indices(&up) {
        if !line[..at].ends_with("super::") {
            take(&line[at + up.len()..]);
        }
    }
    let first = |path: String| -> String {
        path.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    named.into_iter().map(first).filter(|name| !name.is_empty()).collect()
}

#[test]
fn modules_are_found_in_every_way_of_naming_them() {
    let check = |line: &str, depth: usize, wanted: &[&str]| {
        assert_eq!(named_modules(line, depth), wanted, "{line}");
    };
    check("use crate::nix::NarHash;", 2, &["nix"]);
    check("use crate::{store::{self, Store}, upstream, nix};", 1, &["store", "upstream", "nix"]);
    check("    crate::store::lookup(crate::units::ByteSize(1))", 1, &["store", "units"]);
    check("use super::super::store;", 2, &["store"]);
    check("use super::store;", 1, &["store"]);
    check("use super::store;", 2, &[]);
    check("pub(crate) fn in_crate::x()", 1, &[]);
}

#[test]
fn a_floor_uses_only_floors_below_it() {
    let mut verdict = Verdict::default();
    for source in house() {
        let Some(floor) = source.floor() else { continue };
        if ["lib", "main"].contains(&floor) {
            continue;
        }
        let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| *name == floor) else {
            verdict.tell(
                &source.name,
                1,
                "a module without a floor: say in MAY_USE what it may use",
            );
            continue;
        };
        // A `use` may go over several lines: they are put together before they are read.
        let mut statement = String::new();
        for (number, line) in source.code() {
            statement.push_str(line.trim());
            if statement.starts_with("use ") && !statement.ends_with(';') {
                continue;
            }
            for module in named_modules(&statement, source.depth()) {
                let is_module = MAY_USE.iter().any(|(name, _)| *name == module);
                if is_module && module != floor && !may_use.contains(&module.as_str()) {
                    let what = format!("{floor} must not use {module}, only {may_use:?}");
                    verdict.tell(&source.name, number, &what);
                }
            }
            statement.clear();
        }
    }
    verdict.expect_clean();
}

/// Each word may stand in the code of these places only (a prefix of the file's name).
const WORDS: [(&str, &[&str], &str); 7] = [
    ("redb", &["src/store/"], "only the store knows redb"),
    ("mdns_sd", &["src/mdns/"], "only mdns names the speaker of its protocol"),
    ("anyhow", &["src/main.rs", "src/daemon", "src/cli"], "a floor has an error type of its own"),
    ("unsafe", &["src/allocator.rs"], "safe Rust but for two calls of glibc"),
    ("println", &["src/cli/out.rs"], "only cli/out.rs prints"),
    ("eprintln", &["src/cli/out.rs"], "only cli/out.rs prints"),
    ("prometheus_client", &["src/metrics.rs"], "figures are declared in metrics.rs"),
];

#[test]
fn words_stay_where_they_belong() {
    let mut verdict = Verdict::default();
    for source in house() {
        for (number, line) in source.code() {
            for (word, places, why) in WORDS {
                let at_home = places.iter().any(|place| source.name.starts_with(place));
                if !at_home && has_word(line, word) {
                    verdict.tell(&source.name, number, &format!("`{word}`: {why}"));
                }
            }
        }
    }
    verdict.expect_clean();
}

/// The rule: our own statuses are made in `http/reply.rs` and nowhere else, so no other file of
/// `http` names `StatusCode` or sets a status. `upstream` and `cli` read the statuses of others:
/// they may name `StatusCode` to compare, and may make no response. `forward` reads the statuses of the
/// cache, and makes its own few in `forward/reply.rs`.
#[test]
fn only_reply_makes_a_status() {
    let mut verdict = Verdict::default();
    let makers = ["src/http/reply.rs", "src/forward/reply.rs"];
    for source in house().filter(|source| !makers.contains(&source.name.as_str())) {
        let reads_others =
            ["upstream", "cli", "forward"].contains(&source.floor().unwrap_or_default());
        for (number, line) in source.code() {
            let names_it = !reads_others && has_word(line, "StatusCode");
            let sets_it = line.contains("status_mut(")
                || line.contains(".status(StatusCode")
                || line.contains("Response::builder(");
            if names_it || sets_it {
                verdict.tell(&source.name, number, "a status is made in a reply.rs only");
            }
        }
    }
    verdict.expect_clean();
}

#[test]
fn what_must_be_pure_has_neither_clock_nor_sockets() {
    let mut verdict = Verdict::default();
    for source in house() {
        let is_nix = source.floor() == Some("nix");
        let is_pure = [
            "src/http/route.rs",
            "src/http/civil.rs",
            "src/http/history/mod.rs",
            "src/http/troubles.rs",
            "src/http/page/plot.rs",
            "src/http/page/plots.rs",
            "src/upstream/health.rs",
            "src/push/order/mod.rs",
            "src/push/state.rs",
            "src/forward/reach.rs",
            "src/spool/derivation.rs",
            "src/spool/entry.rs",
            "src/spool/exclude.rs",
            "src/spool/pace.rs",
            "src/spool/pass.rs",
            "src/appliance/boot.rs",
            "src/cache/scrub/pace.rs",
            "src/update/manifest/mod.rs",
            "src/update/trial.rs",
            "src/update/version.rs",
        ]
        .contains(&&*source.name);
        if !is_nix && !is_pure {
            continue;
        }
        for (number, line) in source.code() {
            for word in ["tokio", "std::fs", "std::net", "hyper::client", "getrandom"] {
                if line.contains(word) {
                    verdict.tell(&source.name, number, &format!("{word} in a pure file"));
                }
            }
            if line.contains("Instant::now") || line.contains("SystemTime::now") {
                verdict.tell(&source.name, number, "time is an argument here");
            }
        }
    }
    verdict.expect_clean();
}

/// Types whose constants are bounds or measures.
const MEASURES: [&str; 11] =
    ["u8", "u16", "u32", "u64", "u128", "usize", "i32", "i64", "f64", "Duration", "ByteSize"];

#[test]
fn each_number_with_a_name_has_its_reason() {
    let mut verdict = Verdict::default();
    for source in house() {
        let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
        for (number, line) in source.code() {
            let line = line.trim();
            let Some(at) = line.find("const ").filter(|at| is_word(line, *at, "const".len()))
            else {
                continue;
            };
            let begins = line[..at].is_empty() || line[..at].starts_with("pub");
            let kind = line.split_once(": ").map(|(_, rest)| rest).unwrap_or_default();
            let kind = kind.split([' ', ';']).next().unwrap_or_default();
            let kind = kind.rsplit("::").next().unwrap_or_default();
            if !begins || !MEASURES.contains(&kind) {
                continue;
            }
            let above = lines[..number - 1].iter().rev().find(|line| !line.starts_with("#["));
            if !above.is_some_and(|above| above.starts_with("//")) {
                verdict.tell(&source.name, number, "a constant without its reason in a comment");
            }
        }
    }
    verdict.expect_clean();
}

/// The text of each logging macro, up to its closing parenthesis, with its line.
fn log_events(source: &Source) -> Vec<(usize, String)> {
    let code: Vec<(usize, &str)> = source.code().collect();
    let mut events = Vec::new();
    for (index, (number, line)) in code.iter().enumerate() {
        let opens = ["error!(", "warn!(", "info!(", "debug!(", "trace!("];
        let in_name = |at: usize| line[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
        let at = opens.iter().find_map(|open| line.find(open).filter(|at| !in_name(*at)));
        let Some(at) = at else { continue };
        let mut event = line[at..].to_owned();
        for (_, next) in &code[index + 1..] {
            if event.matches('(').count() <= event.matches(')').count() {
                break;
            }
            event.push_str(next.trim());
        }
        events.push((*number, event));
    }
    events
}

#[test]
fn log_messages_are_constant_and_lower_case() {
    let mut verdict = Verdict::default();
    for source in house() {
        for (number, event) in log_events(&source) {
            let message = event.rsplit('"').nth(1).unwrap_or_default();
            if message.is_empty() {
                verdict.tell(&source.name, number, "a log event without a message");
            } else if message.contains('{') {
                verdict.tell(&source.name, number, "what varies goes into fields, not the message");
            } else if message.starts_with(|c: char| c.is_ascii_uppercase()) {
                verdict.tell(&source.name, number, "a log message begins in lower case");
            }
        }
    }
    verdict.expect_clean();
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_skipped() {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["#[ign", "ore"].concat()];
    let mut verdict = Verdict::default();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(mark.as_str())) {
                verdict.tell(&source.name, index + 1, &format!("{mark}: do it or leave it out"));
            }
        }
    }
    verdict.expect_clean();
}

#[test]
fn every_configuration_key_is_explained() {
    let mut verdict = Verdict::default();
    for key in &KEYS {
        let sentence = key.help.len() > 20 && key.help.ends_with('.');
        if !sentence || key.kind.is_empty() || key.default.is_empty() {
            verdict.tell("src/config/keys.rs", 1, &format!("{} is not explained", key.path));
        }
    }
    verdict.expect_clean();
}

/// The names that `metrics.rs` registers, without prefix, unit and `_total`.
fn registered_metrics() -> Vec<String> {
    let text = fs::read_to_string(top().join("src/metrics.rs")).unwrap();
    let names: Vec<String> = text
        .split("to.register")
        .skip(1)
        .filter_map(|call| call.split('"').nth(1).map(str::to_owned))
        .collect();
    assert!(names.len() >= 10, "the registered metrics were not found: {names:?}");
    names
}

#[test]
fn every_metric_is_documented_and_every_documented_one_exists() {
    let docs = fs::read_to_string(top().join("docs/metrics.md")).unwrap();
    let documented: Vec<&str> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `snowberry_")?.split('`').next())
        .collect();
    let is = |documented: &str, name: &str| {
        documented.strip_prefix(name).is_some_and(|rest| {
            let rest = rest.split('{').next().unwrap_or_default();
            ["", "_bytes", "_seconds", "_celsius", "_total", "_bytes_total"].contains(&rest)
        })
    };
    let registered = registered_metrics();
    let mut verdict = Verdict::default();
    for name in &registered {
        if !documented.iter().any(|documented| is(documented, name)) {
            verdict.tell("docs/metrics.md", 1, &format!("snowberry_{name} has no row"));
        }
    }
    for documented in documented {
        if !registered.iter().any(|name| is(documented, name)) {
            verdict.tell("docs/metrics.md", 1, &format!("snowberry_{documented} does not exist"));
        }
    }
    verdict.expect_clean();
}

#[test]
fn what_the_architecture_names_exists() {
    let docs = fs::read_to_string(top().join("docs/architecture.md")).unwrap();
    let mut verdict = Verdict::default();
    for (index, line) in docs.lines().enumerate() {
        for name in line.split('`').skip(1).step_by(2) {
            let (file, test) = name.split_once("::").unwrap_or((name, ""));
            let is_file =
                ["src/", "tests/", "docs/", "benches/"].iter().any(|it| file.starts_with(it));
            if !is_file || file.contains(['*', '<', ' ']) {
                continue;
            }
            let path = top().join(file);
            let text = fs::read_to_string(&path).unwrap_or_default();
            if !path.exists() {
                verdict.tell("docs/architecture.md", index + 1, &format!("{file} does not exist"));
            } else if !test.is_empty() && !text.contains(&format!("fn {test}(")) {
                verdict.tell("docs/architecture.md", index + 1, &format!("{name} does not exist"));
            }
        }
    }
    verdict.expect_clean();
}

#[test]
fn no_crate_is_locked_that_the_house_refuses() {
    let lock = fs::read_to_string(top().join("Cargo.lock")).unwrap();
    let deny = fs::read_to_string(top().join("deny.toml")).unwrap();
    for name in ["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys"] {
        assert!(!lock.contains(&format!("name = \"{name}\"\n")), "{name} is in Cargo.lock");
        assert!(deny.contains(&format!("\"{name}\"")), "{name} is not banned in deny.toml");
    }
}

/// `cross` looks for `Cross.toml` alone and falls back to an image of its own in silence.
#[test]
fn the_file_of_cross_is_named_to_it_where_people_read() {
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    assert!(top().join("cross.toml").exists());
    assert!(readme.contains("CROSS_CONFIG=cross.toml cross build"), "README.md does not say so");
}
