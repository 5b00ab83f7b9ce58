//! `scrub`: has the running cache read all that it holds, now.

use clap::Args;
use hyper::body::Bytes;
use serde_json::Value;

use super::admin::{self, Reach};
use super::progress::{At, Progress};
use super::{ConfigArgs, Ended, out, runtime};

#[derive(Debug, Args)]
pub(super) struct ScrubArgs {
    /// Fetch again at once what turns out damaged, and wait for it; otherwise that is done behind.
    #[arg(long)]
    repair: bool,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry scrub
      read everything and withdraw what is damaged, for instance after a card made trouble
  snowberry scrub --repair
      and fetch that again from whoever has it

The cache does this by itself within a month, see scrub.every in snowberry.toml(5). It may be
interrupted: given again it goes on where it was. While clients read, it rests.

Exit codes: 0 all is right, or right again, 1 something was damaged.

For root, or a member of the group of the running cache's admin socket.";

pub(super) fn run(args: &ScrubArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let target = if args.repair { "/scrub?repair=true" } else { "/scrub" };
    let mut progress = Progress::new(args.quiet);
    let told = |told: &Value| progress.at(&At::of(told));
    let done =
        runtime::alone(admin::follow(&config, Reach::Machine, (target, Bytes::new()), told))??;
    drop(progress);
    if args.json {
        out::line(&done.to_string())?;
    } else {
        out::line(&text(&done))?;
    }
    let number = |name: &str| done.get(name).and_then(Value::as_u64).unwrap_or_default();
    let left = number("found").saturating_sub(number("repaired")) + number("unrepaired");
    Ok(if left + number("passed_over") == 0 { Ended::Well } else { Ended::Badly })
}

fn text(done: &Value) -> String {
    let number = |name: &str| done.get(name).and_then(Value::as_u64).unwrap_or_default();
    let resumed = done.get("resumed").and_then(Value::as_bool) == Some(true);
    let left = if resumed { " of those that were left" } else { "" };
    let mut parts = vec![format!("{} NARs read{left}", number("checked"))];
    if number("found") == 0 {
        parts.push("all of them right".to_owned());
    }
    for (name, words) in [
        ("found", "damaged and withdrawn"),
        ("repaired", "fetched again"),
        ("unrepaired", "that could not be fetched again"),
        ("passed_over", "that could not be looked at now"),
    ] {
        let count = number(name);
        parts.extend((count > 0).then(|| format!("{count} {words}")));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_read_what_was_found() {
        let right = json!({"resumed": false, "checked": 7, "found": 0, "repaired": 0});
        assert_eq!(text(&right), "7 NARs read, all of them right");
        let wrong = json!({"resumed": true, "checked": 7, "passed_over": 1, "found": 3,
            "repaired": 2, "unrepaired": 1});
        let wanted = "7 NARs read of those that were left, 3 damaged and withdrawn, 2 fetched \
                      again, 1 that could not be fetched again, 1 that could not be looked at now";
        assert_eq!(text(&wrong), wanted);
    }
}
