//! The `.ls` document while it is written: JSON by hand, in the order of keys that Nix uses.

use std::fmt::Write;

/// The text so far, or nothing once it was given up.
#[derive(Debug)]
pub(super) struct Listing {
    text: Option<String>,
    len_max: usize,
    /// Whether the entry that comes next is its directory's first.
    first: bool,
}

impl Listing {
    pub(super) fn new(len_max: usize) -> Self {
        let mut listing = Self { text: Some(String::new()), len_max, first: true };
        listing.add(r#"{"version":1,"root":"#);
        listing
    }

    pub(super) fn regular(&mut self, size: u64, executable: bool, nar_offset: u64) {
        let executable = if executable { r#""executable":true,"# } else { "" };
        self.add_fmt(format_args!(
            r#"{{"type":"regular","size":{size},{executable}"narOffset":{nar_offset}}}"#
        ));
    }

    pub(super) fn symlink(&mut self, target: &[u8]) {
        self.add(r#"{"type":"symlink","target":"#);
        self.add_string(target);
        self.add("}");
    }

    pub(super) fn open_directory(&mut self) {
        self.add(r#"{"type":"directory","entries":{"#);
        self.first = true;
    }

    pub(super) fn close_directory(&mut self) {
        self.add("}}");
        self.first = false;
    }

    pub(super) fn name(&mut self, name: &[u8]) {
        if !std::mem::take(&mut self.first) {
            self.add(",");
        }
        self.add_string(name);
        self.add(":");
    }

    pub(super) fn finish(mut self) -> Option<String> {
        self.add("}");
        self.text
    }

    /// JSON has no string for what is not UTF-8. Nix's library throws there and writes no listing;
    /// a replaced character would name a file that does not exist.
    fn add_string(&mut self, bytes: &[u8]) {
        let json = std::str::from_utf8(bytes).ok().and_then(|s| serde_json::to_string(s).ok());
        match json {
            Some(json) => self.add(&json),
            None => self.text = None,
        }
    }

    fn add(&mut self, text: &str) {
        self.add_fmt(format_args!("{text}"));
    }

    fn add_fmt(&mut self, text: std::fmt::Arguments<'_>) {
        let Some(listing) = &mut self.text else { return };
        let written = listing.write_fmt(text);
        if written.is_err() || listing.len() > self.len_max {
            self.text = None;
        }
    }
}
