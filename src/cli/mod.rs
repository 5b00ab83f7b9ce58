//! The command tree and what each command means as an exit code. The commands themselves stand one
//! in a file.

mod admin;
mod backup;
mod bucket;
mod check;
mod clients;
mod demo;
mod doctor;
mod errand;
mod evict;
mod exchange;
mod export;
mod find;
mod first_boot;
mod forward;
mod hook;
mod import;
mod join;
mod key;
mod lines;
mod log;
mod man;
mod out;
mod paths;
mod progress;
mod pin;
mod prefetch;
mod reload;
mod runtime;
mod push;
mod scrub;
mod serve;
mod spool;
mod status;
mod token;
mod update;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{self, Config, Files, Surroundings};

/// Done.
const DONE: u8 = 0;
/// Failed: the message says at what.
const FAILED: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// The configuration is wrong: `EX_CONFIG` of sysexits, so that systemd need not try again.
const CONFIG_WRONG: u8 = 78;

const EXAMPLES: &str = "\
Examples:
  snowberry serve
      cache https://cache.nixos.org at http://127.0.0.1:8500, without any configuration
  snowberry serve --config snowberry.toml
      what that file says
  snowberry serve --set 'listen=[\"[::]:8500\"]' --set 'store.budget=\"20 GiB\"'
      keys of the file, given on the command line
  snowberry check
      what is wrong, and what to do about it, without starting
  snowberry push ./result
      hand a build to the cache, which keeps it and carries it to the bucket
  nix copy --from http://127.0.0.1:8500 /nix/store/...
      ask it as a client does

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 78 the configuration is wrong.";

const CONFIG_HELP: &str = "\
Without --config the file is $SNOWBERRY_CONFIG, else /etc/snowberry/snowberry.toml if it exists,
else there is none, which is valid. snowberry.toml(5) explains each key.";

const SERVE_EXAMPLES: &str = "\
Examples:
  snowberry serve
  snowberry serve --set 'upstream=[{url=\"file:///mnt/stick\",unsigned=true}]'
  SNOWBERRY_LOG=snowberry=debug snowberry serve

Ends at SIGTERM or SIGINT once running answers are given, and at once at a second one.
$SNOWBERRY_LOG is a filter of what is logged to stderr: error, warn, info (the default), debug, or
module=level, with commas between.";

const FORWARD_EXAMPLES: &str = "\
Examples:
  snowberry forward
      answer at http://127.0.0.1:8501 from the cache that `snowberry join` wrote down
  snowberry forward --set 'forward.cache=\"http://192.168.1.20\"'
      from this one, over plain http
  snowberry forward --set forward.plain=true
      from whichever announces itself on this network, over plain http

In nix.conf: extra-substituters = http://127.0.0.1:8501
Away from home, or with the cache switched off, every question is answered with 404 at once, so that
Nix goes on to its next substituter.";

const STATUS_EXAMPLES: &str = "\
Examples:
  snowberry status
  snowberry status --url http://snowberry.local
  snowberry status --json | jq .store.used_bytes";

const KEY_EXAMPLES: &str = "\
Examples:
  snowberry key show
      the line for trusted-public-keys on the clients
  snowberry key rotate
      another key signs from now on, the old one stays trusted
  snowberry key generate house-1 > house.secret
      a new key pair; the file is secret";

