//! The token: read from its file, and handed to Nix so that nobody else sees it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use super::{Config, Error, Target};

/// A token has 42 characters; what is longer is another file.
const TOKEN_FILE_LEN_MAX: u64 = 4096;

/// A file with a newline is empty: systemd has no credential without any byte.
const EMPTY_LEN_MAX: u64 = 1;

/// The token in a file, without the white space around it.
pub fn read_token(file: &Path) -> Result<String, Error> {
    let failed = |source| Error::ReadToken { path: file.to_path_buf(), source };
    let mut text = String::new();
    let source = File::open(file).map_err(failed)?;
    source.take(TOKEN_FILE_LEN_MAX).read_to_string(&mut text).map_err(failed)?;
    let token = text.trim();
    if token.is_empty() || token.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::NotOneToken { path: file.to_path_buf() });
    }
    Ok(token.to_owned())
}

/// The token of a configuration. Where nobody named a file, none or an empty one is no error: Nix
/// looks into its netrc-file then.
pub(super) fn of(config: &Config) -> Result<Option<String>, Error> {
    let is_empty = |file: &Path| {
        file.metadata().map_or_else(
            |error| error.kind() == std::io::ErrorKind::NotFound,
            |metadata| metadata.len() <= EMPTY_LEN_MAX,
        )
    };
    if !config.needs_token_file && is_empty(&config.token_file) {
        return Ok(None);
    }
    read_token(&config.token_file).map(Some)
}

/// A netrc that lies on no disk, has no name, and is gone with this process, however it ends; only
/// this user's processes can read it. On the command line everybody could.
pub fn netrc(to: &Target, token: &str) -> Result<File, Error> {
    let failed = |source| Error::Netrc { source };
    let memory = rustix::fs::memfd_create("netrc", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = File::from(memory.map_err(|error| failed(error.into()))?);
    write!(file, "machine {}\nlogin snowberry\npassword {token}\n", to.host()).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::spool::kit;

    #[test]
    fn the_token_is_for_the_host_and_can_be_read_through_proc() {
        let netrc = netrc(&"http://[::1]:8500/push".parse().unwrap(), "secret").unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), netrc.as_raw_fd());
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text, "machine ::1\nlogin snowberry\npassword secret\n");
    }

    #[test]
    fn a_token_file_that_nobody_named_need_not_be_there() {
        let (top, mut config) = kit::spool();
        assert_eq!(of(&config).unwrap(), None);
        std::fs::write(&config.token_file, "\n").unwrap();
        assert_eq!(of(&config).unwrap(), None, "what systemd gives where there is none");
        std::fs::remove_file(&config.token_file).unwrap();
        config.needs_token_file = true;
        assert!(of(&config).is_err());
        std::fs::write(&config.token_file, " secret\n").unwrap();
        assert_eq!(of(&config).unwrap().as_deref(), Some("secret"));
        for wrong in ["", "two words", "a\nb"] {
            std::fs::write(&config.token_file, wrong).unwrap();
            assert!(matches!(of(&config), Err(Error::NotOneToken { .. })), "{wrong:?}");
        }
        drop(top);
    }
}
