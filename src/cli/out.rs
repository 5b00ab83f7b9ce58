//! The only place that prints. Results go to stdout, what went wrong to stderr; a reader that has
//! gone (a closed pipe) is no failure.

use std::io::{self, Write as _};

/// One result, with a newline.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// A result as it is.
pub(super) fn bytes(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("print the result"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What is no result: for the eyes of whoever runs the command.
pub(super) fn note(text: &str) {
    ignore_closed_pipe(writeln!(io::stderr().lock(), "{text}"));
}

/// What went wrong, with its causes.
pub(super) fn error(error: &anyhow::Error) {
    ignore_closed_pipe(writeln!(io::stderr().lock(), "snowberry: {error:#}"));
}

/// Nobody is left to be told that nobody listens.
pub(super) fn ignore_closed_pipe(printed: io::Result<()>) {
    drop(printed);
}
