//! `hook`: what Nix runs after each build, which must be done at once and must never fail: whatever
//! happens is said on stderr, which Nix shows in the log of the build, and the exit code is 0.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser as _;

use super::{Cli, Command, ConfigArgs, out};
use crate::config::{self, Surroundings};
use crate::spool::{self, Built};

/// A link to the program with this name is the hook: nix.conf can give it no arguments.
const LINK: &str = "snowberry-hook";

/// How a build's log names who speaks; Nix itself says only that it was a hook.
const SPEAKER: &str = "snowberry";

pub(super) const EXAMPLES: &str = "\
nix.conf names a program without arguments, so make a link and name that:
  ln -s $(command -v snowberry) /usr/local/bin/snowberry-hook
  echo 'post-build-hook = /usr/local/bin/snowberry-hook' >> /etc/nix/nix.conf

Under the name snowberry-hook the program is this command and takes no arguments. It notes the
outputs of the build in spool.path, except for what spool.exclude names, keeps them from garbage
collection, and asks nobody. It exits with 0 whatever happens, and says in the log of the build
what went wrong. `snowberry forward` or `snowberry spool run` pushes what it noted.

Nix gives OUT_PATHS and DRV_PATH in the environment. It must run as who owns the store: root where
there is a daemon.";

/// Whether the command line asks for the hook, in either way.
pub(super) fn is_meant(arguments: &[OsString]) -> bool {
    is_link(arguments) || arguments.get(1).is_some_and(|argument| argument == "hook")
}

fn is_link(arguments: &[OsString]) -> bool {
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    name.is_some_and(|name| name.as_encoded_bytes().ends_with(LINK.as_bytes()))
}

/// The hook from its command line on.
pub(super) fn main(arguments: &[OsString]) {
    let work = AssertUnwindSafe(|| {
        if is_link(arguments) {
            return run(&ConfigArgs::default());
        }
        match Cli::try_parse_from(arguments) {
            Ok(Cli { command: Command::Hook(config) }) => run(&config),
            Ok(_) => {}
            Err(error) => out::ignore_closed_pipe(error.print()),
        }
    });
    // Whoever panics has said why.
    drop(catch_unwind(work));
}

pub(super) fn run(args: &ConfigArgs) {
    let surroundings = Surroundings::of_this_process();
    let loaded = config::load(args.config.as_deref(), &args.set, &surroundings);
    let config = loaded.or_else(|error| {
        out::note(&format!("{SPEAKER}: {error}"));
        out::note(&format!("{SPEAKER}: this build is noted as if there were no configuration"));
        let bare = Surroundings { config_file: None, default_file: None, ..surroundings };
        config::load(None, &[], &bare)
    });
    let built =
        Built { out_paths: std::env::var_os("OUT_PATHS"), drv_path: std::env::var_os("DRV_PATH") };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let noted = config
        .map_err(anyhow::Error::new)
        .and_then(|config| Ok(spool::note(&config.spool, &built, now_s)?));
    match noted {
        Ok(noted) => noted.remarks.iter().for_each(|it| out::note(&format!("{SPEAKER}: {it}"))),
        Err(error) => {
            out::note(&format!("{SPEAKER}: this build will not be pushed: {error:#}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_the_program_is_the_hook() {
        let check = |arguments: &[&str], meant: bool| {
            let arguments: Vec<OsString> = arguments.iter().map(|it| (*it).into()).collect();
            assert_eq!(is_meant(&arguments), meant, "{arguments:?}");
        };
        check(&["/usr/local/bin/snowberry-hook"], true);
        check(&["/nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-snowberry-hook", "x"], true);
        check(&["snowberry", "hook"], true);
        check(&["snowberry", "hook", "--no-such"], true);
        check(&["snowberry", "status"], false);
        check(&["snowberry"], false);
        check(&[], false);
        check(&["snowberry-hook-2", "status"], false);
    }
}
