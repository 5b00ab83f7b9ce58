//! `/api/status`: the figures as JSON, by the names that scripts rely on.

use std::time::Instant;

use serde::Serialize;

use super::Site;
use super::admin_scrub::ScrubStatus;
use super::appliance::Appliance;
use super::civil::{is_sane, utc};
use super::history::Tally;
use super::ledger::Ledger;
use super::machine::Machine;
use super::troubles::{Trouble, troubles};
use super::words::beside;
use crate::cache::{Health, HealthState, MemoryState, StoreState};
use crate::pinned::CaFingerprint;
use crate::push::{TargetState, TargetStatus};

/// All that `/api/status` says. Names and units are a contract.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Status {
    pub(super) version: &'static str,
    pub(super) name: String,
    pub(super) local_name: Option<String>,
    pub(super) public_key: Option<String>,
    pub(super) uptime_s: u64,
    pub(super) offline_since_s: Option<u64>,
    pub(super) troubles: Vec<Trouble>,
    pub(super) store: StoreStatus,
    pub(super) scrub: ScrubStatus,
    pub(super) traffic: Traffic,
    pub(super) queue: Queue,
    pub(super) upstreams: Vec<UpstreamStatus>,
    pub(super) host: HostStatus,
    pub(super) tls: Option<TlsStatus>,
    pub(super) appliance: Option<Appliance>,
}

/// TLS, where it is spoken.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TlsStatus {
    pub(super) port: u16,
    /// That of the CA of our own making; none with a certificate from elsewhere.
    pub(super) ca_sha256: Option<String>,
}

/// The store's figures, and why it is not open when it is not.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StoreStatus {
    pub(super) budget_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) narinfos: u64,
    pub(super) nars: u64,
    pub(super) pinned_bytes: u64,
    pub(super) pins: usize,
    pub(super) written_bytes: u64,
    /// In how many days it is full when it grows as it did.
    pub(super) days_to_full: Option<f64>,
    /// Rows and NARs that were found damaged since the start.
    pub(super) corrupt: u64,
    /// Left out while the store is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) degraded: Option<String>,
    /// For how long; left out likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) degraded_since_s: Option<u64>,
}

/// What was asked and moved since `since`, the daemon's start in UTC; and by the calendar.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Traffic {
    #[serde(flatten)]
    pub(super) counters: Tally,
    pub(super) since: String,
    /// Since 00:00 UTC.
    pub(super) today: Tally,
    /// Today and the six days before.
    pub(super) week: Tally,
    /// Since there is this store, restarts or not.
    pub(super) ever: Tally,
}

/// What waits to be pushed, at all targets together and at each.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Queue {
    pub(super) waiting: u64,
    pub(super) waiting_bytes: u64,
    pub(super) oldest_s: Option<u64>,
    /// Targets that refuse.
    pub(super) stopped: Vec<String>,
    pub(super) targets: Vec<Target>,
}

/// One push target.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Target {
    pub(super) url: String,
    pub(super) state: &'static str,
    pub(super) waiting: u64,
    pub(super) waiting_bytes: u64,
    pub(super) oldest_s: Option<u64>,
    pub(super) parked: u64,
    pub(super) lost: u64,
    pub(super) pushed: u64,
    pub(super) pushed_bytes: u64,
    pub(super) sending: Vec<String>,
    pub(super) differs: Vec<String>,
    pub(super) last_error: Option<String>,
    pub(super) retry_in_s: Option<u64>,
}

impl Target {
    /// The last trouble, for people who see the URL beside it.
    pub(super) fn error(&self) -> Option<String> {
        Some(beside(self.last_error.as_ref()?, &self.url))
    }
}

/// One upstream.
#[derive(Debug, Clone, Serialize)]
pub(super) struct UpstreamStatus {
    pub(super) url: String,
    pub(super) state: &'static str,
    pub(super) since_s: u64,
    pub(super) push: bool,
    pub(super) last_error: Option<String>,
    /// From a question to the head of its answer, smoothed over the last ones.
    pub(super) latency_ms: Option<u64>,
}

impl UpstreamStatus {
    /// The last trouble, for people who see the URL beside it.
    pub(super) fn error(&self) -> Option<String> {
        Some(beside(self.last_error.as_ref()?, &self.url))
    }
}

