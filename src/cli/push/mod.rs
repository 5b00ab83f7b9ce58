//! `push`: hands paths of this machine's Nix store to a cache, and asks or tells a running cache
//! about what it carries up.

mod copy;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;

use super::admin::{self, Reach};
use super::{ConfigArgs, Ended, out, status};
use crate::units::ByteSize;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct PushArgs {
    /// Paths in the Nix store, or links to them such as ./result. Their closures go with them.
    #[arg(required_unless_present = "status", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The cache that takes them.
    #[arg(long, value_name = "URL", default_value = copy::DEFAULT_TO)]
    to: String,
    /// A file with the token; without it Nix looks into its netrc-file.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Show what this machine's running cache has still to carry up, instead.
    #[arg(long, conflicts_with_all = ["paths", "token_file"])]
    status: bool,
    /// Print the status as JSON.
    #[arg(long, requires = "status")]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: Option<PushCommand>,
}

#[derive(Debug, Subcommand)]
enum PushCommand {
    /// Let the running cache try every push target now, whatever it waits for.
    #[command(after_help = RUNNING_HELP)]
    Retry(ConfigArgs),
    /// Let the running cache forget what waits for a push target: it will not be carried there.
    #[command(after_help = FORGET_HELP)]
    Forget {
        /// The target, as `push --status` shows it.
        #[arg(long, value_name = "URL")]
        target: String,
        /// Only what is lost: its bytes turned out damaged.
        #[arg(long)]
        lost: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

const RUNNING_HELP: &str = "\
For root, or a member of the group of the running cache's admin socket.";

const FORGET_HELP: &str = "\
The paths stay in this cache. For a target that was taken out of the configuration, or to say that
a loss was seen.

Examples:
  snowberry push forget --target 's3://old-cache?endpoint=minio.example'
  snowberry push forget --target 's3://nix-cache?endpoint=minio.example' --lost

For root, or a member of the group of the running cache's admin socket.";

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry push ./result
      to the cache on this machine, with the token of Nix's netrc-file
  snowberry push --to http://192.168.1.5 --token-file tower.token ./result
      to another machine's, which must have push.plain = true for that
  snowberry push --status
      what this machine's cache has still to carry up
  snowberry push retry
      without waiting for the next try

It runs `nix copy`, which shows the progress, and asks the cache afterwards whether it has them.
When it ends well they are on the cache's disk, and in the queue of each push target.";

pub(super) fn run(args: &PushArgs) -> anyhow::Result<Ended> {
    match &args.command {
        Some(PushCommand::Retry(config)) => {
            admin::command(&config.load()?, Reach::Machine, Method::POST, "/retry")?;
            Ok(Ended::Well)
        }
        Some(PushCommand::Forget { target, lost, config }) => {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("target", target)
                .append_pair("lost", if *lost { "true" } else { "false" })
                .finish();
            let asked = format!("/forget?{query}");
            let answer = admin::command(&config.load()?, Reach::Machine, Method::POST, &asked)?;
            let forgotten = answer.get("forgotten").and_then(Value::as_u64).unwrap_or_default();
            out::line(&format!("{forgotten} forgotten"))?;
            Ok(Ended::Well)
        }
        None if args.status => queue(args),
        None => {
            let store_dir = args.config.load()?.store_dir;
            copy::run(&args.paths, &args.to, args.token_file.as_deref(), &store_dir)
        }
    }
}

fn queue(args: &PushArgs) -> anyhow::Result<Ended> {
    let answer = admin::command(&args.config.load()?, Reach::Machine, Method::GET, "/queue")?;
    if args.json {
        out::line(&answer.to_string())?;
    } else {
        out::bytes(text(&answer).as_bytes())?;
    }
    Ok(Ended::Well)
}

/// For people: what is missing in the answer is left out, so that versions may differ.
fn text(queue: &Value) -> String {
    let targets = queue.get("targets").and_then(Value::as_array).map(Vec::as_slice);
    let lines: Vec<String> = targets.unwrap_or_default().iter().flat_map(target_lines).collect();
    if lines.is_empty() {
        return "no push target: no upstream has push = true, and nothing waits\n".to_owned();
    }
    lines.join("\n") + "\n"
}

fn target_lines(target: &Value) -> Vec<String> {
    let number = |name: &str| target.get(name).and_then(Value::as_u64).filter(|it| *it > 0);
    let string = |name: &str| target.get(name).and_then(Value::as_str);
    let url = string("target").unwrap_or("?");
    let state = match string("state") {
        Some("gone") => "not in the configuration any more (snowberry push forget --target URL)",
        Some("stopped") => "refuses, goes on when it is mended",
        Some(state) => state,
        None => "?",
    };
    let mut lines = vec![format!("{url}: {state}")];
    let mut line = |name: &str, shown: Option<String>| {
        if let Some(shown) = shown {
            lines.push(format!("  {name:<11}{shown}"));
        }
    };
    line(
        "waiting",
        number("waiting").map(|waiting| {
            let bytes = ByteSize(number("waiting_bytes").unwrap_or_default());
            let oldest = number("oldest_s").map(status::span);
            let oldest = oldest.map(|oldest| format!(", the oldest for {oldest}"));
            format!("{waiting} objects, {bytes}{}", oldest.unwrap_or_default())
        }),
    );
    line(
        "parked",
        number("parked").map(|parked| {
            format!("{parked} that the target does not take, or what refers to them")
        }),
    );
    line(
        "lost",
        number("lost")
            .map(|lost| format!("{lost} whose bytes are damaged: build and push them again")),
    );
    line(
        "pushed",
        number("pushed").map(|pushed| {
            let bytes = ByteSize(number("pushed_bytes").unwrap_or_default());
            format!("{pushed} objects, {bytes} since the start")
        }),
    );
    for sending in target.get("sending").and_then(Value::as_array).into_iter().flatten() {
        line("sending", sending.as_str().map(str::to_owned));
    }
    for differs in target.get("differs").and_then(Value::as_array).into_iter().flatten() {
        let shown =
            differs.as_str().map(|it| format!("{it}: known here or elsewhere with another NAR"));
        line("not put", shown);
    }
    line("next try", number("retry_in_s").map(|wait| format!("in {}", status::span(wait))));
    line("last error", string("last_error").map(str::to_owned));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_waits_and_why() {
        let queue = serde_json::json!({"targets": [
            {"target": "s3://nix-cache", "state": "waiting", "waiting": 3, "waiting_bytes": 2048,
             "oldest_s": 65, "parked": 0, "lost": 1, "pushed": 0, "pushed_bytes": 0,
             "sending": [], "differs": ["made"], "last_error": "connection refused", "retry_in_s": 40},
            {"target": "file:///mnt/stick", "state": "idle"},
        ]});
        let wanted = "\
s3://nix-cache: waiting
  waiting    3 objects, 2.0 KiB, the oldest for 1 min 5 s
  lost       1 whose bytes are damaged: build and push them again
  not put    made: known here or elsewhere with another NAR
  next try   in 40 s
  last error connection refused
file:///mnt/stick: idle
";
        assert_eq!(text(&queue), wanted);
        assert!(text(&serde_json::json!({"targets": []})).starts_with("no push target"));
    }
}
