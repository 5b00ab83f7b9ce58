//! The page that people see. It shows what `/api/status` says, and the lines to paste.

use std::collections::HashSet;
use std::net::SocketAddr;

use askama::Template;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

use super::admin_scrub::{ScrubStatus, and_more};
use super::appliance::Appliance;
use super::clients::ClientsShown;
use super::history::Tally;
use super::host_rule;
use super::status::{MemoryStatus, Status, UpstreamStatus};
use super::words::{bytes, count, span};
use crate::pinned::CaFingerprint;

mod plot;
mod plots;

use plots::{Shown, Table};

pub(super) use plots::{DAYS_SHOWN_MAX, Times};

const STYLE: &str = include_str!("style.css");

/// The port that an http address need not name.
const HTTP_PORT: u16 = 80;

/// Names of builds that differ, of all targets together: some show that there are any.
const DIFFERING_MAX: usize = 16;

/// What the page is made of.
pub(super) struct View<'a> {
    pub(super) status: &'a Status,
    /// Where machines ask this cache.
    pub(super) address: &'a str,
    pub(super) hours: Times,
    pub(super) days: Times,
    /// Who asked, where that is to be shown.
    pub(super) clients: Option<ClientsShown>,
}

#[derive(Template)]
#[template(path = "index.html")]
struct Page<'a> {
    style: &'static str,
    status: &'a Status,
    address: &'a str,
    joined: &'a str,
    figures: Vec<(&'static str, [String; 3])>,
    plots: Vec<Shown>,
    tables: [Table; 2],
    used: String,
    budget: String,
    full: String,
    checked: String,
    found: Option<String>,
    lost: Vec<Lost<'a>>,
    pinned: String,
    written: String,
    free: String,
    waits: String,
    differing: Vec<&'a str>,
    upstreams: Vec<(&'a UpstreamStatus, String)>,
    clients: Option<ClientsShown>,
    machine: Vec<(&'static str, String)>,
    ca: Option<String>,
}

/// Paths that are lost to the disk, in one way.
struct Lost<'a> {
    what: &'static str,
    names: Vec<&'a str>,
    more: String,
}

/// No scripts, no frames, no forms, nothing from elsewhere; one style, by its hash, and the empty
/// picture that keeps browsers from asking for one.
pub(super) fn policy() -> HeaderValue {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
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
pub(super) fn render(view: View<'_>) -> String {
    let View { status, address, hours, days, clients } = view;
    let targets = &status.queue.targets;
    // What is dropped before it is queued is told at every target.
    let mut seen = HashSet::new();
    let differing = targets.iter().flat_map(|target| &target.differs).map(String::as_str);
    let differing = differing.filter(|name| seen.insert(*name));
    let page = Page {
        style: STYLE,
        status,
        address,
        joined: joined(status, address),
        figures: figures(status),
        plots: plots::plots(&hours, &days, !targets.is_empty()),
        tables: plots::tables(&hours, &days),
        used: bytes(status.store.used_bytes),
        budget: bytes(status.store.budget_bytes),
        full: full(status.store.days_to_full),
        checked: checked(&status.scrub),
        found: found(&status.scrub),
        lost: lost(&status.scrub),
        pinned: bytes(status.store.pinned_bytes),
        written: bytes(status.store.written_bytes),
        free: bytes(status.host.disk_free_bytes),
        waits: waits(status),
        differing: differing.take(DIFFERING_MAX).collect(),
        upstreams: status.upstreams.iter().map(|it| (it, upstream(it))).collect(),
        clients,
        machine: machine(status),
        ca: fingerprint(status),
    };
    page.render().expect("writing to a String cannot fail")
}

/// What `snowberry join` is given: the name where there is one, which it resolves itself.
fn joined<'a>(status: &'a Status, address: &'a str) -> &'a str {
    let bare = address.split_once("://").map_or(address, |(_, authority)| authority);
    status.local_name.as_deref().unwrap_or(bare)
}

fn figures(status: &Status) -> Vec<(&'static str, [String; 3])> {
    let traffic = &status.traffic;
    let row = |name, of: &dyn Fn(&Tally) -> String| {
        (name, [&traffic.today, &traffic.week, &traffic.ever].map(of))
    };
    let rate =
        |it: &Tally| it.hit_percent().map_or_else(|| "-".to_owned(), |it| format!("{it:.0} %"));
    vec![
        row("answered from the disk", &|it| count(it.hits)),
        row("fetched from upstream", &|it| count(it.misses)),
        row("hit rate", &rate),
        row("not to be had", &|it| count(it.absent)),
        row("sent to the house", &|it| bytes(it.served_bytes)),
        row("fetched over the line", &|it| bytes(it.fetched_bytes)),
        row("saved from the line", &|it| bytes(it.saved_bytes())),
    ]
}

fn full(days: Option<f64>) -> String {
    match days {
        None => "not in sight".to_owned(),
        Some(days) if days < 1.0 => "now: what was not used for longest makes room".to_owned(),
        Some(days) => format!("in {days:.0} days, as it grew in the last two weeks"),
    }
}

/// How far what is stored has been read again.
fn checked(scrub: &ScrubStatus) -> String {
    let ended = match scrub.last_done_s {
        Some(last_done_s) => format!("all of it {} ago", span(last_done_s)),
        None => "not yet all of it".to_owned(),
    };
    let (so_far, all) = (bytes(scrub.checked_bytes), bytes(scrub.of_bytes));
    match scrub.state {
        "off" => format!("only when told to, {ended}"),
        _ if scrub.of_bytes == 0 => "nothing is stored".to_owned(),
        "idle" if scrub.checked_bytes == 0 && scrub.last_done_s.is_some() => ended,
        "running" => format!("{so_far} of {all}, going on; {ended}"),
        _ => format!("{so_far} of {all}; {ended}"),
    }
}

/// What came of it, once something did.
fn found(scrub: &ScrubStatus) -> Option<String> {
    let ScrubStatus { found, repaired, unrepaired, .. } = scrub;
    let any = found + repaired + unrepaired > 0;
    any.then(|| match unrepaired {
        0 => format!("{found} NARs, {repaired} fetched again"),
        lost => format!("{found} NARs, {repaired} fetched again, {lost} not to be had so far"),
    })
}

fn lost(scrub: &ScrubStatus) -> Vec<Lost<'_>> {
    let of = |nowhere, what| {
        let (paths, all) = scrub.lost(nowhere);
        let names: Vec<_> = paths.iter().map(|path| path.name.as_str()).collect();
        let more = and_more(names.len(), all);
        (all > 0).then_some(Lost { what, names, more })
    };
    let nowhere = "These paths were damaged and no upstream has them now: build and push them again, see \
                   to the upstream that had them, or let them go with snowberry evict.";
    let yet = "These paths were damaged and could not be fetched again yet. They are tried again each \
               hour for two days, and whenever somebody asks for them.";
    of(true, nowhere).into_iter().chain(of(false, yet)).collect()
}

fn upstream(it: &UpstreamStatus) -> String {
    let latency = match it.latency_ms {
        None => String::new(),
        Some(0) => ", answers within a millisecond".to_owned(),
        Some(ms) => format!(", answers in {ms} ms"),
    };
    let pushed = if it.push { ", gets what the house builds" } else { "" };
    format!("for {}{latency}{pushed}", span(it.since_s))
}

fn machine(status: &Status) -> Vec<(&'static str, String)> {
    let (host, found) = (&status.host, &status.host.machine);
    let yes = |told: bool| if told { "yes" } else { "no" }.to_owned();
    let voltage = match (found.under_voltage, found.under_voltage_since_boot) {
        (Some(true), _) => Some("too little"),
        (_, Some(true)) => Some("enough now, and too little since it was started"),
        (Some(false), _) => Some("enough"),
        (None, _) => None,
    };
    let rows = [
        ("temperature", found.temperature_c.map(|it| format!("{it:.0} \u{b0}C"))),
        ("voltage", voltage.map(str::to_owned)),
        ("held back", found.throttled.map(yes)),
        ("memory of this program", found.memory_bytes.map(|taken| memory(taken, &host.memory))),
        ("clock", Some(if host.clock_sane { host.time.clone() } else { "wrong".to_owned() })),
        ("up for", Some(span(status.uptime_s))),
        ("appliance", status.appliance.as_ref().map(Appliance::line)),
    ];
    rows.into_iter().filter_map(|(name, told)| Some((name, told?))).collect()
}

fn memory(taken_bytes: u64, memory: &MemoryStatus) -> String {
    let taken = bytes(taken_bytes);
    let short = if memory.short_since_s.is_some() { ", which runs short" } else { "" };
    match memory.room_bytes {
        Some(room_bytes) => format!("{taken} of {}{short}", bytes(room_bytes)),
        None => format!("{taken}{short}"),
    }
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

#[cfg(test)]
mod tests {
    use super::super::admin_scrub::UnrepairedPath;
    use super::super::clients::{AskedShown, ClientShown};
    use super::super::status::tests::{status, target};
    use super::super::troubles::troubles;
    use super::*;

    fn render(status: &Status, address: &str) -> String {
        let status = &Status { troubles: troubles(status), ..status.clone() };
        let clients = None;
        super::render(View { status, address, hours: Vec::new(), days: Vec::new(), clients })
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
            "<th scope=\"row\">sent to the house</th><td>1.5 KiB</td><td>3.0 KiB</td><td>1.0 MiB</td>",
            "snowberry join &#60;snow&#62;.local",
            "nixConfig = {",
            "3 h 5 min",
            "snow&#62;.local",
            "answers in 12 ms",
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
            ["the disk is missing", "(for 2 h 0 min)", "power supply", "this one is snow-2.local"]
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
    fn the_queue_says_what_stops_it_and_which_builds_differ() {
        let mut ill = status();
        let why = Some("403 <denied>".to_owned());
        let differs = vec!["x-<script>alert(1)</script>".to_owned()];
        let one = super::super::status::Target { last_error: why, differs, ..target() };
        ill.queue.targets = vec![one.clone(), one];
        let page = render(&ill, "http://10.0.0.1");
        for part in ["403 &#60;denied&#62;", "Builds that differ", "x-&#60;script&#62;alert(1)"] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("alert(1)").count(), 1, "once for both targets: {page}");
    }

    #[test]
    fn what_the_scrub_found_is_told_once_there_is_something() {
        let page = render(&status(), "http://10.0.0.1");
        assert!(page.contains("0 B of 4 B; not yet all of it") && !page.contains("found damaged"));
        let mut ill = status();
        ill.scrub.last_done_s = Some(86_400);
        assert!(render(&ill, "http://10.0.0.1").contains("<td>all of it 1 d 0 h ago</td>"));
        let lost = |name: &str, nowhere| UnrepairedPath { name: name.into(), since_s: 60, nowhere };
        ill.scrub = ScrubStatus {
            state: "running",
            checked_bytes: 1024,
            of_bytes: 4096,
            found: 3,
            repaired: 2,
            unrepaired: 7,
            unrepaired_nowhere: 2,
            unrepaired_paths: vec![lost("<x>-1", true), lost("y-1", false), lost("z-1", false)],
            ..ill.scrub
        };
        let page = render(&ill, "http://10.0.0.1");
        for part in [
            "1.0 KiB of 4.0 KiB, going on; all of it 1 d 0 h ago",
            "3 NARs, 2 fetched again, 7 not to be had so far",
            "<li><bdi>&#60;x&#62;-1</bdi></li>\n<li>and 1 more</li>",
            "no upstream has now: &#60;x&#62;-1 and 1 more.",
            "<li><bdi>z-1</bdi></li>\n<li>and 3 more</li>",
            "could not be fetched again yet: y-1, z-1 and 3 more.",
            "(for 1 min",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        ill.scrub.state = "off";
        let page = render(&ill, "http://10.0.0.1");
        assert!(page.contains("only when told to, all of it 1 d 0 h ago"), "{page}");
    }

    #[test]
    fn who_asked_is_shown_where_it_is_wanted() {
        let client = "10.0.0.7".parse().unwrap();
        let asked = AskedShown {
            name: "\u{202e}<script>".into(),
            client,
            size_bytes: Some(2048),
            outcome: "miss",
            ago_s: 61,
        };
        let one = ClientShown { client, hits: 1, misses: 2, absent: 3, nar_bytes: 1024, last_s: 5 };
        let clients = ClientsShown { clients: vec![one], latest: vec![asked] };
        let status = &status();
        let view = |clients| {
            let (hours, days) = (Vec::new(), Vec::new());
            super::render(View { status, address: "http://10.0.0.1", hours, days, clients })
        };
        let page = view(Some(clients));
        for part in
            ["Who asked", "10.0.0.7", "2.0 KiB", "miss", "1 min ago", "&#60;script&#62;</bdi>"]
        {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(!page.contains("<script") && !view(None).contains("Who asked"));
    }
}