/// The machine.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HostStatus {
    #[serde(flatten)]
    pub(super) machine: Machine,
    #[serde(flatten)]
    pub(super) memory: MemoryStatus,
    pub(super) disk_free_bytes: u64,
    /// By the machine's clock, in UTC.
    pub(super) time: String,
    /// Whether that can be right.
    pub(super) clock_sane: bool,
    /// By what upstreams said over TLS, negative when it is ahead; null while none said it.
    pub(super) clock_behind_s: Option<i64>,
}

/// What memory there is for this process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct MemoryStatus {
    /// What it may take of the machine's; not known everywhere.
    #[serde(rename = "memory_room_bytes")]
    pub(super) room_bytes: Option<u64>,
    /// For how long it has been short.
    #[serde(rename = "memory_short_since_s")]
    pub(super) short_since_s: Option<u64>,
}

impl From<MemoryState> for MemoryStatus {
    fn from(state: MemoryState) -> Self {
        let short_since_s = state.short_for.map(|short_for| short_for.as_secs());
        Self { room_bytes: state.room_bytes, short_since_s }
    }
}

/// Where a status comes from.
pub(super) struct Sources<'a> {
    pub(super) site: &'a Site,
    pub(super) ledger: &'a Ledger,
    pub(super) machine: Machine,
    pub(super) appliance: Option<Appliance>,
    /// Seconds since 1970.
    pub(super) now_s: u64,
}

impl Status {
    /// Everything as it is now.
    pub(super) fn collect(sources: Sources<'_>) -> Self {
        let Sources { site, ledger, machine, appliance, now_s } = sources;
        let uptime_s = site.started.elapsed().as_secs();
        let figures = site.cache.store_figures();
        let targets = site.push.status();
        let (degraded, degraded_since_s) = degraded(site.cache.store_state()).unzip();
        let history = ledger.history(now_s);
        let (today, week) = history.today_and_week(now_s);
        let (used, budget) = (figures.used_bytes, figures.budget_bytes);
        let days_to_full = history.days_to_full(now_s, used, budget).filter(|_| budget > 0);
        let ever = history.ever();
        drop(history);
        let upstreams = site.cache.upstreams().into_iter().map(|it| upstream(it, &targets));
        let mut status = Self {
            version: env!("CARGO_PKG_VERSION"),
            name: site.name.clone(),
            local_name: site.local_name.as_ref().map(|name| format!("{}.local", *name.borrow())),
            public_key: site.public_keys.all().first().map(ToString::to_string),
            uptime_s,
            offline_since_s: site.cache.offline_since_s(),
            troubles: Vec::new(),
            store: StoreStatus {
                budget_bytes: figures.budget_bytes,
                used_bytes: figures.used_bytes,
                narinfos: figures.narinfos,
                nars: figures.nars,
                pinned_bytes: figures.pinned_bytes,
                pins: site.cache.pin_count(),
                written_bytes: figures.written_bytes,
                days_to_full,
                corrupt: site.metrics.corrupt.get(),
                degraded,
                degraded_since_s,
            },
            scrub: site.cache.scrub_state().into(),
            traffic: Traffic {
                counters: ledger.counters(),
                since: utc(now_s.saturating_sub(uptime_s)),
                today,
                week,
                ever,
            },
            upstreams: upstreams.collect(),
            queue: queue(targets),
            host: HostStatus {
                machine,
                memory: site.cache.memory_state().into(),
                disk_free_bytes: figures.disk_free_bytes,
                time: utc(now_s),
                clock_sane: is_sane(now_s),
                clock_behind_s: site.cache.clock_behind_s(now_s),
            },
            tls: site.tls.as_ref().map(|(identity, port)| TlsStatus {
                port: *port,
                ca_sha256: identity.ca().map(CaFingerprint::to_hex),
            }),
            appliance,
        };
        status.troubles = troubles(&status);
        ledger.date(&mut status.troubles, Instant::now());
        status
    }

    /// As JSON.
    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("keys are strings and numbers are finite")
    }
}

fn degraded(state: StoreState) -> Option<(String, u64)> {
    match state {
        StoreState::Open => None,
        StoreState::Degraded { reason, since } => Some((reason.to_string(), since.as_secs())),
    }
}

fn queue(targets: Vec<TargetStatus>) -> Queue {
    let stopped = targets.iter().filter(|target| target.state == TargetState::Stopped);
    Queue {
        waiting: targets.iter().map(|target| target.waiting).sum(),
        waiting_bytes: targets.iter().map(|target| target.waiting_bytes).sum(),
        oldest_s: targets.iter().filter_map(|target| target.oldest_s).max(),
        stopped: stopped.map(|target| without_user(&target.target)).collect(),
        targets: targets.into_iter().map(target).collect(),
    }
}

