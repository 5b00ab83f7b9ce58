//! `import`: has the running cache take what is in a folder, such as a USB stick.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use hyper::body::Bytes;
use serde_json::Value;

use super::admin::{self, Reach};
use super::progress::{At, Progress};
use super::{ConfigArgs, Ended, out, paths, runtime};
use crate::units::ByteSize;

/// Paths that are named on a terminal; --json names more.
const NAMED_MAX: usize = 20;

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// A folder that is a binary cache, on the machine of the cache.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only these paths and what they refer to: store paths, links to them, hashes; - reads lines of
    /// stdin.
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// Keys that count for this import, besides those of the upstreams and of the cache itself; with
    /// spaces between, as in nix.conf.
    #[arg(long, value_name = "KEYS", value_delimiter = ' ')]
    trusted_public_keys: Vec<String>,
    /// Print what came of it as JSON.
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
  snowberry import /mnt/stick
      all that is there and that a key of an upstream has signed
  snowberry import /mnt/stick --trusted-public-keys 'tower-1:m0J/oDlLEuG6ezc6MzmpLCN2MYjssO3NMIlr9JdxkTs='
      and what this key has signed
  snowberry import /mnt/stick /nix/store/9d82wl65gr2phigksgzzimbdf176rx4c-hello-2.12

Each NAR is unpacked and compared with what was signed. What was taken counts as fetched: it is not
pushed, and makes room when others need it. The cache itself reads the folder, as the user that it
runs as: mount a stick where everybody may read it. It may be interrupted and given again.

Exit codes: 0 all is here, 1 something was refused and is named.

For root, or a member of the group of the running cache's admin socket.";

pub(super) fn run(args: &ImportArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let dir = std::path::absolute(&args.dir).context("where is this folder?")?;
    let dir = dir.to_str().context("the name of the folder is no text")?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("dir", dir);
    for key in args.trusted_public_keys.iter().filter(|key| !key.is_empty()) {
        query.append_pair("trusted-key", key);
    }
    let target = format!("/import?{}", query.finish());
    let named = paths::named(&args.paths, &config.store_dir)?;
    anyhow::ensure!(args.paths.is_empty() || !named.is_empty(), "no path is named");
    let keys: Vec<String> = named.iter().map(|(key, _)| key.to_string()).collect();
    let sent = keys.join("\n");
    let mut progress = Progress::new(args.quiet);
    let told = |told: &Value| progress.at(&At::of(told));
    let followed = admin::follow(&config, Reach::Machine, (&target, Bytes::from(sent)), told);
    let done = runtime::alone(followed)??;
    drop(progress);
    if args.json {
        out::line(&done.to_string())?;
    } else {
        out::bytes(text(&done).as_bytes())?;
    }
    let refused = done.get("refused_count").and_then(Value::as_u64);
    Ok(if refused == Some(0) { Ended::Well } else { Ended::Badly })
}

fn text(done: &Value) -> String {
    let number = |name: &str| done.get(name).and_then(Value::as_u64).unwrap_or_default();
    let list = |name: &str| done.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut lines = vec![format!(
        "{} paths taken, {}; {} were here",
        number("taken"),
        ByteSize(number("taken_bytes")),
        number("there")
    )];
    let string = |value: &Value, name: &str| {
        value.get(name).and_then(Value::as_str).unwrap_or("?").to_owned()
    };
    let refused = list("refused");
    if number("refused_count") > 0 {
        lines.push(format!("{} refused:", number("refused_count")));
    }
    for one in refused.iter().take(NAMED_MAX) {
        lines.push(format!("  {}: {}", string(one, "path"), string(one, "why")));
    }
    let missing = list("missing");
    if number("missing_count") > 0 {
        let count = number("missing_count");
        lines.push(format!("{count} that are referred to are neither here nor there:"));
    }
    for one in missing.iter().take(NAMED_MAX).filter_map(Value::as_str) {
        lines.push(format!("  {one}"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_read_what_was_taken_and_what_was_not() {
        let done = json!({"taken": 3, "taken_bytes": 2048, "there": 1, "refused_count": 1,
            "refused": [{"path": "abc-hello", "why": "no trusted key signed it"}],
            "missing_count": 1, "missing": ["def-libc"]});
        let wanted = "\
3 paths taken, 2.0 KiB; 1 were here
1 refused:
  abc-hello: no trusted key signed it
1 that are referred to are neither here nor there:
  def-libc
";
        assert_eq!(text(&done), wanted);
    }
}
