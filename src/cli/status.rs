//! `status`: asks a running cache over plain HTTP and shows its answer.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::admin::{self, Reach};
use super::{ConfigArgs, Ended, clients, errand, evict, exchange, out, runtime};
use crate::config::{self, Config};
use crate::daemon;
use crate::units::ByteSize;

/// A cache on the same network that takes longer is not well, and that is an answer too.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// NARs that go next which are shown: `evict --dry-run` lists more.
const NEXT_OUT: usize = 5;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The cache; without it the one that the configuration describes.
    #[arg(long, value_name = "http://HOST[:PORT]")]
    url: Option<String>,
    /// Print the answer as it is.
    #[arg(long)]
    json: bool,
    /// Show who asked, and the latest paths. Only on the cache's own machine, over its admin socket.
    #[arg(long, conflicts_with = "url")]
    clients: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<Ended> {
    if args.clients {
        return clients::run(&args.config.load()?, args.json);
    }
    let authority = match &args.url {
        Some(url) => authority(url)?,
        None => of_config(&args.config.load()?)?,
    };
    let runtime = runtime::one_thread()?;
    let answer = runtime::wait(&runtime, async {
        tokio::time::timeout(ANSWER_WAIT, exchange::get(&authority, "/api/status")).await
    })
    .with_context(|| format!("http://{authority} did not answer within {ANSWER_WAIT:?}"))
    .and_then(|answer| answer)
    .with_context(|| format!("ask http://{authority} (is `snowberry serve` running there?)"))?;
    if args.json {
        out::bytes(&answer)?;
        if !answer.ends_with(b"\n") {
            out::line("")?;
        }
    } else {
        let value: Value = serde_json::from_slice(&answer).context("read the answer")?;
        out::bytes(text(&value).as_bytes())?;
        if args.url.is_none() {
            out::bytes(next_out(&args.config.load()?).as_bytes())?;
        }
    }
    Ok(Ended::Well)
}

/// What goes next when room is needed, for those who may ask; nothing for others.
fn next_out(config: &Config) -> String {
    let target = format!("/next-out?count={NEXT_OUT}");
    let answer = admin::command(config, Reach::Machine, Method::GET, &target);
    let Ok(answer) = answer else { return String::new() };
    let next = errand::list(&answer, "next");
    let lines = next.iter().map(|gone| format!("{:<12}{}\n", "goes next", evict::told(gone)));
    lines.collect()
}