fn target(status: TargetStatus) -> Target {
    let state = match status.state {
        TargetState::Idle => "idle",
        TargetState::Sending => "sending",
        TargetState::Waiting => "waiting",
        TargetState::Stopped => "stopped",
        TargetState::Gone => "gone",
    };
    Target {
        url: without_user(&status.target),
        state,
        waiting: status.waiting,
        waiting_bytes: status.waiting_bytes,
        oldest_s: status.oldest_s,
        parked: status.parked,
        lost: status.lost,
        pushed: status.pushed,
        pushed_bytes: status.pushed_bytes,
        sending: status.sending,
        differs: status.differs,
        last_error: status.last_error,
        retry_in_s: status.retry_in_s,
    }
}

fn upstream((url, health): (String, Health), targets: &[TargetStatus]) -> UpstreamStatus {
    let state = match health.state {
        HealthState::Up => "up",
        HealthState::Down => "down",
        HealthState::Refusing => "refusing",
    };
    let is_target =
        |target: &TargetStatus| target.target == url && target.state != TargetState::Gone;
    UpstreamStatus {
        push: targets.iter().any(is_target),
        url: without_user(&url),
        state,
        since_s: health.since.as_secs(),
        last_error: health.last_error,
        latency_ms: health.latency.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// The URL without name and password: the upstream leaves them out already, and a second look
/// costs nothing where a mistake would publish a secret.
fn without_user(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) if !parsed.username().is_empty() || parsed.password().is_some() => {
            let cleared = parsed.set_password(None).is_ok() && parsed.set_username("").is_ok();
            if cleared { parsed.into() } else { String::new() }
        }
        Ok(_) | Err(_) => url.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A cache that is well, by a hostile name.
    pub(in super::super) fn status() -> Status {
        let tally =
            |served_bytes| Tally { hits: 1, misses: 2, absent: 3, served_bytes, fetched_bytes: 10 };
        Status {
            version: "0.1.0",
            name: "<snow>".into(),
            local_name: Some("<snow>.local".into()),
            public_key: Some("pi-1:abc=".into()),
            uptime_s: 3 * 3600 + 300,
            offline_since_s: None,
            troubles: Vec::new(),
            store: StoreStatus {
                budget_bytes: 200 << 30,
                used_bytes: 3 << 30,
                narinfos: 12,
                nars: 7,
                pinned_bytes: 0,
                pins: 0,
                written_bytes: 4 << 30,
                days_to_full: None,
                corrupt: 0,
                degraded: None,
                degraded_since_s: None,
            },
            scrub: ScrubStatus {
                state: "idle",
                checked_bytes: 0,
                of_bytes: 4,
                last_done_s: None,
                found: 0,
                repaired: 0,
                unrepaired: 0,
                unrepaired_nowhere: 0,
                unrepaired_paths: Vec::new(),
            },
            traffic: Traffic {
                counters: tally(1536),
                since: "2026-11-21T13:00:00Z".into(),
                today: tally(1536),
                week: tally(3 << 10),
                ever: tally(1 << 20),
            },
            queue: Queue::default(),
            upstreams: vec![UpstreamStatus {
                url: "https://cache.example".into(),
                state: "down",
                since_s: 5,
                push: false,
                last_error: Some("<refused>".into()),
                latency_ms: Some(12),
            }],
            host: HostStatus {
                machine: Machine::default(),
                memory: MemoryStatus::default(),
                disk_free_bytes: 1 << 40,
                time: "2026-11-21T13:00:00Z".into(),
                clock_sane: true,
                clock_behind_s: Some(-1),
            },
            tls: None,
            appliance: None,
        }
    }

    /// A push target that is well.
    pub(in super::super) fn target() -> Target {
        super::target(TargetStatus {
            target: "s3://nix-cache".into(),
            state: TargetState::Idle,
            waiting: 0,
            waiting_bytes: 0,
            oldest_s: None,
            parked: 0,
            lost: 0,
            pushed: 4,
            pushed_bytes: 5000,
            sending: Vec::new(),
            differs: Vec::new(),
            last_error: None,
            retry_in_s: None,
        })
    }

    #[test]
    fn no_user_data_is_shown() {
        for (url, shown) in [
            ("https://me:secret@cache.example/x", "https://cache.example/x"),
            ("https://me@cache.example/", "https://cache.example/"),
            ("https://cache.example", "https://cache.example"),
            ("s3://nix-cache?endpoint=minio.lan", "s3://nix-cache?endpoint=minio.lan"),
            ("file:///mnt/stick", "file:///mnt/stick"),
        ] {
            assert_eq!(without_user(url), shown);
        }
    }

    #[test]
    fn the_queue_sums_its_targets_and_names_those_that_refuse() {
        let one = TargetStatus {
            target: "s3://me:secret@nix-cache".into(),
            state: TargetState::Stopped,
            waiting: 2,
            waiting_bytes: 300,
            oldest_s: Some(70),
            parked: 1,
            lost: 0,
            pushed: 4,
            pushed_bytes: 5000,
            sending: vec!["x-hello".into()],
            differs: Vec::new(),
            last_error: Some("refused".into()),
            retry_in_s: Some(5),
        };
        let two = TargetStatus {
            target: "file:///mnt/stick".into(),
            state: TargetState::Idle,
            oldest_s: None,
            waiting: 0,
            waiting_bytes: 0,
            ..one.clone()
        };
        let queue = serde_json::to_value(queue(vec![one, two])).unwrap();
        assert_eq!((&queue["waiting"], &queue["oldest_s"]), (&2.into(), &70.into()));
        assert_eq!(queue["stopped"], serde_json::json!(["s3://nix-cache"]));
        let expected = serde_json::json!({
            "url": "s3://nix-cache", "state": "stopped", "waiting": 2, "waiting_bytes": 300,
            "oldest_s": 70, "parked": 1, "lost": 0, "pushed": 4, "pushed_bytes": 5000,
            "sending": ["x-hello"], "differs": [], "last_error": "refused", "retry_in_s": 5,
        });
        assert_eq!(queue["targets"][0], expected);
        assert_eq!(queue["targets"][1]["state"], "idle");
    }

    #[test]
    fn the_json_has_exactly_the_names_of_the_contract() {
        let tally = r#"{"hits":1,"misses":2,"absent":3,"served_bytes":1048576,"fetched_bytes":10}"#;
        let well = status();
        let traffic = Traffic { counters: well.traffic.ever, ..well.traffic.clone() };
        let traffic = Traffic { today: traffic.ever, week: traffic.ever, ..traffic };
        let status = Status { name: "snowberry".into(), local_name: None, traffic, ..well };
        let expected = concat!(
            r#"{"version":"0.1.0","name":"snowberry","local_name":null,"public_key":"pi-1:abc=","#,
            r#""uptime_s":11100,"offline_since_s":null,"troubles":[],"store":{"#,
            r#""budget_bytes":214748364800,"used_bytes":3221225472,"narinfos":12,"nars":7,"#,
            r#""pinned_bytes":0,"pins":0,"written_bytes":4294967296,"days_to_full":null,"corrupt":0},"#,
            r#""scrub":{"state":"idle","checked_bytes":0,"of_bytes":4,"last_done_s":null,"#,
            r#""found":0,"repaired":0,"unrepaired":0,"unrepaired_nowhere":0,"unrepaired_paths":[]},"#,
            r#""traffic":{"hits":1,"misses":2,"absent":3,"served_bytes":1048576,"#,
            r#""fetched_bytes":10,"since":"2026-11-21T13:00:00Z","today":TALLY,"week":TALLY,"#,
            r#""ever":TALLY},"queue":{"waiting":0,"waiting_bytes":0,"oldest_s":null,"stopped":[],"#,
            r#""targets":[]},"upstreams":[{"url":"https://cache.example","state":"down","#,
            r#""since_s":5,"push":false,"last_error":"<refused>","latency_ms":12}],"host":{"#,
            r#""temperature_c":null,"throttled":null,"under_voltage":null,"#,
            r#""under_voltage_since_boot":null,"memory_bytes":null,"memory_room_bytes":null,"#,
            r#""memory_short_since_s":null,"disk_free_bytes":1099511627776,"#,
            r#""time":"2026-11-21T13:00:00Z","clock_sane":true,"clock_behind_s":-1},"tls":null,"appliance":null}"#,
        );
        let expected = expected.replace("TALLY", tally);
        assert_eq!(String::from_utf8(status.json()).expect("UTF-8"), expected);
    }
}
