//! `evict`: room is made in a running cache because somebody says so; and what would go next.

use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::admin::{self, Reach};
use super::errand::{self, count, list, number, since, text};
use super::{ConfigArgs, Ended, out, paths, status};
use crate::config::Config;
use crate::units::ByteSize;

#[derive(Debug, Args)]
pub(super) struct EvictArgs {
    /// Store paths, links to them, or bare hashes; `-` reads them from stdin.
    #[arg(required_unless_present = "to", conflicts_with = "to", value_name = "PATH")]
    paths: Vec<String>,
    /// Evict the least recently used until so much is used at most, such as 20GiB.
    #[arg(long, value_name = "SIZE")]
    to: Option<ByteSize>,
    /// Only list what would go.
    #[arg(long, requires = "to")]
    dry_run: bool,
    /// Say nothing of what went.
    #[arg(long, short)]
    quiet: bool,
    /// Print what went as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry evict --dry-run --to 20GiB
      what would go, in its order
  snowberry evict --to 20GiB
  snowberry evict ./result
      this path, and not what it refers to; one that the disk lost is not told of any more

The cache makes room by itself when it needs some; nobody has to do this. Least recently used goes
first, what an upstream has before what only this cache has. What is pinned stays, what waits to be
pushed stays, and what somebody reads just now is left. What went is fetched again when it is asked
for, where an upstream has it.

For root, or a member of the group of the running cache's admin socket.";

pub(super) fn run(args: &EvictArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    match args.to {
        Some(to) if args.dry_run => dry_run(&config, to, args.json),
        Some(to) => evict_to(args, &config, to),
        None => evict_paths(args, &config),
    }
}

fn dry_run(config: &Config, to: ByteSize, json: bool) -> anyhow::Result<Ended> {
    let target = format!("/next-out?to_bytes={}", to.0);
    let answer = admin::command(config, Reach::Machine, Method::GET, &target)?;
    if json {
        out::line(&answer.to_string())?;
        return Ok(Ended::Well);
    }
    let next = list(&answer, "next");
    for gone in next {
        out::line(&told(gone))?;
    }
    let nars = u64::try_from(next.len()).unwrap_or(u64::MAX);
    let (used, frees) = (number(&answer, "used_bytes"), number(&answer, "bytes"));
    out::line(&format!("{} would go, {}", count(nars, "NAR"), ByteSize(frees)))?;
    let left = used.saturating_sub(frees);
    if left > to.0 {
        out::note(&stays(left, number(&answer, "kept_bytes")));
    }
    Ok(Ended::Well)
}

fn evict_to(args: &EvictArgs, config: &Config, to: ByteSize) -> anyhow::Result<Ended> {
    let target = format!("/evict?to_bytes={}", to.0);
    let done = errand::run(config, &target, &[], args.quiet)?;
    show(args, &done)?;
    let left = number(&done, "left_bytes");
    if left <= to.0 {
        return Ok(Ended::Well);
    }
    if !args.json {
        out::note(&stays(left, number(&done, "kept_bytes")));
    }
    Ok(Ended::Badly)
}

fn evict_paths(args: &EvictArgs, config: &Config) -> anyhow::Result<Ended> {
    let named = paths::named(&args.paths, &config.store_dir)?;
    let done = errand::run(config, "/evict", &named, args.quiet)?;
    show(args, &done)?;
    let shown = |key: &str| {
        let named = named.iter().find(|(named, _)| named.to_string() == key);
        named.map_or_else(|| key.to_owned(), |(_, shown)| shown.clone())
    };
    for stays in list(&done, "stays").iter().filter(|_| !args.json) {
        out::note(&format!("{} stays: {}", shown(text(stays, "key")), text(stays, "why")));
    }
    for absent in list(&done, "absent").iter().filter_map(Value::as_str).filter(|_| !args.json) {
        out::note(&format!("{} is not here", shown(absent)));
    }
    Ok(if list(&done, "stays").is_empty() { Ended::Well } else { Ended::Badly })
}

fn show(args: &EvictArgs, done: &Value) -> anyhow::Result<()> {
    if args.json {
        return out::line(&done.to_string());
    }
    if args.quiet {
        return Ok(());
    }
    let went = list(done, "went");
    for gone in went {
        out::line(&told(gone))?;
    }
    let nars = number(done, "nars");
    let more = nars.saturating_sub(u64::try_from(went.len()).unwrap_or(0));
    if more > 0 {
        out::line(&format!("and {more} more"))?;
    }
    out::line(&format!("{} went, {}", count(nars, "NAR"), ByteSize(number(done, "bytes"))))
}

fn stays(left: u64, kept: u64) -> String {
    format!(
        "{} are left: {} are pinned or wait to be pushed and stay; the rest is being read",
        ByteSize(left),
        ByteSize(kept)
    )
}

/// One that goes, and why it is the next.
pub(super) fn told(gone: &Value) -> String {
    let names: Vec<&str> = list(gone, "paths").iter().filter_map(Value::as_str).collect();
    let names = match names.as_slice() {
        [] => "a NAR that no path has".to_owned(),
        names => names.join(" = "),
    };
    let is_only_here = gone.get("only_here").and_then(Value::as_bool).unwrap_or_default();
    let whose = if is_only_here { "only here" } else { "an upstream has it" };
    let when = match gone.get("unused_since").and_then(Value::as_u64) {
        Some(then) => format!("not used for {}", status::span(since(then))),
        None => "used lately".to_owned(),
    };
    format!("{names}: {}, {whose}, {when}", ByteSize(number(gone, "bytes")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_goes_is_told_with_why() {
        let gone = json!({
            "paths": ["a-x", "b-x"], "bytes": 2048, "only_here": true, "unused_since": u64::MAX,
        });
        assert_eq!(told(&gone), "a-x = b-x: 2.0 KiB, only here, not used for 0 s");
        let gone = json!({"paths": [], "bytes": 1, "only_here": false, "unused_since": null});
        assert_eq!(told(&gone), "a NAR that no path has: 1 B, an upstream has it, used lately");
    }
}