/// Host and port of `http://HOST[:PORT][/]`.
pub(super) fn authority(url: &str) -> anyhow::Result<String> {
    let url = url::Url::parse(url).with_context(|| format!("{url:?} is no URL"))?;
    anyhow::ensure!(url.scheme() == "http", "only http:// can be asked, not {}://", url.scheme());
    let host = url.host_str().context("the URL names no host")?;
    Ok(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// Where the cache of this configuration can be asked from this machine.
pub(super) fn of_config(config: &Config) -> anyhow::Result<String> {
    let default = [config::DEFAULT_LISTEN.parse().expect("a constant that is an address")];
    let listen: &[SocketAddr] = config.listen.as_deref().unwrap_or(&default);
    let address = listen
        .iter()
        .find(|address| address.port() != 0)
        .context("the configuration listens on port 0: say where with --url")?;
    Ok(daemon::near(*address).to_string())
}

/// For people: what is missing in the answer is left out, so that versions may differ.
fn text(status: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, shown: Option<String>| {
        if let Some(shown) = shown {
            writeln!(text, "{name:<12}{shown}").expect("writing to a String cannot fail");
        }
    };
    let at = |pointer: &str| status.pointer(pointer);
    let number = |pointer: &str| at(pointer).and_then(Value::as_u64);
    let string = |pointer: &str| at(pointer).and_then(Value::as_str).map(str::to_owned);
    let bytes = |pointer: &str| number(pointer).map(|bytes| ByteSize(bytes).to_string());
    line("version", string("/version"));
    line("name", string("/name"));
    line("found as", string("/local_name"));
    line("public key", string("/public_key"));
    line("up for", number("/uptime_s").map(span));
    line("offline for", number("/offline_since_s").map(span));
    let used = bytes("/store/used_bytes").zip(bytes("/store/budget_bytes"));
    line("store", used.map(|(used, budget)| format!("{used} of {budget}")));
    let held = number("/store/nars").zip(number("/store/narinfos"));
    line("held", held.map(|(nars, narinfos)| format!("{nars} NARs, {narinfos} narinfos")));
    line("full", at("/store/days_to_full").and_then(full));
    let pins = number("/store/pins").filter(|pins| *pins > 0).zip(bytes("/store/pinned_bytes"));
    line("pinned", pins.map(|(pins, bytes)| format!("{bytes} by {}", errand::count(pins, "pin"))));
    line("written", bytes("/store/written_bytes"));
    line("scrub", scrub_line(&at));
    let traffic = number("/traffic/hits").zip(number("/traffic/misses"));
    let traffic = traffic.zip(number("/traffic/absent"));
    line(
        "answers",
        traffic.map(|((hits, misses), absent)| {
            format!("{hits} hits, {misses} misses, {absent} absent")
        }),
    );
    let moved = bytes("/traffic/served_bytes").zip(bytes("/traffic/fetched_bytes"));
    line("moved", moved.map(|(served, fetched)| format!("{served} served, {fetched} fetched")));
    for (name, when) in [("today", "today"), ("week", "7 days"), ("ever", "in all")] {
        line(when, tally(at(&format!("/traffic/{name}"))));
    }
    let waiting = number("/queue/waiting").filter(|waiting| *waiting > 0);
    line(
        "to push",
        waiting.map(|waiting| {
            let bytes = bytes("/queue/waiting_bytes").unwrap_or_default();
            let oldest = number("/queue/oldest_s").map(span);
            let oldest = oldest.map(|oldest| format!(", the oldest for {oldest}"));
            format!("{waiting} objects, {bytes}{}", oldest.unwrap_or_default())
        }),
    );
    for stopped in at("/queue/stopped").and_then(Value::as_array).into_iter().flatten() {
        line("push target", stopped.as_str().map(|url| format!("{url}: refuses")));
    }
    line("disk free", bytes("/host/disk_free_bytes"));
    line("memory", bytes("/host/memory_bytes"));
    let degrees = at("/host/temperature_c").and_then(Value::as_f64);
    line("temperature", degrees.map(|degrees| format!("{degrees:.0} C")));
    line("appliance", appliance_line(&at));
    for upstream in at("/upstreams").and_then(Value::as_array).into_iter().flatten() {
        line("upstream", upstream_line(upstream));
    }
    for trouble in at("/troubles").and_then(Value::as_array).into_iter().flatten() {
        line("not well", trouble_line(trouble));
    }
    text
}

fn full(days: &Value) -> Option<String> {
    Some(match days.as_f64()? {
        0.0..1.0 => "now: what was not used for longest makes room".to_owned(),
        days => format!("in {days:.0} days"),
    })
}

fn trouble_line(trouble: &Value) -> Option<String> {
    let what = trouble.get("what")?.as_str()?;
    let since_s = trouble.get("since_s").and_then(Value::as_u64);
    let since = since_s.map(|since_s| format!(" (for {})", span(since_s))).unwrap_or_default();
    Some(format!("{what}{since}"))
}

fn tally(tally: Option<&Value>) -> Option<String> {
    let number = |name: &str| tally?.get(name)?.as_u64();
    let (hits, misses) = (number("hits")?, number("misses")?);
    let [served, fetched] = [number("served_bytes")?, number("fetched_bytes")?].map(ByteSize);
    Some(format!("{hits} hits, {misses} misses, {served} served, {fetched} fetched"))
}

fn scrub_line<'a>(at: &impl Fn(&str) -> Option<&'a Value>) -> Option<String> {
    let number = |name: &str| at(&format!("/scrub/{name}")).and_then(Value::as_u64);
    let bytes = |name: &str| Some(ByteSize(number(name)?));
    let mut parts = vec![match at("/scrub/state")?.as_str()? {
        "off" => "only when asked for".to_owned(),
        _ => format!("{} of {} read", bytes("checked_bytes")?, bytes("of_bytes")?),
    }];
    parts.extend(number("last_done_s").map(|since| format!("all of it {} ago", span(since))));
    if let Some(found) = number("found").filter(|found| *found > 0) {
        let repaired = number("repaired").unwrap_or_default();
        parts.push(format!("{found} damaged so far, {repaired} fetched again"));
    }
    let lost = number("unrepaired").filter(|lost| *lost > 0);
    parts.extend(lost.map(|lost| format!("{lost} not to be had so far")));
    Some(parts.join(", "))
}

fn appliance_line<'a>(at: &impl Fn(&str) -> Option<&'a Value>) -> Option<String> {
    let string = |pointer: &str| at(pointer).and_then(Value::as_str);
    let mut shown = format!("image {}", string("/appliance/version")?);
    if let Some(slot) = string("/appliance/slot") {
        shown.push_str(" in slot ");
        shown.push_str(slot);
    }
    for (pointer, before) in [
        ("/appliance/state", ", update: "),
        ("/appliance/next", ", next: "),
        ("/appliance/last_error", ", last error: "),
    ] {
        if let Some(word) = string(pointer) {
            shown.push_str(before);
            shown.push_str(word);
        }
    }
    Some(shown)
}

