//! The sources as the house rules read them: files with their floors, lines without comments.

use std::fs;
use std::path::{Path, PathBuf};

/// A Rust file of the project.
pub(crate) struct Source {
    /// From the top folder, with `/`.
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Source {
    /// Its lines with their numbers, without comments; those of its tests are left out.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.name.ends_with("/tests.rs") || self.name.contains("/tests/");
        let mut lines = self.text.lines().enumerate().peekable();
        let mut in_tests = is_test;
        std::iter::from_fn(move || {
            let (index, line) = lines.next()?;
            let next_opens_tests =
                lines.peek().is_some_and(|(_, next)| next.trim_start().starts_with("mod "));
            in_tests |= line.starts_with("#[cfg(test)]") && next_opens_tests;
            Some((index + 1, if in_tests { "" } else { without_comment(line) }))
        })
        .filter(|(_, line)| !line.trim().is_empty())
    }

    /// `src/http/nar.rs` is of `http`, `src/config.rs` of `config`.
    pub(crate) fn floor(&self) -> Option<&str> {
        let inner = self.name.strip_prefix("src/")?;
        let floor = inner.split('/').next().unwrap_or(inner);
        Some(floor.strip_suffix(".rs").unwrap_or(floor))
    }

    /// How many `super` lead from its top to the crate's.
    pub(crate) fn depth(&self) -> usize {
        let inner = self.name.trim_start_matches("src/").trim_end_matches(".rs");
        inner.trim_end_matches("/mod").split('/').count()
    }
}

/// What stands before `//`, unless that is in a URL or a string of its own.
fn without_comment(line: &str) -> &str {
    let mut from = 0;
    while let Some(at) = line[from..].find("//").map(|at| at + from) {
        let before = &line[..at];
        let in_string = before.matches('"').count() % 2 == 1;
        if !in_string {
            return before;
        }
        from = at + 2;
    }
    line
}

pub(crate) fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below these folders whose names end so.
pub(crate) fn files(folders: &[&str], endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| top().join(folder)).collect();
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", ".cache", "data"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn name_of(path: &Path) -> String {
    path.strip_prefix(top()).unwrap().to_string_lossy().replace('\\', "/")
}

pub(crate) fn sources() -> Vec<Source> {
    let found = files(&["src", "tests", "benches"], &[".rs"]);
    assert!(found.len() > 10, "the sources were not found in {}", top().display());
    found
        .into_iter()
        .map(|path| Source { name: name_of(&path), text: fs::read_to_string(&path).unwrap() })
        .collect()
}

pub(crate) fn house() -> impl Iterator<Item = Source> {
    sources().into_iter().filter(|source| source.name.starts_with("src/"))
}
