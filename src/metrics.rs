//! Every figure, declared once with its meaning; page, status and `/metrics` read them here.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text::encode};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

// For those who look a figure up once and keep it where each request passes.
pub use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs, reason = "the label says it")]
pub enum Kind {
    Narinfo,
    Nar,
    Listing,
    Document,
    Other,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs, reason = "the label says it")]
pub enum Ended {
    /// From our own disk.
    Hit,
    /// From an upstream.
    Miss,
    /// Nowhere to be had: 404.
    Absent,
    /// Refused for the asker's sake: 4xx other than 404.
    Refused,
}

/// The labels of `requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// What was asked for.
    pub kind: Kind,
    /// How it ended.
    pub outcome: Ended,
}

/// The label of `request_seconds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// What was asked for.
    pub kind: Kind,
}

/// The label of the figures that each upstream has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabel {
    /// Its URL without user data.
    pub upstream: String,
}

/// Seconds: from a narinfo hit (under a millisecond) to the longest fill that people wait for.
const SECONDS_BUCKETS: [f64; 12] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0];

type SecondsFamily<L> = Family<L, Histogram, fn() -> Histogram>;

fn seconds() -> Histogram {
    Histogram::new(SECONDS_BUCKETS)
}

/// Where a figure has no labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLabel {}

/// A figure that not every machine has: it is there while it is known.
#[derive(Debug, Clone, Default)]
pub struct Known(Family<NoLabel, Gauge<f64, AtomicU64>>);

impl Known {
    /// It is so now, or not known.
    pub fn set(&self, value: Option<f64>) {
        match value {
            Some(value) => {
                self.0.get_or_create(&NoLabel {}).set(value);
            }
            None => self.0.clear(),
        }
    }
}

