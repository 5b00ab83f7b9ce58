//! `snowberry doctor` on machines that are well and on machines that are not.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test stops at what it did not expect"
)]

#[path = "../world/mod.rs"]
mod world;

mod house;
mod nix;

use serde_json::Value;

/// The lines of `--json`.
struct Told(Vec<Value>);

impl Told {
    #[track_caller]
    fn parse(json: &str) -> Self {
        Self(serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}")))
    }

    fn line(&self, what: &str) -> &Value {
        let line = self.0.iter().find(|line| line["what"] == what);
        line.unwrap_or_else(|| panic!("no line {what}: {:#?}", self.0))
    }

    /// Of this line, how it is or what to do.
    #[track_caller]
    fn expect(&self, what: &str, ok: bool, part: &str) {
        let line = self.line(what);
        let text = line["told"].as_str().unwrap();
        assert!(line["ok"] == ok && text.contains(part), "{what}: wanted {ok} {part:?}: {line}");
    }

    fn wrong(&self) -> Vec<&str> {
        let wrong = self.0.iter().filter(|line| line["ok"] == false);
        wrong.map(|line| line["what"].as_str().unwrap()).collect()
    }
}