/// The Nix binary cache of a home network.
///
/// Answers Nix clients from its own disk and fetches what it lacks from other caches: an https
/// cache such as cache.nixos.org, an S3 bucket, a folder.
#[derive(Debug, Parser)]
#[command(name = "snowberry", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the cache.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ConfigArgs),
    /// Pass on what this machine's Nix asks to the cache of the house, and nothing while it is away.
    #[command(after_help = FORWARD_EXAMPLES)]
    Forward(ConfigArgs),
    /// Let this machine's Nix read from the cache of the house.
    ///
    /// Finds the cache, shows its key and the fingerprint of its CA, asks, and writes what Nix and
    /// `snowberry forward` need. Says each file that it writes; may be run again at any time.
    #[command(after_help = join::EXAMPLES)]
    Join(join::JoinArgs),
    /// Show what this is, in a few seconds: a miss, a hit, an upstream that is gone, a push.
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// Say what is wrong and what to do about it, without starting.
    #[command(after_help = CONFIG_HELP)]
    Check(check::CheckArgs),
    /// Keep closures in the running cache, whatever else comes.
    ///
    /// Fetches what it lacks of them first.
    #[command(after_help = pin::PIN_EXAMPLES)]
    Pin(pin::PinArgs),
    /// Let a pinned closure go when room is needed.
    #[command(after_help = pin::UNPIN_EXAMPLES)]
    Unpin(pin::UnpinArgs),
    /// Show what is pinned, and what it takes.
    #[command(after_help = pin::PINS_EXAMPLES)]
    Pins(pin::PinsArgs),
    /// Let the running cache fetch closures before anybody asks for them.
    #[command(after_help = prefetch::EXAMPLES)]
    Prefetch(prefetch::PrefetchArgs),
    /// Make room in the running cache, or see what would go next.
    #[command(after_help = evict::EXAMPLES)]
    Evict(evict::EvictArgs),
    /// Ask a running cache how it is.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(status::StatusArgs),
    /// Let a running cache read its configuration again.
    #[command(after_help = reload::EXAMPLES)]
    Reload(ConfigArgs),
    /// List the caches of the house, found by multicast DNS.
    #[command(after_help = find::EXAMPLES)]
    Find(find::FindArgs),
    /// Say what keeps this machine from using the cache, from the outside in.
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// Keys in Nix's format.
    #[command(after_help = KEY_EXAMPLES)]
    Key {
        #[command(subcommand)]
        command: key::KeyCommand,
    },
    /// Hand paths of this machine's Nix store to a cache, or ask what it has still to carry up.
    #[command(after_help = push::EXAMPLES)]
    Push(push::PushArgs),
    /// Note what Nix just built, to be pushed when the cache is there.
    #[command(after_help = hook::EXAMPLES)]
    Hook(ConfigArgs),
    /// What was built here and waits to be pushed.
    #[command(after_help = spool::EXAMPLES)]
    Spool {
        #[command(subcommand)]
        command: spool::SpoolCommand,
    },
    /// Who may write to this machine's cache.
    Token {
        #[command(subcommand)]
        command: token::TokenCommand,
    },
    /// Buckets and folders that other machines read.
    Bucket {
        #[command(subcommand)]
        command: bucket::BucketCommand,
    },
    /// Update an appliance that was made from snowberry's image.
    ///
    /// Fetches the newest version of the server that update.url names, or takes a file; verifies it;
    /// writes it to the slot that does not run; restarts into it once. It stays only when cache,
    /// store and network are well for a minute there. Otherwise the version before runs again by
    /// itself. Whatever goes wrong before the restart changes nothing of what runs.
    #[command(after_help = update::EXAMPLES)]
    Update(update::UpdateArgs),
    /// Apply what the boot partition of the appliance says.
    #[command(after_help = first_boot::EXAMPLES)]
    FirstBoot(first_boot::FirstBootArgs),
    /// Write who this cache is to the boot partition of the appliance.
    #[command(after_help = first_boot::IDENTITY_EXAMPLES)]
    Identity(first_boot::IdentityArgs),
    /// Write what must not be lost into one encrypted file.
    #[command(after_help = backup::EXAMPLES)]
    Backup(backup::BackupArgs),
    /// Bring a backup back, so that this cache goes on where the other one stopped.
    #[command(after_help = backup::RESTORE_EXAMPLES)]
    Restore(backup::RestoreArgs),
    /// Have the running cache read all that it holds and compare it with its hashes, now.
    #[command(after_help = scrub::EXAMPLES)]
    Scrub(scrub::ScrubArgs),
    /// Write paths of a running cache and all that they refer to into a folder, such as a USB stick.
    #[command(after_help = export::EXAMPLES)]
    Export(export::ExportArgs),
    /// Have the running cache take what is in such a folder.
    #[command(after_help = import::EXAMPLES)]
    Import(import::ImportArgs),
    /// Print what a shell needs to complete this command line.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual of `snowberry`, or write all its pages into a folder.
    Man {
        /// Where to write every page, snowberry.toml(5) among them.
        dir: Option<PathBuf>,
    },
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
struct ConfigArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Lay one key over the file; the value is TOML, so a string needs quotes of its own.
    #[arg(long, value_name = "KEY=TOML-VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<Config, config::Error> {
        self.load_with(Files::Here)
    }

    fn load_with(&self, files: Files) -> Result<Config, config::Error> {
        let surroundings = Surroundings { files, ..Surroundings::of_this_process() };
        config::load(self.config.as_deref(), &self.set, &surroundings)
    }
}

