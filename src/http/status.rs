//! `/api/status`: the figures as JSON, by the names that scripts rely on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Site;
use super::admin_scrub::ScrubStatus;
use super::appliance::Appliance;
use super::figures::Totals;
use super::machine::Machine;
use crate::cache::{Health, HealthState, StoreState};
use crate::pinned::CaFingerprint;
use crate::push::{TargetState, TargetStatus};

/// All that `/api/status` says. Names and units are a contract.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) version: &'static str,
    pub(super) name: String,
    pub(super) local_name: Option<String>,
    pub(super) public_key: Option<String>,
    pub(super) uptime_s: u64,
    pub(super) offline_since_s: Option<u64>,
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
#[derive(Debug, Serialize)]
pub(super) struct TlsStatus {
    pub(super) port: u16,
    /// That of the CA of our own making; none with a certificate from elsewhere.
    pub(super) ca_sha256: Option<String>,
}

/// The store's figures, and why it is not open when it is not.
#[derive(Debug, Serialize)]
pub(super) struct StoreStatus {
    pub(super) budget_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) narinfos: u64,
    pub(super) nars: u64,
    pub(super) pinned_bytes: u64,
    pub(super) written_bytes: u64,
    /// Left out while the store is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) degraded: Option<String>,
}

/// What was asked and moved since `since`, the daemon's start in UTC.
#[derive(Debug, Serialize)]
pub(super) struct Traffic {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) absent: u64,
    pub(super) served_bytes: u64,
    pub(super) fetched_bytes: u64,
    pub(super) since: String,
}

/// What waits to be pushed, at all targets together and at each.
#[derive(Debug, Default, Serialize)]
pub(super) struct Queue {
    pub(super) waiting: u64,
    pub(super) waiting_bytes: u64,
    pub(super) oldest_s: Option<u64>,
    /// Targets that refuse.
    pub(super) stopped: Vec<String>,
    pub(super) targets: Vec<Target>,
}

/// One push target.
#[derive(Debug, Serialize)]
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

/// One upstream.
#[derive(Debug, Serialize)]
pub(super) struct UpstreamStatus {
    pub(super) url: String,
    pub(super) state: &'static str,
    pub(super) since_s: u64,
    pub(super) push: bool,
    pub(super) last_error: Option<String>,
}

/// The machine.
#[derive(Debug, Serialize)]
pub(super) struct HostStatus {
    #[serde(flatten)]
    pub(super) machine: Machine,
    pub(super) disk_free_bytes: u64,
}

impl Status {
    /// Everything as it is now.
    pub(super) fn collect(
        site: &Site,
        totals: Totals,
        (machine, appliance): (Machine, Option<Appliance>),
        now: SystemTime,
    ) -> Self {
        let uptime = site.started.elapsed();
        let figures = site.cache.store_figures();
        let targets = site.push.status();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            name: site.name.clone(),
            local_name: site.local_name.as_ref().map(|name| format!("{}.local", *name.borrow())),
            public_key: site.public_keys.all().first().map(ToString::to_string),
            uptime_s: uptime.as_secs(),
            offline_since_s: site.cache.offline_since_s(),
            store: StoreStatus {
                budget_bytes: figures.budget_bytes,
                used_bytes: figures.used_bytes,
                narinfos: figures.narinfos,
                nars: figures.nars,
                pinned_bytes: figures.pinned_bytes,
                written_bytes: figures.written_bytes,
                degraded: degraded(site.cache.store_state()),
            },
            scrub: site.cache.scrub_state().into(),
            traffic: Traffic {
                hits: totals.hits,
                misses: totals.misses,
                absent: totals.absent,
                served_bytes: site.metrics.served_bytes.get(),
                fetched_bytes: site.metrics.fetched_bytes.get(),
                since: utc(now.checked_sub(uptime).unwrap_or(UNIX_EPOCH)),
            },
            upstreams: site
                .cache
                .upstreams()
                .into_iter()
                .map(|it| upstream(it, &targets))
                .collect(),
            queue: queue(targets),
            host: HostStatus { machine, disk_free_bytes: figures.disk_free_bytes },
            tls: site.tls.as_ref().map(|(identity, port)| TlsStatus {
                port: *port,
                ca_sha256: identity.ca().map(CaFingerprint::to_hex),
            }),
            appliance,
        }
    }

    /// As JSON.
    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("keys are strings and numbers are finite")
    }
}

fn degraded(state: StoreState) -> Option<String> {
    match state {
        StoreState::Open => None,
        StoreState::Degraded { reason, since: _ } => Some(reason.to_string()),
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

/// Seconds in a day.
const DAY_S: u64 = 24 * 60 * 60;

/// `2026-11-21T13:00:00Z` (RFC 3339), by the civil calendar in eras of 400 years.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / DAY_S, seconds % DAY_S);
    // Days are counted from 1 March of the year 0, so that a leap day ends its year.
    let since_march = days + 719_468;
    let (era, day) = (since_march / 146_097, since_march % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_795_266_000, "2026-11-21T13:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
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
        let status = Status {
            version: "0",
            name: "snowberry".into(),
            local_name: None,
            public_key: None,
            uptime_s: 1,
            offline_since_s: None,
            store: StoreStatus {
                budget_bytes: 0,
                used_bytes: 0,
                narinfos: 0,
                nars: 0,
                pinned_bytes: 0,
                written_bytes: 0,
                degraded: None,
            },
            scrub: ScrubStatus {
                state: "idle",
                checked_bytes: 0,
                of_bytes: 4,
                last_done_s: None,
                found: 0,
                repaired: 0,
            },
            traffic: Traffic {
                hits: 0,
                misses: 0,
                absent: 0,
                served_bytes: 0,
                fetched_bytes: 0,
                since: utc(UNIX_EPOCH),
            },
            queue: Queue::default(),
            upstreams: vec![UpstreamStatus {
                url: "https://cache.example".into(),
                state: "up",
                since_s: 2,
                push: false,
                last_error: None,
            }],
            host: HostStatus { machine: Machine::default(), disk_free_bytes: 3 },
            tls: None,
            appliance: None,
        };
        let expected = concat!(
            r#"{"version":"0","name":"snowberry","local_name":null,"public_key":null,"uptime_s":1,"#,
            r#""offline_since_s":null,"store":{"budget_bytes":0,"used_bytes":0,"narinfos":0,"#,
            r#""nars":0,"pinned_bytes":0,"written_bytes":0},"scrub":{"state":"idle","#,
            r#""checked_bytes":0,"of_bytes":4,"last_done_s":null,"found":0,"repaired":0},"#,
            r#""traffic":{"hits":0,"misses":0,"#,
            r#""absent":0,"served_bytes":0,"fetched_bytes":0,"since":"1970-01-01T00:00:00Z"},"#,
            r#""queue":{"waiting":0,"waiting_bytes":0,"oldest_s":null,"stopped":[],"#,
            r#""targets":[]},"#,
            r#""upstreams":[{"url":"https://cache.example","state":"up","since_s":2,"#,
            r#""push":false,"last_error":null}],"host":{"temperature_c":null,"#,
            r#""throttled":null,"memory_bytes":null,"disk_free_bytes":3},"tls":null,"appliance":null}"#,
        );
        assert_eq!(String::from_utf8(status.json()).expect("UTF-8"), expected);
    }
}
