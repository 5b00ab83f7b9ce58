//! The passphrase: from a file, or from who sits at the terminal, without showing it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;

use anyhow::Context;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// A sentence of a book.
const LEN_MAX: u64 = 1024;

/// Fewer characters are tried through in no time.
const LEN_MIN: usize = 8;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Twice, because nobody sees it.
    ForANewOne,
    /// Once: it is right or it is not.
    ForTheOneOfAFile,
}

pub(super) fn read(file: Option<&Path>, asked: Asked) -> anyhow::Result<String> {
    let passphrase = match file {
        Some(path) => of_file(path)?,
        None => of_terminal(asked)?,
    };
    anyhow::ensure!(
        asked == Asked::ForTheOneOfAFile || passphrase.chars().count() >= LEN_MIN,
        "the passphrase has fewer than {LEN_MIN} characters"
    );
    Ok(passphrase)
}

fn of_file(path: &Path) -> anyhow::Result<String> {
    let act = || format!("read the passphrase in {}", path.display());
    let mut text = String::new();
    File::open(path)
        .with_context(act)?
        .take(LEN_MAX)
        .read_to_string(&mut text)
        .with_context(act)?;
    let line = text.lines().next().unwrap_or_default();
    anyhow::ensure!(!line.is_empty(), "{} has no passphrase on its first line", path.display());
    Ok(line.to_owned())
}

fn of_terminal(asked: Asked) -> anyhow::Result<String> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let terminal =
        terminal.context("there is nobody to ask for a passphrase: give --passphrase-file")?;
    let first = ask(&terminal, "Passphrase: ")?;
    if asked == Asked::ForANewOne {
        anyhow::ensure!(ask(&terminal, "Once more: ")? == first, "the two are not the same");
    }
    Ok(first)
}

fn ask(mut terminal: &File, question: &str) -> anyhow::Result<String> {
    let act = "ask for a passphrase on the terminal";
    write!(terminal, "{question}").context(act)?;
    let silent = Silent::begin(terminal).context(act)?;
    let mut line = String::new();
    BufReader::new(terminal.take(LEN_MAX)).read_line(&mut line).context(act)?;
    drop(silent);
    writeln!(terminal).context(act)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn begin(terminal: &'a File) -> rustix::io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        tcsetattr(self.terminal, OptionalActions::Flush, &self.before).ok();
    }
}
