//! The page that people see. It shows what `/api/status` says, and the lines to paste.

use std::net::SocketAddr;

use askama::Template;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

use super::appliance::Appliance;
use super::host_rule;
use super::status::Status;
use crate::pinned::CaFingerprint;
use crate::units::ByteSize;

const STYLE: &str = include_str!("page/style.css");

/// The port that an http address need not name.
const HTTP_PORT: u16 = 80;

#[derive(Template)]
#[template(path = "index.html")]
struct Page<'a> {
    style: &'static str,
    status: &'a Status,
    address: &'a str,
    troubles: Vec<String>,
    served: String,
    fetched: String,
    used: String,
    budget: String,
    written: String,
    free: String,
    temperature: Option<String>,
    memory: Option<String>,
    waits: String,
    uptime: String,
    ca: Option<String>,
    appliance: Option<String>,
}

/// No scripts, no pictures, no frames, no forms, nothing from elsewhere; one style, by its hash.
pub(super) fn policy() -> HeaderValue {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("base 64 and ASCII words")
}

/// The address to paste: the one that the reader's browser used, unless that is a multicast DNS
/// name, which Nix on Linux cannot resolve.
pub(super) fn address(host: &str, local: SocketAddr) -> String {
    if !host_rule::is_mdns(host) {
        return format!("http://{host}");
    }
    let (ip, port) = (local.ip().to_canonical(), local.port());
    match (SocketAddr::new(ip, port), port) {
        (SocketAddr::V4(v4), HTTP_PORT) => format!("http://{}", v4.ip()),
        (SocketAddr::V6(v6), HTTP_PORT) => format!("http://[{}]", v6.ip()),
        (other, _) => format!("http://{other}"),
    }
}

/// The same host at another port.
pub(super) fn at_port(host: &str, port: u16) -> String {
    let bare = match host.rsplit_once(':') {
        Some((bare, digits)) if !digits.contains(']') => bare,
        Some(_) | None => host,
    };
    if port == HTTP_PORT { bare.to_owned() } else { format!("{bare}:{port}") }
}

/// The page.
pub(super) fn render(status: &Status, address: &str) -> String {
    let page = Page {
        style: STYLE,
        status,
        address,
        troubles: troubles(status),
        served: bytes(status.traffic.served_bytes),
        fetched: bytes(status.traffic.fetched_bytes),
        used: bytes(status.store.used_bytes),
        budget: bytes(status.store.budget_bytes),
        written: bytes(status.store.written_bytes),
        free: bytes(status.host.disk_free_bytes),
        temperature: status.host.machine.temperature_c.map(|t| format!("{t:.0}")),
        memory: status.host.machine.memory_bytes.map(bytes),
        waits: waits(status),
        uptime: span(status.uptime_s),
        ca: fingerprint(status),
        appliance: status.appliance.as_ref().map(Appliance::line),
    };
    page.render().expect("writing to a String cannot fail")
}

/// The fingerprint of our CA as people compare it.
fn fingerprint(status: &Status) -> Option<String> {
    let digits = status.tls.as_ref()?.ca_sha256.as_ref()?;
    digits.parse().ok().map(|fingerprint: CaFingerprint| fingerprint.to_string())
}

/// What waits to be carried up, in words.
fn waits(status: &Status) -> String {
    let queue = &status.queue;
    match queue.oldest_s.filter(|_| queue.waiting > 0) {
        None => "nothing waits".to_owned(),
        Some(oldest_s) => {
            let (waiting, len) = (queue.waiting, bytes(queue.waiting_bytes));
            format!("{waiting} objects of {len} wait, the oldest for {}", span(oldest_s))
        }
    }
}

/// What is not well, in sentences.
fn troubles(status: &Status) -> Vec<String> {
    let store = status.store.degraded.iter().map(|reason| {
        format!("The store cannot be used, so nothing is answered from it: {reason}")
    });
    let offline = status.offline_since_s.iter().map(|since_s| {
        format!(
            "No upstream has answered for {}: what is held here is served, the rest must wait.",
            span(*since_s)
        )
    });
    let throttled = status.host.machine.throttled.filter(|throttled| *throttled).map(|_| {
        "The processor is being held back: look after the power supply and the cooling.".to_owned()
    });
    let stopped = status.queue.targets.iter().filter(|target| target.state == "stopped");
    let stopped = stopped.map(|target| {
        let why = target.last_error.as_deref().unwrap_or("no reason is known");
        format!("{} does not take what the house builds, it waits here: {why}", target.url)
    });
    let lost: u64 = status.queue.targets.iter().map(|target| target.lost).sum();
    let lost = (lost > 0).then(|| {
        format!("{lost} objects that were to be carried up are damaged: build and push them again")
    });
    let renamed = status.local_name.iter().filter(|it| **it != format!("{}.local", status.name));
    let renamed = renamed.map(|local_name| {
        format!(
            "Another machine in the house is {}.local, so this one is {local_name}: give one of \
             them another name.",
            status.name
        )
    });
    let appliance = status.appliance.iter().flat_map(Appliance::troubles);
    let of_push = stopped.chain(lost);
    store.chain(renamed).chain(offline).chain(of_push).chain(appliance).chain(throttled).collect()
}

fn bytes(count: u64) -> String {
    ByteSize(count).to_string()
}

