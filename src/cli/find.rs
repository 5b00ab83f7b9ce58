//! `find`: the caches of the house, as multicast DNS tells them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ConfigArgs, Ended, out, runtime};
use crate::daemon;
use crate::mdns::{Browser, Found};

/// Longer than this nobody waits before a terminal.
const WAIT_MAX_S: u64 = 600;

pub(super) const EXAMPLES: &str = "\
Examples:
  snowberry find
  snowberry find --json | jq -r '.[].name'
  snowberry find --follow
      prints them again whenever one comes or goes, until Ctrl-C

Anybody in the house can announce a cache: which one is trusted is decided by \"snowberry join\".
Exit code 1 when none was found.";

#[derive(Debug, Args)]
pub(super) struct FindArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Seconds to listen.
    #[arg(long, value_name = "SECONDS", default_value_t = 3,
        value_parser = clap::value_parser!(u64).range(1..=WAIT_MAX_S))]
    wait: u64,
    /// Listen until it is ended, and print them all whenever something changes.
    #[arg(long, conflicts_with = "wait")]
    follow: bool,
    /// Print one JSON list a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &FindArgs) -> anyhow::Result<Ended> {
    let config = args.config.load()?;
    let runtime = runtime::one_thread()?;
    runtime::wait(&runtime, async {
        let browser = Browser::start(&config.mdns).context("listen for caches")?;
        let mut found = browser.found();
        if args.follow {
            return follow(&mut found, args.json).await;
        }
        tokio::time::sleep(Duration::from_secs(args.wait)).await;
        let all = Arc::clone(&found.borrow_and_update());
        if all.is_empty() && !args.json {
            out::note("no cache was found in this network");
        } else {
            print(&all, args.json)?;
        }
        Ok(if all.is_empty() { Ended::Badly } else { Ended::Well })
    })
}

async fn follow(found: &mut watch::Receiver<Arc<[Found]>>, json: bool) -> anyhow::Result<Ended> {
    let stop = CancellationToken::new();
    let end = daemon::second_signal(stop.clone());
    tokio::pin!(end);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Ended::Well),
            ended = &mut end => return ended.map(|()| Ended::Well),
            changed = found.changed() => changed.context("listen for caches")?,
        }
        let all = Arc::clone(&found.borrow_and_update());
        print(&all, json)?;
    }
}

fn print(found: &[Found], json: bool) -> anyhow::Result<()> {
    if json {
        return out::line(&found.iter().map(as_json).collect::<Value>().to_string());
    }
    if found.is_empty() {
        return out::line("none");
    }
    found.iter().try_for_each(|one| out::line(&text(one)))
}

fn text(found: &Found) -> String {
    let at = |ip: &IpAddr| SocketAddr::new(*ip, found.port).to_string();
    let addresses: Vec<String> = found.addresses.iter().map(at).collect();
    let mut text = format!("{}.local  {}", found.name, addresses.join(" "));
    let mut line = |name: &str, shown: &str| {
        write!(text, "\n  {name:<5} {shown}").expect("writing to a String cannot fail");
    };
    if let Some(port) = found.tls_port {
        line("TLS", &format!("port {port}"));
    }
    if let Some(digest) = &found.ca_sha256 {
        line("CA", &shown_digest(digest));
    }
    if let Some(key) = &found.public_key {
        line("key", key);
    }
    line("store", &found.store_dir);
    text
}

fn as_json(found: &Found) -> Value {
    json!({
        "name": found.name,
        "addresses": found.addresses,
        "port": found.port,
        "tls_port": found.tls_port,
        "ca_sha256": found.ca_sha256.as_ref().map(shown_digest),
        "public_key": found.public_key,
        "store_dir": found.store_dir,
        "priority": found.priority,
    })
}

/// Groups of two with colons, as openssl shows a fingerprint.
pub(super) fn shown_digest(digest: &[u8; 32]) -> String {
    digest.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_shown_with_all_that_is_known_of_it() {
        let found = Found {
            name: "snowberry-2".into(),
            addresses: vec!["192.168.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            port: 80,
            tls_port: Some(443),
            ca_sha256: Some([0xa5; 32]),
            public_key: Some("pi-1:abc=".into()),
            store_dir: "/nix/store".into(),
            priority: 30,
        };
        let shown = text(&found);
        assert!(shown.starts_with("snowberry-2.local  192.168.1.2:80 [fd00::2]:80\n"), "{shown}");
        assert!(shown.contains(&format!("CA    a5:{}a5\n", "a5:".repeat(30))), "{shown}");
        let json = as_json(&found);
        assert_eq!(json["addresses"], json!(["192.168.1.2", "fd00::2"]));
        assert_eq!(json["tls_port"], 443);
        let plain = Found { tls_port: None, ca_sha256: None, ..found };
        assert!(!text(&plain).contains("TLS") && as_json(&plain)["ca_sha256"].is_null());
    }
}
