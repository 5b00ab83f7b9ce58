//! `reload`: a running cache reads its configuration again.

use hyper::Method;
use serde_json::Value;

use super::admin::{self, Reach};
use super::{ConfigArgs, Ended, out};

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry check && snowberry reload
      look first what is wrong, then let the running cache have it
  systemctl reload snowberry
      the same as snowberry reload

What may change while it runs: the upstreams with all their keys, push.limit, and the cache's own keys.
Transfers under way go on as they began. Anything else is named, and waits for the next start. Where
anything in the configuration is wrong nothing changes. SIGHUP does the same and tells the log.

For root, or a member of the group of the running cache's admin socket.";

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<Ended> {
    let answer = admin::command(&args.load()?, Reach::Machine, Method::POST, "/reload")?;
    let list = |name: &str| {
        let keys = answer.get(name).and_then(Value::as_array).map(Vec::as_slice);
        let keys: Vec<&str> = keys.unwrap_or_default().iter().filter_map(Value::as_str).collect();
        keys.join(", ")
    };
    let changed = list("changed");
    out::line(&match changed.as_str() {
        "" => "nothing has changed that may change while it runs".to_owned(),
        changed => format!("changed: {changed}"),
    })?;
    let needs_restart = list("needs_restart");
    if !needs_restart.is_empty() {
        out::line(&format!("changed in the file, and needs a restart: {needs_restart}"))?;
    }
    Ok(Ended::Well)
}