/// How a command that ran to its end ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    /// What was asked was done, and the answer is no: `check` found something.
    Badly,
}

/// Runs the command of these arguments, the first of which is the program's own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if hook::is_meant(&arguments) {
        hook::main(&arguments);
        return ExitCode::from(DONE);
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too. A closed pipe changes nothing.
            out::ignore_closed_pipe(error.print());
            return ExitCode::from(if error.use_stderr() { USAGE } else { DONE });
        }
    };
    match run(cli.command) {
        Ok(Ended::Well) => ExitCode::from(DONE),
        Ok(Ended::Badly) => ExitCode::from(FAILED),
        Err(error) => {
            out::error(&error);
            let is_config = error.chain().any(<dyn std::error::Error>::is::<config::Error>);
            ExitCode::from(if is_config { CONFIG_WRONG } else { FAILED })
        }
    }
}

fn run(command: Command) -> anyhow::Result<Ended> {
    match command {
        Command::Serve(config) => serve::run(&config),
        Command::Join(args) => join::run(&args),
        Command::Forward(config) => forward::run(&config),
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Pin(args) => pin::pin(&args),
        Command::Unpin(args) => pin::unpin(&args),
        Command::Pins(args) => pin::pins(&args),
        Command::Prefetch(args) => prefetch::run(&args),
        Command::Evict(args) => evict::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Reload(config) => reload::run(&config),
        Command::Find(args) => find::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Key { command } => key::run(&command),
        Command::Push(args) => push::run(&args),
        Command::Hook(config) => {
            hook::run(&config);
            Ok(Ended::Well)
        }
        Command::Spool { command } => spool::run(&command),
        Command::Token { command } => token::run(&command),
        Command::Bucket { command } => bucket::run(&command),
        Command::Update(args) => update::run(&args),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Scrub(args) => scrub::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::FirstBoot(args) => first_boot::run(&args),
        Command::Identity(args) => first_boot::identity(&args),
        Command::Completions { shell } => man::completions(shell),
        Command::Man { dir } => man::run(dir.as_deref()),
    }
}

fn command_tree() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        command_tree().debug_assert();
    }

    #[test]
    fn every_command_and_argument_is_explained() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some() || argument.get_id() == "help",
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&command_tree());
    }

    #[test]
    fn the_exit_code_tells_usage_from_configuration() {
        let code = |arguments: &[&str]| {
            let arguments = arguments.iter().map(|it| OsString::from(*it));
            format!("{:?}", main(arguments))
        };
        let exit = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(&["snowberry", "--version"]), exit(0));
        assert_eq!(code(&["snowberry", "no-such-command"]), exit(2));
        assert_eq!(code(&["snowberry", "serve", "--set", "nope=1"]), exit(78));
        assert_eq!(code(&["snowberry", "serve", "--config", "/nonexistent.toml"]), exit(78));
        assert_eq!(code(&["snowberry", "status", "--url", "nowhere"]), exit(1));
    }
}
