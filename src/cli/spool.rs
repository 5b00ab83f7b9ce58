//! `spool`: what waits to be pushed, and the drainer for those who run no `forward`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use tokio_util::sync::CancellationToken;

use super::paths::store_path;
use super::{ConfigArgs, Ended, log, out, runtime, status};
use crate::daemon;
use crate::nix::{StoreDir, StorePath};
use crate::spool::{self, Entry, Left, Spool, View};
use crate::units::ByteSize;

/// What of a long list is shown to people; `--json` has all.
const SHOWN_MAX: usize = 10;

#[derive(Debug, Subcommand)]
pub(super) enum SpoolCommand {
    /// Show what waits, since when, and why.
    Status {
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Push what waits and what comes, until told to end: what `snowberry forward` does too.
    Run {
        /// Try everything once, and fail if something still waits then.
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Try everything that waits now, whatever it rests for.
    Retry(ConfigArgs),
    /// Take paths out of the spool: they are not pushed, and may be garbage-collected.
    Forget {
        /// Store paths, or links to them such as ./result.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry spool status
      what waits, and why
  snowberry spool run --once
      push it now; fails if something still waits afterwards
  snowberry spool retry
      let the running drainer try again at once
  snowberry spool forget /nix/store/...-large-1.0
      do not push that

`snowberry hook` puts in what Nix builds, `snowberry forward` or `snowberry spool run` pushes it;
one of them at a time, a second one waits. For whoever owns spool.path, which is root on most
machines.";

pub(super) fn run(command: &SpoolCommand) -> anyhow::Result<Ended> {
    match command {
        SpoolCommand::Status { json, config } => {
            let view = spool::view(&config.load()?.spool)?;
            if *json {
                out::line(&as_json(&view).to_string())?;
            } else {
                out::bytes(as_text(&view, now_s()).as_bytes())?;
            }
            Ok(Ended::Well)
        }
        SpoolCommand::Run { once, config } => drain(*once, config),
        SpoolCommand::Retry(config) => {
            let config = config.load()?.spool;
            spool::retry(&config)?;
            if !spool::view(&config)?.is_drained {
                out::note(
                    "nobody drains the spool now: start `snowberry forward`, or run \
                           `snowberry spool run`",
                );
            }
            Ok(Ended::Well)
        }
        SpoolCommand::Forget { paths, config } => {
            let config = config.load()?.spool;
            let mut forgotten = 0;
            for path in paths {
                forgotten += spool::forget(&config, &named(path, &config.store_dir)?)?;
            }
            out::line(&format!("{forgotten} forgotten"))?;
            Ok(Ended::Well)
        }
    }
}

/// A path that is gone can be named all the same.
fn named(path: &Path, store_dir: &StoreDir) -> anyhow::Result<StorePath> {
    let text = path.to_str().unwrap_or_default();
    let plain = store_dir.strip(text).or_else(|_| StorePath::parse(text));
    plain.or_else(|_| store_path(path, store_dir))
}

fn drain(once: bool, config: &ConfigArgs) -> anyhow::Result<Ended> {
    let config = config.load()?;
    log::start()?;
    let runtime = runtime::one_thread()?;
    let spool = Spool::open(config.spool)?;
    let stop = CancellationToken::new();
    let ended = runtime::wait(&runtime, async {
        let work = async {
            if once {
                return spool.once(&stop).await.map(left).map_err(anyhow::Error::new);
            }
            spool.run(stop.clone()).await;
            Ok(Ended::Well)
        };
        tokio::select! {
            ended = Box::pin(work) => ended,
            signals = daemon::second_signal(stop.clone()) => {
                signals.and(Err(anyhow::anyhow!("ended at once by a second signal")))
            }
        }
    });
    // A look at the folder that still runs must not hold up the end.
    runtime.shutdown_background();
    ended
}

fn left(left: Left) -> Ended {
    match left {
        Left::Nothing => Ended::Well,
        Left::Waiting(count, why) => {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            out::note(&format!("{count} still wait{why}"));
            Ended::Badly
        }
        Left::Dropped(count) => {
            out::note(&format!("{count} were dropped, beyond spool.age-max or spool.bytes-max"));
            Ended::Badly
        }
        Left::ToAnother => {
            out::note("another process drains the spool: `snowberry spool retry` hurries it");
            Ended::Badly
        }
    }
}

fn as_json(view: &View) -> serde_json::Value {
    let status = &view.status;
    let waiting = view.entries.iter();
    serde_json::json!({
        "path": view.path,
        "to": view.to.to_string(),
        "drained": view.is_drained,
        "waiting": waiting.map(|it| serde_json::json!({
            "path": it.path.base_name(), "since_s": it.noted_s
        })).collect::<Vec<_>>(),
        "waiting_bytes": status.waiting_bytes,
        "trouble": status.trouble,
        "next_try_s": status.next_try_s,
        "parked": status.parked,
        "unheld": status.unheld,
        "pushed": status.pushed,
        "pushed_at_s": status.pushed_at_s,
        "dropped": status.dropped,
        "gone": status.gone,
        "last_dropped": status.last_dropped,
    })
}

/// For people.
fn as_text(view: &View, now_s: u64) -> String {
    let status = &view.status;
    let ago = |at_s: u64| status::span(now_s.saturating_sub(at_s));
    let mut lines = Vec::new();
    let mut line = |name: &str, shown: String| lines.push(format!("{name:<12}{shown}"));
    line("spool", view.path.display().to_string());
    line("pushed to", view.to.to_string());
    let nobody = "by nobody now: start `snowberry forward`, or run `snowberry spool run`";
    line("drained", if view.is_drained { "yes".to_owned() } else { nobody.to_owned() });
    match view.entries.first() {
        None => line("waiting", "nothing".to_owned()),
        Some(oldest) => {
            let bytes = Some(status.waiting_bytes).filter(|bytes| *bytes > 0).map(ByteSize);
            let bytes = bytes.map(|bytes| format!(", {bytes}")).unwrap_or_default();
            let oldest_for = status::span(oldest.age_s(now_s));
            line("waiting", format!("{}{bytes}, the oldest for {oldest_for}", view.entries.len()));
        }
    }
    let path_of = |entry: &Entry| entry.path.to_string();
    for it in shown(&view.entries, path_of) {
        line("", it);
    }
    if let Some(trouble) = &status.trouble {
        line("trouble", format!("{}, for {}", trouble.message, ago(trouble.since_s)));
    }
    if let Some(next_s) = status.next_try_s.filter(|next_s| view.is_drained && *next_s > now_s) {
        line("next try", format!("in {}", status::span(next_s - now_s)));
    }
    if let Some(unheld) = &status.unheld {
        line("unkept", format!("garbage collection may take what waits: {unheld}"));
    }
    if !status.parked.is_empty() {
        line("parked", format!("{} that failed while others went", status.parked.len()));
    }
    for it in shown(&status.parked, |it| format!("{}: {}", it.path, it.reason)) {
        line("", it);
    }
    if let Some(at_s) = status.pushed_at_s {
        line("pushed", format!("{}, the last {} ago", status.pushed, ago(at_s)));
    }
    if status.dropped + status.gone > 0 {
        let (dropped, gone) = (status.dropped, status.gone);
        line("lost", format!("{dropped} dropped for age or bytes, {gone} gone from the store"));
    }
    for dropped in &status.last_dropped {
        line("", format!("{}: {}, {} ago", dropped.path, dropped.why, ago(dropped.at_s)));
    }
    lines.join("\n") + "\n"
}

/// The first of a list, and how many are not shown.
fn shown<T>(all: &[T], as_line: impl Fn(&T) -> String) -> Vec<String> {
    let mut lines: Vec<String> = all.iter().take(SHOWN_MAX).map(as_line).collect();
    let more = all.len().saturating_sub(SHOWN_MAX);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Dropped, Parked, Status, Trouble};

    const HASH: &str = "9d82wl65gr2phigksgzzimbdf176rx4c";
    const NOW_S: u64 = 1_795_000_000;

    fn waiting(count: usize) -> Vec<Entry> {
        let path = |n| StorePath::parse(&format!("{HASH}-p{n:02}")).unwrap();
        (0..count).map(|n| Entry { noted_s: NOW_S - 65, path: path(n) }).collect()
    }

    fn of(entries: Vec<Entry>, status: Status) -> View {
        let to = "http://127.0.0.1:8501".parse().unwrap();
        View { path: "/spool".into(), to, is_drained: true, entries, status }
    }

    #[test]
    fn people_read_what_waits_and_why() {
        let status = Status {
            trouble: Some(Trouble { message: "the cache is away".into(), since_s: NOW_S - 60 }),
            next_try_s: Some(NOW_S + 40),
            parked: vec![Parked {
                path: format!("{HASH}-bad"),
                reason: "no references".into(),
                since_s: 1,
                due_s: 2,
            }],
            pushed: 7,
            pushed_at_s: Some(NOW_S - 3600),
            dropped: 1,
            last_dropped: vec![Dropped {
                path: format!("{HASH}-old"),
                why: "it waited longer than spool.age-max".into(),
                at_s: NOW_S - 5,
            }],
            waiting_bytes: 2048,
            ..Status::default()
        };
        let wanted = format!(
            "\
spool       /spool
pushed to   http://127.0.0.1:8501/push
drained     yes
waiting     1, 2.0 KiB, the oldest for 1 min 5 s
            {HASH}-p00
trouble     the cache is away, for 1 min 0 s
next try    in 40 s
parked      1 that failed while others went
            {HASH}-bad: no references
pushed      7, the last 1 h 0 min ago
lost        1 dropped for age or bytes, 0 gone from the store
            {HASH}-old: it waited longer than spool.age-max, 5 s ago
"
        );
        assert_eq!(as_text(&of(waiting(1), status), NOW_S), wanted);
    }

    #[test]
    fn long_lists_are_cut_for_people_and_whole_for_scripts() {
        let view = of(waiting(1000), Status::default());
        let text = as_text(&view, NOW_S);
        assert!(text.ends_with("            and 990 more\n"), "{text}");
        assert_eq!(as_json(&view)["waiting"].as_array().unwrap().len(), 1000);
        let empty = as_text(&of(Vec::new(), Status::default()), NOW_S);
        assert!(empty.ends_with("waiting     nothing\n"), "{empty}");
    }

    #[test]
    fn a_path_can_be_named_in_each_way_also_when_it_is_gone() {
        let store_dir = StoreDir::default();
        for text in [format!("/nix/store/{HASH}-a"), format!("{HASH}-a")] {
            assert_eq!(named(Path::new(&text), &store_dir).unwrap().name(), "a");
        }
        assert!(named(Path::new("/nonexistent"), &store_dir).is_err());
    }
}