fn upstream_line(upstream: &Value) -> Option<String> {
    let url = upstream.get("url")?.as_str()?;
    let state = upstream.get("state")?.as_str()?;
    let mut shown = format!("{url}: {state}");
    if let Some(since_s) = upstream.get("since_s").and_then(Value::as_u64) {
        shown.push_str(" for ");
        shown.push_str(&span(since_s));
    }
    if let Some(latency_ms) = upstream.get("latency_ms").and_then(Value::as_u64) {
        write!(shown, ", answers in {latency_ms} ms").expect("writing to a String cannot fail");
    }
    if let Some(error) = upstream.get("last_error").and_then(Value::as_str) {
        shown.push_str(", last error: ");
        shown.push_str(error);
    }
    Some(shown)
}

/// The two largest units: more is noise.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_url_without_port_is_asked_at_port_80_under_its_bare_name() {
        assert_eq!(authority("http://snowberry.local/").unwrap(), "snowberry.local");
        assert_eq!(authority("http://[::1]:8500").unwrap(), "[::1]:8500");
        assert!(authority("https://snowberry.local").is_err());
        assert!(authority("snowberry.local").is_err());
    }

    #[test]
    fn every_address_is_asked_on_this_machine() {
        let surroundings = config::Surroundings { home: Some("/ada".into()), ..Default::default() };
        let check = |listen: &str, wanted: Option<&str>| {
            let config = config::load(None, &[format!("listen={listen}")], &surroundings).unwrap();
            assert_eq!(of_config(&config).ok().as_deref(), wanted, "{listen}");
        };
        check("[\"[::]:80\"]", Some("[::1]:80"));
        check("[\"0.0.0.0:81\"]", Some("127.0.0.1:81"));
        check("[\"192.168.1.2:82\"]", Some("192.168.1.2:82"));
        check("[\"127.0.0.1:0\"]", None);
    }

    #[test]
    fn people_read_units_and_not_bytes() {
        let status = serde_json::json!({
            "version": "0.1.0", "name": "snowberry", "public_key": null, "uptime_s": 3720,
            "offline_since_s": null,
            "store": {"budget_bytes": 1_u64 << 30, "used_bytes": 1536 << 10, "nars": 2,
                "narinfos": 3, "pinned_bytes": 0, "written_bytes": 0},
            "scrub": {"state": "idle", "checked_bytes": 1024, "of_bytes": 2048, "last_done_s": 60,
                "found": 2, "repaired": 1, "unrepaired": 1},
            "queue": {"waiting": 2, "waiting_bytes": 1024, "oldest_s": 61,
                "stopped": ["s3://nix-cache"]},
            "upstreams": [{"url": "https://cache.example", "state": "down", "since_s": 65,
                "push": false, "last_error": "connection refused"}],
        });
        let wanted = "\
version     0.1.0
name        snowberry
up for      1 h 2 min
store       1.5 MiB of 1.0 GiB
held        2 NARs, 3 narinfos
written     0 B
scrub       1.0 KiB of 2.0 KiB read, all of it 1 min 0 s ago, 2 damaged so far, 1 fetched again, 1 not to be had so far
to push     2 objects, 1.0 KiB, the oldest for 1 min 1 s
push target s3://nix-cache: refuses
upstream    https://cache.example: down for 1 min 5 s, last error: connection refused
";
        assert_eq!(text(&status), wanted);
    }

    #[test]
    fn today_the_week_and_what_is_wrong_are_told() {
        let tally = json!({"hits": 3, "misses": 1, "absent": 0, "served_bytes": 4096, "fetched_bytes": 1024});
        let status = json!({
            "traffic": {"today": tally, "week": tally},
            "store": {"days_to_full": 12.4},
            "host": {"temperature_c": 61.7},
            "troubles": [{"what": "The clock is off.", "since_s": 65}],
        });
        let wanted = "\
full        in 12 days
today       3 hits, 1 misses, 4.0 KiB served, 1.0 KiB fetched
7 days      3 hits, 1 misses, 4.0 KiB served, 1.0 KiB fetched
temperature 62 C
not well    The clock is off. (for 1 min 5 s)
";
        assert_eq!(text(&status), wanted);
    }

    #[test]
    fn an_appliance_is_told_in_one_line() {
        let status = json!({ "appliance": {
            "slot": "b", "version": "0.2.0", "trial": false, "state": "rolled-back", "next": null,
            "last_error": "0.3.0 did not come up", "since": 7, "settings_errors": [],
        } });
        let wanted = "appliance   image 0.2.0 in slot b, update: rolled-back, last error: 0.3.0 did \
                      not come up\n";
        assert_eq!(text(&status), wanted);
        assert_eq!(text(&json!({ "appliance": null })), "");
    }
}
