//! `join`: makes this machine a client of a cache of the house. Shows whom it met, asks, then writes
//! each file whole, the line in nix.conf last: whatever interrupts it, a second run mends it.

mod files;
mod install;
mod meet;
mod nix_conf;
mod own_conf;
mod place;
mod print;
mod undo;

use std::io::{IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{ConfigArgs, Ended, out, runtime};
use crate::config::Surroundings;
use crate::forward::Joined;
use crate::pinned::CaFingerprint;
use crate::spool;

use files::{Files, PRIVATE, PUBLIC};
use meet::Met;
use own_conf::OwnConf;
use place::Place;

/// Where the forwarder answers.
const FORWARDER: &str = "http://127.0.0.1:8501";

/// Longest answer to the question that is read.
const ANSWER_LEN_MAX: u64 = 64;

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry join
      finds the cache of this network, shows who it is, asks, and lets Nix read from it
  sudo snowberry join snowberry.local --install
      the same with `snowberry forward`, which costs nothing while the cache is away
  sudo snowberry join 192.168.1.20 --install --token-file token --trust-key
      what is built here is handed to the cache, what others built there is taken from it
  snowberry join --print nixos
      prints the lines for a machine whose files are made elsewhere
  sudo snowberry join --undo
      takes all of it back

Compare the fingerprint with what `snowberry key show` says on the cache itself.";

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(super) struct JoinArgs {
    /// The cache, by name or address; without it the one that announces itself in this network.
    #[arg(value_name = "HOST[:PORT]")]
    host: Option<String>,
    /// Do not ask. With a cache that has TLS the fingerprint of its CA must be given.
    #[arg(long)]
    yes: bool,
    /// The fingerprint that the CA of the cache must have (SHA-256, with or without colons).
    #[arg(long, value_name = "SHA-256")]
    fingerprint: Option<CaFingerprint>,
    /// Trust the cache's own key: whoever holds one of its tokens can then put paths onto this machine.
    #[arg(long)]
    trust_key: bool,
    /// Keep the token in this file as this machine's own, for what it builds.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Put `snowberry forward` in place as a service, and with a token the hook.
    #[arg(long)]
    install: bool,
    /// Write nothing, print the lines for a configuration that is made elsewhere.
    #[arg(long, value_name = "KIND", conflicts_with_all = ["install", "token_file", "undo"])]
    print: Option<print::Kind>,
    /// Take back all that a join wrote.
    #[arg(long, conflicts_with_all = ["host", "yes", "fingerprint", "trust_key", "token_file", "install"])]
    undo: bool,
    /// Write below this folder, such as the root of an image.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &JoinArgs) -> anyhow::Result<Ended> {
    if let Some(kind) = args.print {
        let met = met(args)?;
        show(&met);
        out::bytes(print::lines(kind, &met, args.trust_key, &direct(&met)).as_bytes())?;
        return Ok(Ended::Well);
    }
    let place = Place::new(args.root.as_deref(), &Surroundings::of_this_process())?;
    let files = Files { place: &place };
    refuse_managed(&files)?;
    if args.undo {
        return undo::run(&files);
    }
    let token = args.token_file.as_deref().map(spool::read_token).transpose()?;
    let met = met(args)?;
    show(&met);
    if !agree(args, &met)? {
        out::note("nothing was written");
        return Ok(Ended::Badly);
    }
    write(args, &files, &met, token)
}

/// A nix.conf or a file of ours that is a link is made by something else, which would put it back.
fn refuse_managed(files: &Files<'_>) -> anyhow::Result<()> {
    let nix_conf = files.place.nix_conf();
    let kind = if files.place.is_user { "home-manager" } else { "nixos" };
    anyhow::ensure!(
        !files.is_link(&nix_conf),
        "{} is a link, so its text is made elsewhere: add the lines there that \
         `snowberry join --print {kind}` prints",
        nix_conf.display()
    );
    let own = files.place.own_conf();
    let is_ours = files.read(&own)?.is_none_or(|text| own_conf::is_ours(&text));
    anyhow::ensure!(
        is_ours,
        "{} is there and not by `snowberry join`: move it away",
        own.display()
    );
    Ok(())
}

fn met(args: &JoinArgs) -> anyhow::Result<Met> {
    let config = args.config.load()?;
    let runtime = runtime::one_thread()?;
    let met = runtime::wait(&runtime, meet::meet(args.host.as_deref(), &config.mdns));
    // A resolver that still runs must not hold up the end.
    runtime.shutdown_background();
    met
}

fn show(met: &Met) {
    let at: Vec<String> = met.addresses.iter().map(ToString::to_string).collect();
    out::note(&format!("{} ({}.local), at {}", met.host, met.name, at.join(", ")));
    match met.keys.first() {
        Some(key) => out::note(&format!("  key  {key}")),
        None => out::note("  key  none yet"),
    }
    match &met.tls {
        Some(tls) => {
            out::note(&format!("  CA   {}", tls.ca));
            out::note(
                "On the cache itself `snowberry key show` says the same, and so does the boot \
                 partition of a Pi that was made from the image.",
            );
        }
        None => out::note(
            "  CA   none of its own: everything is read over plain http, and only signatures protect it",
        ),
    }
}

/// Whether it is the right cache, in the opinion of whoever runs this.
fn agree(args: &JoinArgs, met: &Met) -> anyhow::Result<bool> {
    let ca = met.tls.as_ref().map(|tls| tls.ca);
    match (args.fingerprint, ca) {
        (Some(wanted), Some(ca)) => anyhow::ensure!(
            wanted == ca,
            "this cache has the CA {ca}, wanted is {wanted}: it is another one, or somebody is in \
             between"
        ),
        (Some(wanted), None) => {
            anyhow::bail!("this cache has no CA, wanted is {wanted}: has it TLS (tls.listen)?")
        }
        (None, Some(ca)) => anyhow::ensure!(
            !args.yes,
            "with --yes the right CA must be named: compare {ca} with what `snowberry key show` says \
             on the cache, then give --fingerprint"
        ),
        (None, None) => {}
    }
    if args.yes {
        return Ok(true);
    }
    anyhow::ensure!(
        std::io::stdin().is_terminal(),
        "there is nobody to ask: give --yes, and --fingerprint with the SHA-256 of its CA"
    );
    let question =
        if ca.is_some() { "Is this the CA of your cache?" } else { "Is this your cache?" };
    let mut terminal = std::io::stderr().lock();
    out::ignore_closed_pipe(write!(terminal, "{question} [y/N] ").and_then(|()| terminal.flush()));
    drop(terminal);
    let mut answer = String::new();
    let mut stdin = std::io::Read::take(std::io::stdin().lock(), ANSWER_LEN_MAX);
    std::io::BufRead::read_line(&mut stdin, &mut answer).context("read the answer")?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

/// The record of what is written comes first, the line that makes Nix read it last.
fn write(
    args: &JoinArgs,
    files: &Files<'_>,
    met: &Met,
    token: Option<String>,
) -> anyhow::Result<Ended> {
    let place = files.place;
    let before = files.read(&place.own_conf())?.unwrap_or_default();
    let known = own_conf::also_written(&before);
    let units = install::units(place);
    // What was installed once stays so.
    let installs = args.install || units.iter().any(|unit| known.contains(unit));
    let has_token = token.is_some() || files.read(&place.token())?.is_some();
    let nix_conf = files.read(&place.nix_conf())?;
    let hook = hook(nix_conf.as_deref(), place, installs && has_token);
    let program = if installs { Some(install::program(place)?) } else { None };

    let mut also = vec![place.joined()];
    also.extend(met.tls.as_ref().map(|_| place.ca()));
    also.extend(token.as_ref().map(|_| place.token()));
    also.extend(units.into_iter().filter(|_| installs));
    also.extend(hook.clone());
    let old = known.into_iter().filter(|path| !also.contains(path)).collect::<Vec<_>>();
    also.extend(old);
    let own = OwnConf {
        substituter: if installs { FORWARDER.to_owned() } else { direct(met) },
        keys: if args.trust_key { met.keys.clone() } else { Vec::new() },
        hook: hook.clone(),
        also,
    };
    files.write(&place.own_conf(), own.text().as_bytes(), PUBLIC)?;
    if let Some(tls) = &met.tls {
        files.write(&place.ca(), &tls.ca_pem, PUBLIC)?;
    }
    files.write(&place.joined(), joined(met, place).to_string().as_bytes(), PUBLIC)?;
    if let Some(token) = token {
        files.write(&place.token(), format!("{token}\n").as_bytes(), PRIVATE)?;
    }
    if let Some(program) = program {
        install::write_units(files, &program)?;
        if let Some(hook) = &hook {
            files.link(hook, &program)?;
        }
        install::start(place, hook.is_some())?;
    }
    match nix_conf::with_include(nix_conf.as_deref()) {
        Some(text) => files.write(&place.nix_conf(), &text, PUBLIC)?,
        None => out::note(&format!("is there already: {}", place.nix_conf().display())),
    }
    tell(args, place, installs);
    Ok(Ended::Well)
}

fn tell(args: &JoinArgs, place: &Place, installs: bool) {
    if !place.is_user {
        out::note("a Nix daemon that runs reads this when it is started again");
    }
    if !installs {
        out::note(
            "while the cache is away Nix waits for it: --install puts a forwarder in between",
        );
    }
    if place.is_user && args.token_file.is_some() {
        let token = place.token();
        let token = token.display();
        out::note(&format!("name the token in snowberry.toml: spool.token-file = \"{token}\""));
    }
}

/// Where the hook goes, when it is wanted and nobody has another one.
fn hook(nix_conf: Option<&[u8]>, place: &Place, is_wanted: bool) -> Option<PathBuf> {
    if !is_wanted {
        return None;
    }
    if nix_conf.is_some_and(|text| nix_conf::sets(text, "post-build-hook")) {
        out::note("nix.conf has a post-build-hook, which stays: call `snowberry hook` from it");
        return None;
    }
    Some(place.hook())
}

fn joined(met: &Met, place: &Place) -> Joined {
    Joined {
        name: met.name.clone(),
        host: met.host.clone(),
        port: met.port,
        tls_port: met.tls.as_ref().map(|tls| tls.port),
        ca_file: met.tls.as_ref().map(|_| place.ca()),
        ca_sha256: met.tls.as_ref().map(|tls| tls.ca.0),
        public_key: met.keys.first().cloned(),
        addresses: met.addresses.clone(),
    }
}

/// Where Nix asks without a forwarder. On Linux it cannot resolve `.local`.
fn direct(met: &Met) -> String {
    let is_mdns = met.host.strip_suffix(".local").is_some();
    let by_address = is_mdns || met.host.parse::<IpAddr>().is_ok();
    let host = match met.addresses.first() {
        Some(IpAddr::V4(v4)) if by_address => v4.to_string(),
        Some(IpAddr::V6(v6)) if by_address => format!("[{v6}]"),
        Some(_) | None => met.host.clone(),
    };
    if met.port == 80 { format!("http://{host}") } else { format!("http://{host}:{}", met.port) }
}