/// `2 d 3 h`, `3 h 5 min`, `5 min`, `40 s`.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / (24 * 3600));
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        (_, _, _) => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::super::status::{HostStatus, Queue, StoreStatus, Traffic, UpstreamStatus};
    use super::*;
    use crate::cache::{ScrubIs, ScrubState};

    fn status() -> Status {
        Status {
            version: "0.1.0",
            name: "<snow>".into(),
            local_name: Some("<snow>.local".into()),
            public_key: Some("pi-1:abc=".into()),
            uptime_s: 3 * 3600 + 300,
            offline_since_s: None,
            scrub: ScrubState {
                is: ScrubIs::Off,
                checked_bytes: 0,
                of_bytes: 0,
                last_done_s: None,
                found: 0,
                repaired: 0,
            }
            .into(),
            store: StoreStatus {
                budget_bytes: 200 << 30,
                used_bytes: 3 << 30,
                narinfos: 12,
                nars: 7,
                pinned_bytes: 0,
                written_bytes: 4 << 30,
                degraded: None,
            },
            traffic: Traffic {
                hits: 1,
                misses: 2,
                absent: 3,
                served_bytes: 1536,
                fetched_bytes: 10,
                since: "2026-11-21T13:00:00Z".into(),
            },
            queue: Queue::default(),
            upstreams: vec![UpstreamStatus {
                url: "https://cache.example".into(),
                state: "down",
                since_s: 5,
                push: false,
                last_error: Some("<refused>".into()),
            }],
            host: HostStatus { machine: Machine::default(), disk_free_bytes: 1 << 40 },
            tls: None,
            appliance: None,
        }
    }

    #[test]
    fn the_page_has_the_lines_to_paste_and_no_script() {
        let page = render(&status(), "http://192.168.1.7:8500");
        for part in [
            "extra-substituters = http://192.168.1.7:8500\n",
            "extra-trusted-public-keys = pi-1:abc=\n",
            "extra-substituters = [ \"http://192.168.1.7:8500\" ];",
            "narinfo-cache-negative-ttl = 60",
            "All is well.",
            "3.0 GiB of 200.0 GiB",
            "1.5 KiB",
            "3 h 5 min",
            "snow&#62;.local",
            "width=device-width",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("<snow>") && !page.contains("<refused>"), "escaped: {page}");
    }

    #[test]
    fn without_a_key_there_is_no_line_for_one() {
        let page = render(&Status { public_key: None, ..status() }, "http://10.0.0.1");
        assert!(!page.contains("trusted-public-keys"), "{page}");
    }

    #[test]
    fn the_page_says_what_is_not_well() {
        let mut ill = status();
        ill.offline_since_s = Some(7200);
        ill.local_name = Some("snow-2.local".into());
        ill.store.degraded = Some("the disk is missing".into());
        ill.host.machine.throttled = Some(true);
        let page = render(&ill, "http://10.0.0.1");
        for part in
            ["the disk is missing", "for 2 h 0 min", "power supply", "this one is snow-2.local"]
        {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(!page.contains("All is well."));
    }

    #[test]
    fn the_page_of_an_appliance_says_what_runs_and_what_went_wrong() {
        let appliance = Appliance {
            slot: Some("b"),
            version: Some("0.2.0".into()),
            last_error: Some("<0.3.0> did not come up".into()),
            ..Appliance::default()
        };
        let page = render(&Status { appliance: Some(appliance), ..status() }, "http://10.0.0.1");
        assert!(page.contains("image 0.2.0 in slot b"), "{page}");
        assert!(page.contains("The last update: &#60;0.3.0&#62; did not come up"), "{page}");
        assert!(!render(&status(), "http://10.0.0.1").contains("appliance"));
    }

    #[test]
    fn the_style_of_the_page_is_the_one_of_the_policy() {
        let page = render(&status(), "http://10.0.0.1");
        assert!(page.contains(&format!("<style>{STYLE}</style>")));
        let policy = policy();
        let policy = policy.to_str().expect("ASCII");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }

    #[test]
    fn a_multicast_name_is_replaced_by_the_address() {
        for (host, local, expected) in [
            ("192.168.1.7:8500", "192.168.1.7:8500", "http://192.168.1.7:8500"),
            ("localhost:8500", "127.0.0.1:8500", "http://localhost:8500"),
            ("snowberry.local", "192.168.1.7:80", "http://192.168.1.7"),
            ("snowberry.local", "[::ffff:192.168.1.7]:80", "http://192.168.1.7"),
            ("snowberry.local:8500", "192.168.1.7:8500", "http://192.168.1.7:8500"),
            ("snowberry.local", "[fd00::7]:80", "http://[fd00::7]"),
            ("snowberry.local:81", "[fd00::7]:81", "http://[fd00::7]:81"),
        ] {
            let local = local.parse().expect("a socket address");
            assert_eq!(address(host, local), expected);
        }
    }

    #[test]
    fn the_ca_is_there_to_be_compared_and_fetched() {
        let ca = CaFingerprint([7; 32]);
        let tls = super::super::status::TlsStatus { port: 443, ca_sha256: Some(ca.to_hex()) };
        let page = render(&Status { tls: Some(tls), ..status() }, "http://10.0.0.1");
        assert!(page.contains(&ca.to_string()) && page.contains("href=\"/ca.pem\""), "{page}");
        assert!(!render(&status(), "http://10.0.0.1").contains("ca.pem"));
    }

    #[test]
    fn over_tls_the_lines_to_paste_have_the_port_of_plain_http() {
        for (host, port, expected) in [
            ("10.0.0.1", 80, "10.0.0.1"),
            ("10.0.0.1:8443", 80, "10.0.0.1"),
            ("[fd00::7]:443", 8500, "[fd00::7]:8500"),
            ("[fd00::7]", 80, "[fd00::7]"),
            ("snowberry.local", 8500, "snowberry.local:8500"),
        ] {
            assert_eq!(at_port(host, port), expected);
        }
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in
            [(40, "40 s"), (300, "5 min"), (3660, "1 h 1 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
