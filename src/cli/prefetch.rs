//! `prefetch`: a running cache fetches closures before anybody asks.

use clap::Args;
use serde_json::Value;

use super::errand::{self, count, list, number};
use super::{ConfigArgs, Ended, out, paths};
use crate::units::ByteSize;

#[derive(Debug, Args)]
pub(super) struct PrefetchArgs {
    /// Store paths, links to them, or bare hashes; their closures come with them. `-` reads them
    /// from stdin, one a line.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// At most so much a second from the upstreams, such as 2MiB. What a client waits for comes as
    /// fast as it can all the same.
    #[arg(long, value_name = "SIZE")]
    limit: Option<ByteSize>,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry prefetch /nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-hello-2.12
  nix path-info -r .#devShells.x86_64-linux.default | snowberry prefetch -
      what a flake needs
  snowberry prefetch --limit 2MiB --quiet - < paths
      behind everything else on the line
  systemctl enable --now snowberry-prefetch@desktop.timer
      each night what /etc/snowberry/prefetch/desktop says

What clients ask goes first. What is here costs nothing, so it may be given again at any time, and
goes on where it broke off. What no upstream has is listed at the end, with exit code 1; the rest is
fetched all the same. What is fetched so may be evicted: `snowberry pin` keeps it.

For root, or a member of the group of the running cache's admin socket.";

pub(super) fn run(args: &PrefetchArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let named = paths::named(&args.paths, &config.store_dir)?;
    if named.is_empty() {
        // A list may be empty.
        return Ok(Ended::Well);
    }
    let target = match args.limit {
        Some(limit) => format!("/prefetch?limit={}", limit.0),
        None => "/prefetch".to_owned(),
    };
    let done = errand::run(&config, &target, &named, args.quiet)?;
    if args.json {
        out::line(&done.to_string())?;
    } else if !args.quiet {
        out::line(&fetched(&done))?;
    }
    let lacking = number(&done, "lacking");
    if lacking == 0 {
        return Ok(Ended::Well);
    }
    let lacks = list(&done, "lacks");
    for lack in lacks.iter().filter_map(Value::as_str).filter(|_| !args.json) {
        out::note(&format!("missing: {lack}"));
    }
    let told = u64::try_from(lacks.len()).unwrap_or(u64::MAX);
    if lacking > told && !args.json {
        out::note(&format!("missing: {} more", lacking - told));
    }
    Ok(Ended::Badly)
}

fn fetched(done: &Value) -> String {
    format!(
        "{}: {} fetched, {}; {} here already",
        count(number(done, "paths"), "path"),
        count(number(done, "fetched_nars"), "NAR"),
        ByteSize(number(done, "fetched_bytes")),
        number(done, "held_nars"),
    )
}
