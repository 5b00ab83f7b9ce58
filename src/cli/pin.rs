//! `pin`, `unpin`, `pins`: closures that stay in a running cache whatever else comes.

use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::admin::{self, Reach};
use super::errand::{self, count, list, number, since, text};
use super::{ConfigArgs, Ended, out, paths, status};
use crate::units::ByteSize;

#[derive(Debug, Args)]
pub(super) struct PinArgs {
    /// What it is called; without it as the first path is. A name that is pinned already gets this
    /// closure in place of its old one, which stays until all of the new one is here.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Store paths, links to them such as ./result, or bare hashes; `-` reads them from stdin.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) const PIN_EXAMPLES: &str = "\
Examples:
  snowberry pin --name desktop /run/current-system
      the system of this machine, with all that it refers to
  snowberry pin ./result
      under the name of that path
  ssh desktop readlink -f /run/current-system | snowberry pin --name desktop -
      that of another machine: the cache fetches what it lacks, the path need not be here
  snowberry pins
      what is pinned, and what it takes

The cache follows the references from path to path, fetches what it lacks, and from then on evicts
none of it until `snowberry unpin`. A closure that does not fit is refused before anything is
fetched: what is pinned and what waits to be pushed may take four fifths of store.budget. Given
again after it broke off, it goes on where it was.

For root, or a member of the group of the running cache's admin socket.";

#[derive(Debug, Args)]
pub(super) struct UnpinArgs {
    /// Its name, as `pins` shows it.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) const UNPIN_EXAMPLES: &str = "\
Examples:
  snowberry unpin desktop

Nothing goes at once: what no other pin holds is evicted again when room is needed and its turn has
come.";

#[derive(Debug, Args)]
pub(super) struct PinsArgs {
    /// Print them as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) const PINS_EXAMPLES: &str = "\
Examples:
  snowberry pins
  snowberry pins --json | jq -r '.pins[] | select(.missing > 0) | .name'

What several pins hold is in the size of each, and counts once in the sum; `alone` is what would be
free to go without that pin.";

pub(super) fn pin(args: &PinArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let named = paths::named(&args.paths, &config.store_dir)?;
    let target = match &args.name {
        Some(name) => {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            format!("/pin?{}", query.append_pair("name", name).finish())
        }
        None => "/pin".to_owned(),
    };
    let done = errand::run(&config, &target, &named, args.quiet)?;
    if args.json {
        out::line(&done.to_string())?;
    } else {
        out::line(&pinned(&done))?;
    }
    Ok(Ended::Well)
}

fn pinned(done: &Value) -> String {
    let paths = count(number(done, "paths"), "path");
    let size = ByteSize(number(done, "bytes"));
    let fetched = match number(done, "fetched_nars") {
        0 => "all of it was here".to_owned(),
        nars => {
            format!("{} fetched, {}", count(nars, "NAR"), ByteSize(number(done, "fetched_bytes")))
        }
    };
    format!("pinned {}: {paths}, {size} ({fetched})", text(done, "name"))
}

pub(super) fn unpin(args: &UnpinArgs) -> anyhow::Result<Ended> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let target = format!("/unpin?{}", query.append_pair("name", &args.name).finish());
    admin::command(&args.config.load()?, Reach::Machine, Method::POST, &target)?;
    out::line(&format!("unpinned {}", args.name))?;
    Ok(Ended::Well)
}

pub(super) fn pins(args: &PinsArgs) -> anyhow::Result<Ended> {
    let answer = admin::command(&args.config.load()?, Reach::Machine, Method::GET, "/pins")?;
    if args.json {
        out::line(&answer.to_string())?;
    } else {
        out::bytes(table(&answer).as_bytes())?;
    }
    Ok(Ended::Well)
}

fn table(answer: &Value) -> String {
    let pins = list(answer, "pins");
    if pins.is_empty() {
        return "nothing is pinned (snowberry pin --name NAME PATH)\n".to_owned();
    }
    let mut lines = Vec::new();
    for pin in pins {
        let (bytes, alone) = (number(pin, "bytes"), number(pin, "alone_bytes"));
        let missing = number(pin, "missing");
        let state = match (text(pin, "state"), missing) {
            ("coming", 0) => "not whole: give the pin again".to_owned(),
            ("coming", missing) => {
                format!("not whole, {missing} missing: give the pin again to go on")
            }
            (_, 0) => "whole".to_owned(),
            (_, missing) => format!("{missing} missing: lost, and fetched again"),
        };
        lines.push(format!(
            "{}: {}, {} ({} alone), since {}, {state}",
            text(pin, "name"),
            count(number(pin, "paths"), "path"),
            ByteSize(bytes),
            ByteSize(alone),
            status::span(since(number(pin, "since"))),
        ));
        lines.extend(
            list(pin, "roots").iter().filter_map(Value::as_str).map(|it| format!("  {it}")),
        );
    }
    lines.push(format!("in all {}", ByteSize(number(answer, "pinned_bytes"))));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pin_is_told_with_what_was_fetched_for_it() {
        let mut done = json!({"name": "a", "paths": 1, "bytes": 2048, "fetched_nars": 0});
        assert_eq!(pinned(&done), "pinned a: 1 path, 2.0 KiB (all of it was here)");
        done["fetched_nars"] = json!(2);
        done["fetched_bytes"] = json!(1024);
        assert_eq!(pinned(&done), "pinned a: 1 path, 2.0 KiB (2 NARs fetched, 1.0 KiB)");
    }

    #[test]
    fn pins_are_told_with_their_sizes_and_what_they_lack() {
        assert!(table(&json!({"pins": []})).starts_with("nothing is pinned"));
        let pin = json!({
            "name": "desktop", "roots": ["/nix/store/x"], "state": "holds", "since": u64::MAX,
            "paths": 2, "missing": 0, "bytes": 2048, "alone_bytes": 1024,
        });
        let mut coming = pin.clone();
        coming["state"] = json!("coming");
        coming["missing"] = json!(1);
        let shown = table(&json!({"pins": [pin, coming], "pinned_bytes": 2048}));
        let wanted = "\
desktop: 2 paths, 2.0 KiB (1.0 KiB alone), since 0 s, whole
  /nix/store/x
desktop: 2 paths, 2.0 KiB (1.0 KiB alone), since 0 s, not whole, 1 missing: give the pin again to go on
  /nix/store/x
in all 2.0 KiB
";
        assert_eq!(shown, wanted);
    }
}