/// Handles on all figures. A cheap clone.
#[derive(Clone)]
pub struct Metrics {
    /// Questions of clients, by kind and outcome.
    pub requests: Family<RequestLabels, Counter>,
    /// Seconds from a question to the last byte of its head, by kind.
    pub request_seconds: SecondsFamily<KindLabel>,
    /// Bytes of bodies sent to clients.
    pub served_bytes: Counter,
    /// Bytes of bodies that came from upstreams.
    pub fetched_bytes: Counter,
    /// Transfers of NARs from upstreams that were begun.
    pub fills: Counter,
    /// Fills that were cut or came to nothing.
    pub fills_failed: Counter,
    /// Bytes that stored rows take.
    pub store_bytes: Gauge,
    /// Bytes that stored rows may take.
    pub store_budget_bytes: Gauge,
    /// Bytes of what is pinned.
    pub pinned_bytes: Gauge,
    /// Bytes written to the store's files.
    pub disk_written_bytes: Counter,
    /// NARs evicted to make room.
    pub evicted: Counter,
    /// Rows and NARs found damaged, and withdrawn.
    pub corrupt: Counter,
    /// 1 while the store is open.
    pub store_up: Gauge,
    /// NARs held.
    pub store_nars: Gauge,
    /// narinfos held.
    pub store_narinfos: Gauge,
    /// Bytes free on the store's file system.
    pub disk_free_bytes: Gauge,
    /// For how long no upstream has answered.
    pub offline_seconds: Gauge,
    /// For how long the daemon runs.
    pub uptime_seconds: Gauge,
    /// 1 while the clock can be right.
    pub clock_sane: Gauge,
    /// Resident memory of this process.
    pub memory_bytes: Gauge,
    /// What this process may take.
    pub memory_room_bytes: Known,
    /// 1 while memory runs short.
    pub memory_short: Gauge,
    /// The processor's temperature.
    pub temperature_celsius: Known,
    /// 1 while under-voltage or heat holds the processor back.
    pub throttled: Known,
    /// 1 while the supply is too weak.
    pub under_voltage: Known,
    /// Bytes of stored streams that the scrub read.
    pub scrubbed_bytes: Counter,
    /// NARs that were withdrawn for their bytes and fetched again.
    pub repaired: Counter,
    /// Bytes that this round of the scrub has read.
    pub scrub_checked_bytes: Gauge,
    /// Bytes that it has to read.
    pub scrub_size_bytes: Gauge,
    /// For how long the last round has been over.
    pub scrub_age_seconds: Known,
    /// NARs that scrubs found damaged, restarts or not.
    pub scrub_found: Gauge,
    /// NARs that were fetched again, restarts or not.
    pub scrub_repaired: Gauge,
    /// NARs that were withdrawn for their bytes and are not here again.
    pub scrub_unrepaired: Gauge,
    /// 1 while an upstream answers, 0 while it does not.
    pub upstream_up: Family<UpstreamLabel, Gauge>,
    /// Seconds from a question to an upstream to the head of its answer.
    pub upstream_request_seconds: SecondsFamily<UpstreamLabel>,
    /// Rows of the queue that wait, at all targets.
    pub push_waiting: Gauge,
    /// Age of the oldest row that waits.
    pub push_oldest_seconds: Gauge,
    /// Rows that are set aside because a target does not take them, or what they refer to.
    pub push_parked: Gauge,
    /// Rows whose bytes turned out damaged.
    pub push_lost: Gauge,
    /// Paths and documents that a target has now.
    pub pushed: Counter,
    /// Bytes that were sent for them.
    pub pushed_bytes: Counter,
    /// Tries that came to nothing, each of them repeated.
    pub push_failed: Counter,
    /// Paths that were dropped or not carried up, because they are known with another NAR.
    pub push_differs: Counter,
    registry: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All figures at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            served_bytes: Counter::default(),
            fetched_bytes: Counter::default(),
            fills: Counter::default(),
            fills_failed: Counter::default(),
            store_bytes: Gauge::default(),
            store_budget_bytes: Gauge::default(),
            pinned_bytes: Gauge::default(),
            disk_written_bytes: Counter::default(),
            evicted: Counter::default(),
            corrupt: Counter::default(),
            store_up: Gauge::default(),
            store_nars: Gauge::default(),
            store_narinfos: Gauge::default(),
            disk_free_bytes: Gauge::default(),
            offline_seconds: Gauge::default(),
            uptime_seconds: Gauge::default(),
            clock_sane: Gauge::default(),
            memory_bytes: Gauge::default(),
            memory_room_bytes: Known::default(),
            memory_short: Gauge::default(),
            temperature_celsius: Known::default(),
            throttled: Known::default(),
            under_voltage: Known::default(),
            scrubbed_bytes: Counter::default(),
            repaired: Counter::default(),
            scrub_checked_bytes: Gauge::default(),
            scrub_size_bytes: Gauge::default(),
            scrub_age_seconds: Known::default(),
            scrub_found: Gauge::default(),
            scrub_repaired: Gauge::default(),
            scrub_unrepaired: Gauge::default(),
            upstream_up: Family::default(),
            upstream_request_seconds: Family::new_with_constructor(seconds),
            push_waiting: Gauge::default(),
            push_oldest_seconds: Gauge::default(),
            push_parked: Gauge::default(),
            push_lost: Gauge::default(),
            pushed: Counter::default(),
            pushed_bytes: Counter::default(),
            push_failed: Counter::default(),
            push_differs: Counter::default(),
            registry: Arc::default(),
        };
        let mut registry = Registry::with_prefix("snowberry");
        metrics.register(&mut registry);
        metrics.registry = Arc::new(registry);
        metrics
    }

    /// An upstream is not asked any more: a gauge that stays would keep an alarm going.
    pub fn upstream_gone(&self, url: &str) {
        self.upstream_up.remove(&UpstreamLabel { upstream: url.to_owned() });
    }

    /// The same in the older text format of Prometheus (0.0.4): there a counter is called as its
    /// samples are, and neither units nor an end are told.
    pub fn plain_text(&self) -> String {
        let text = self.text();
        let mut plain = String::with_capacity(text.len());
        let mut help = None;
        for line in text.lines() {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some("HELP"), Some(_), told) => help = told,
                (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                    let total = if kind == "counter" { "_total" } else { "" };
                    let help = help.take().unwrap_or_default();
                    let told =
                        format!("# HELP {name}{total} {help}\n# TYPE {name}{total} {kind}\n");
                    plain.push_str(&told);
                }
                (Some("#"), _, _, _) => {}
                _ => {
                    plain.push_str(line);
                    plain.push('\n');
                }
            }
        }
        plain
    }

    /// The text that Prometheus reads (`OpenMetrics` 1.0).
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }

    fn register(&self, to: &mut Registry) {
        let bytes = Unit::Bytes;
        let seconds = Unit::Seconds;
        to.register("requests", "Questions of clients", self.requests.clone());
        let help = "Time from a question to the head of its answer";
        to.register_with_unit("request", help, seconds.clone(), self.request_seconds.clone());
        let help = "Bodies sent to clients";
        to.register_with_unit("served", help, bytes.clone(), self.served_bytes.clone());
        let help = "Bodies that came from upstreams";
        to.register_with_unit("fetched", help, bytes.clone(), self.fetched_bytes.clone());
        to.register(
            "fills",
            "Transfers of NARs from upstreams that were begun",
            self.fills.clone(),
        );
        let help = "Fills that were cut or came to nothing";
        to.register("fills_failed", help, self.fills_failed.clone());
        let help = "What stored rows take";
        to.register_with_unit("store", help, bytes.clone(), self.store_bytes.clone());
        let help = "What stored rows may take";
        to.register_with_unit("store_budget", help, bytes.clone(), self.store_budget_bytes.clone());
        let help = "Bytes of stored rows that are pinned";
        to.register_with_unit("pinned", help, bytes.clone(), self.pinned_bytes.clone());
        let help = "What was written to the store's files";
        let written = self.disk_written_bytes.clone();
        to.register_with_unit("disk_written", help, bytes.clone(), written);
        to.register("evicted", "NARs evicted to make room", self.evicted.clone());
        to.register("corrupt", "Rows and NARs found damaged, and withdrawn", self.corrupt.clone());
        let help = "Stored streams that the scrub read";
        to.register_with_unit("scrubbed", help, bytes, self.scrubbed_bytes.clone());
        let help = "NARs that were withdrawn for their bytes and fetched again";
        to.register("repaired", help, self.repaired.clone());
        self.register_scrub(to);
        let help = "1 while the upstream answers, 0 while it does not";
        to.register("upstream_up", help, self.upstream_up.clone());
        let help = "Time from a question to an upstream to the head of its answer";
        let family = self.upstream_request_seconds.clone();
        to.register_with_unit("upstream_request", help, seconds, family);
        self.register_push(to);
        self.register_state(to);
    }

    /// What is set from the status when somebody reads it.
    fn register_state(&self, to: &mut Registry) {
        let help = "1 while the store is open, 0 while nothing can be answered from it";
        to.register("store_up", help, self.store_up.clone());
        to.register("store_nars", "NARs held", self.store_nars.clone());
        to.register("store_narinfos", "Narinfos held", self.store_narinfos.clone());
        let help = "What is free on the file system of the store";
        to.register_with_unit("disk_free", help, Unit::Bytes, self.disk_free_bytes.clone());
        let help = "For how long no upstream has answered, 0 while one does";
        to.register_with_unit("offline", help, Unit::Seconds, self.offline_seconds.clone());
        let help = "For how long the daemon runs";
        to.register_with_unit("uptime", help, Unit::Seconds, self.uptime_seconds.clone());
        let help = "1 while the clock can be right, 0 while it is years off";
        to.register("clock_sane", help, self.clock_sane.clone());
        let help = "Resident memory of this process";
        to.register_with_unit("memory", help, Unit::Bytes, self.memory_bytes.clone());
        let help = "What this process may take of the machine's memory";
        let room = self.memory_room_bytes.0.clone();
        to.register_with_unit("memory_room", help, Unit::Bytes, room);
        let help = "1 while memory runs short";
        to.register("memory_short", help, self.memory_short.clone());
        let help = "Temperature of the processor";
        let degrees = self.temperature_celsius.0.clone();
        to.register_with_unit("temperature", help, Unit::Celsius, degrees);
        let help = "1 while under-voltage or heat holds the processor back";
        to.register("throttled", help, self.throttled.0.clone());
        let help = "1 while the power supply is too weak";
        to.register("under_voltage", help, self.under_voltage.0.clone());
    }

    fn register_scrub(&self, to: &mut Registry) {
        let help = "What this round of the scrub has read";
        let checked = self.scrub_checked_bytes.clone();
        to.register_with_unit("scrub_checked", help, Unit::Bytes, checked);
        let help = "What it has to read";
        to.register_with_unit("scrub_size", help, Unit::Bytes, self.scrub_size_bytes.clone());
        let help = "For how long the last round has been over";
        let age = self.scrub_age_seconds.0.clone();
        to.register_with_unit("scrub_age", help, Unit::Seconds, age);
        let help = "NARs that scrubs found damaged, restarts or not";
        to.register("scrub_found", help, self.scrub_found.clone());
        let help = "NARs that were fetched again, restarts or not";
        to.register("scrub_repaired", help, self.scrub_repaired.clone());
        let help = "NARs that were withdrawn for their bytes and could not be fetched again so far";
        to.register("scrub_unrepaired", help, self.scrub_unrepaired.clone());
    }

    fn register_push(&self, to: &mut Registry) {
        to.register("push_waiting", "Rows of the queue that wait", self.push_waiting.clone());
        let help = "Age of the oldest row that waits";
        let oldest = self.push_oldest_seconds.clone();
        to.register_with_unit("push_oldest", help, Unit::Seconds, oldest);
        let help = "Rows that are set aside because a target does not take them";
        to.register("push_parked", help, self.push_parked.clone());
        let help = "Rows whose bytes turned out damaged";
        to.register("push_lost", help, self.push_lost.clone());
        to.register("pushed", "Paths and documents that a target has now", self.pushed.clone());
        let help = "What was sent to push targets";
        to.register_with_unit("pushed", help, Unit::Bytes, self.pushed_bytes.clone());
        let help = "Tries to push that came to nothing";
        to.register("push_failed", help, self.push_failed.clone());
        let help = "Paths that are held elsewhere with another NAR";
        to.register("push_differs", help, self.push_differs.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_names_that_dashboards_rely_on() {
        let metrics = Metrics::new();
        metrics
            .requests
            .get_or_create(&RequestLabels { kind: Kind::Narinfo, outcome: Ended::Hit })
            .inc();
        metrics.request_seconds.get_or_create(&KindLabel { kind: Kind::Nar }).observe(0.2);
        let upstream = UpstreamLabel { upstream: "https://cache.example".into() };
        metrics.upstream_up.get_or_create(&upstream).set(1);
        let text = metrics.text();
        for line in [
            "snowberry_requests_total{kind=\"Narinfo\",outcome=\"Hit\"} 1",
            "snowberry_served_bytes_total 0",
            "snowberry_fetched_bytes_total 0",
            "snowberry_request_seconds_count{kind=\"Nar\"} 1",
            "snowberry_store_bytes 0",
            "snowberry_store_budget_bytes 0",
            "snowberry_pinned_bytes 0",
            "snowberry_disk_written_bytes_total 0",
            "snowberry_upstream_up{upstream=\"https://cache.example\"} 1",
            "snowberry_evicted_total 0",
            "snowberry_corrupt_total 0",
            "snowberry_scrubbed_bytes_total 0",
            "snowberry_repaired_total 0",
            "snowberry_push_waiting 0",
            "snowberry_push_oldest_seconds 0",
            "snowberry_pushed_total 0",
            "snowberry_pushed_bytes_total 0",
            "snowberry_push_differs_total 0",
            "snowberry_store_up 0",
            "snowberry_disk_free_bytes 0",
            "snowberry_offline_seconds 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_there() {
        let metrics = Metrics::new();
        metrics.temperature_celsius.set(Some(48.5));
        assert!(metrics.text().contains("\nsnowberry_temperature_celsius{} 48.5\n"));
        metrics.temperature_celsius.set(None);
        assert!(!metrics.text().contains("\nsnowberry_temperature_celsius{"));
    }

    #[test]
    fn the_older_form_calls_a_counter_as_its_samples_are() {
        let metrics = Metrics::new();
        metrics.served_bytes.inc_by(7);
        let text = metrics.plain_text();
        let wanted = "# HELP snowberry_served_bytes_total Bodies sent to clients.\n\
                      # TYPE snowberry_served_bytes_total counter\n\
                      snowberry_served_bytes_total 7\n";
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains("# TYPE snowberry_store_bytes gauge\n"), "{text}");
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
    }
}
