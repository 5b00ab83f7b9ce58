//! `status --clients`: who asked, and what for, from the admin socket of a running cache.

use std::fmt::Write as _;

use hyper::Method;
use serde_json::Value;

use super::admin::{self, Reach};
use super::status::span;
use super::{Ended, out};
use crate::config::Config;
use crate::units::ByteSize;

/// Asks by the admin socket and shows the answer.
pub(super) fn run(config: &Config, json: bool) -> anyhow::Result<Ended> {
    let answer = admin::command(config, Reach::Machine, Method::GET, "/clients")?;
    if json {
        out::line(&answer.to_string())?;
    } else {
        out::bytes(text(&answer).as_bytes())?;
    }
    Ok(Ended::Well)
}

/// Two tables: clients, and the paths that they read.
fn text(answer: &Value) -> String {
    let list = |name: &str| answer.get(name).and_then(Value::as_array).into_iter().flatten();
    let word = |it: &Value, name: &str| {
        // What came over the network does not steer a terminal.
        let text = it.get(name).and_then(Value::as_str).unwrap_or("?");
        text.replace(|c: char| c.is_control(), "?")
    };
    let number = |it: &Value, name: &str| it.get(name).and_then(Value::as_u64);
    let size = |it: &Value, name: &str| {
        number(it, name).map_or_else(|| "?".to_owned(), |bytes| ByteSize(bytes).to_string())
    };
    let ago = |it: &Value, name: &str| span(number(it, name).unwrap_or(0));
    let mut text = String::new();
    let put = |text: &mut String, row: std::fmt::Arguments<'_>| {
        writeln!(text, "{row}").expect("writing to a String cannot fail");
    };
    if list("clients").next().is_none() {
        return "nobody has asked since the start\n".to_owned();
    }
    put(
        &mut text,
        format_args!(
            "{:<26}{:>9}{:>9}{:>9}  {:<12}last",
            "client", "hits", "misses", "absent", "NARs"
        ),
    );
    for it in list("clients") {
        let [hits, misses, absent] =
            ["hits", "misses", "absent"].map(|name| number(it, name).unwrap_or(0));
        let (client, nars, last) = (word(it, "client"), size(it, "nar_bytes"), ago(it, "last_s"));
        put(
            &mut text,
            format_args!("{client:<26}{hits:>9}{misses:>9}{absent:>9}  {nars:<12}{last} ago"),
        );
    }
    for it in list("latest") {
        let (when, outcome) = (ago(it, "ago_s"), word(it, "outcome"));
        let (size, client, name) = (size(it, "size_bytes"), word(it, "client"), word(it, "name"));
        put(&mut text, format_args!("{when:>14} ago  {outcome:<5}{size:>10}  {client}  {name}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn clients_and_the_latest_paths_are_two_tables() {
        let answer = json!({
            "clients": [{"client": "10.0.0.7", "hits": 5, "misses": 2, "absent": 1,
                "nar_bytes": 2048, "last_s": 61}],
            "latest": [{"name": "abc-hello\u{1b}[2J", "client": "10.0.0.7", "size_bytes": null,
                "outcome": "miss", "ago_s": 5}],
        });
        let wanted = "\
client                         hits   misses   absent  NARs        last
10.0.0.7                          5        2        1  2.0 KiB     1 min 1 s ago
           5 s ago  miss          ?  10.0.0.7  abc-hello?[2J
";
        assert_eq!(text(&answer), wanted);
        assert_eq!(text(&json!({"clients": []})), "nobody has asked since the start\n");
    }
}
