//! What is not well, in sentences, from the figures: the same for page, status and command line.

use serde::Serialize;

use super::admin_scrub::{ScrubStatus, and_more};
use super::status::{HostStatus, Status, StoreStatus, UpstreamStatus};
use super::words::{bytes, span};

/// Below so much free the disk is nearly full: the store leaves 2 GiB, so somebody else fills it.
const DISK_FREE_MIN_BYTES: u64 = 256 << 20;

/// The same of a small budget: this part of it.
const DISK_FREE_MIN_PART: u64 = 20;

/// A clock further off is trouble: servers refuse signed requests at a quarter of an hour.
const CLOCK_OFF_MAX_S: u64 = 5 * 60;

/// What waits may take half of the budget; at four tenths somebody should know.
const WAITING_TENTHS: u64 = 4;

/// Paths that one sentence names.
const NAMED_MAX: usize = 3;

/// Something that is not well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Trouble {
    /// What it is, so that it is known again.
    #[serde(skip)]
    pub(super) key: String,
    /// What it is and what to do, in a sentence.
    pub(super) what: String,
    /// For how long.
    pub(super) since_s: Option<u64>,
}

fn trouble(key: impl Into<String>, since_s: Option<u64>, what: impl Into<String>) -> Trouble {
    Trouble { key: key.into(), what: what.into(), since_s }
}

impl Trouble {
    /// For people.
    pub(super) fn since(&self) -> Option<String> {
        self.since_s.map(|since_s| format!("for {}", span(since_s)))
    }
}

/// All that is not well, the worst first.
pub(super) fn troubles(status: &Status) -> Vec<Trouble> {
    let degraded = status.store.degraded.iter().map(|reason| {
        let what = format!("The store cannot be used, so nothing is answered from it: {reason}");
        trouble("degraded", status.store.degraded_since_s, what)
    });
    let offline = status.offline_since_s.iter().map(|since_s| {
        let what = "No upstream answers: what is held here is served, the rest must wait.";
        trouble("offline", Some(*since_s), what)
    });
    let renamed = status.local_name.iter().filter(|it| **it != format!("{}.local", status.name));
    let renamed = renamed.map(|local_name| {
        let name = &status.name;
        let what = format!(
            "Another machine in the house is {name}.local, so this one is {local_name}: give one \
             of them another name."
        );
        trouble("renamed", None, what)
    });
    let appliance = status.appliance.iter().flat_map(super::appliance::Appliance::troubles);
    let appliance = appliance.map(|what| trouble(what.clone(), None, what));
    let refusing = status.upstreams.iter().filter(|it| it.state == "refusing").map(refusing);
    let mut all: Vec<Trouble> = degraded.chain(of_store(&status.store)).collect();
    all.extend(of_scrub(&status.scrub));
    all.extend(offline.chain(refusing).chain(renamed).chain(of_queue(status)));
    all.extend(disk(status).into_iter().chain(appliance).chain(of_host(status)));
    all
}

fn of_store(store: &StoreStatus) -> Option<Trouble> {
    let what = format!(
        "The disk gave back {} rows or NARs otherwise than they were written since the start. They \
         were withdrawn and come anew, but the disk should be replaced.",
        store.corrupt
    );
    (store.corrupt > 0).then(|| trouble("corrupt", None, what))
}

/// What was lost to the disk: what nobody has now, and what somebody may have.
fn of_scrub(scrub: &ScrubStatus) -> impl Iterator<Item = Trouble> {
    let lost = |key: &str, nowhere: bool, what: &str, so: &str| {
        let (paths, all) = scrub.lost(nowhere);
        let since_s = paths.iter().map(|path| path.since_s).max();
        let names: Vec<_> = paths.iter().take(NAMED_MAX).map(|path| path.name.as_str()).collect();
        let more = and_more(names.len(), all);
        let more = if more.is_empty() { more } else { format!(" {more}") };
        let what = format!("The disk lost what {what}: {}{more}. {so}", names.join(", "));
        (all > 0).then(|| trouble(key, since_s, what))
    };
    let nowhere = "Build and push it again, or see to the upstream that had it.";
    let yet = "It is tried again whenever somebody asks for it, and each hour for two days: see to the \
               upstream that has it.";
    let nowhere = lost("unrepaired", true, "no upstream has now", nowhere);
    nowhere.into_iter().chain(lost(
        "not repaired yet",
        false,
        "could not be fetched again yet",
        yet,
    ))
}

fn refusing(upstream: &UpstreamStatus) -> Trouble {
    let why = upstream.error().unwrap_or_else(|| "no reason is known".to_owned());
    let what = format!("{} refuses us: {why}", upstream.url);
    trouble(format!("refusing {}", upstream.url), Some(upstream.since_s), what)
}

fn of_queue(status: &Status) -> impl Iterator<Item = Trouble> {
    let stopped = status.queue.targets.iter().filter(|target| target.state == "stopped");
    let stopped = stopped.map(|target| {
        let why = target.error().unwrap_or_else(|| "no reason is known".to_owned());
        let what =
            format!("{} does not take what the house builds, it waits here: {why}", target.url);
        trouble(format!("stopped {}", target.url), None, what)
    });
    let lost: u64 = status.queue.targets.iter().map(|target| target.lost).sum();
    let lost = (lost > 0).then(|| {
        let what = format!(
            "{lost} objects that were to be carried up are damaged: build and push them again."
        );
        trouble("lost", None, what)
    });
    let (waits, budget) = (status.queue.waiting_bytes, status.store.budget_bytes);
    let full = (budget > 0 && waits >= budget / 10 * WAITING_TENTHS).then(|| {
        let what = format!(
            "What waits to be carried up takes {} of the {} that the store may take: beyond a half \
             uploads are refused.",
            bytes(waits),
            bytes(budget)
        );
        trouble("waiting", None, what)
    });
    stopped.chain(lost).chain(full)
}

fn disk(status: &Status) -> Option<Trouble> {
    let (free, budget) = (status.host.disk_free_bytes, status.store.budget_bytes);
    let is_known = status.store.degraded.is_none() && free > 0;
    let is_full = free < DISK_FREE_MIN_BYTES.min(budget / DISK_FREE_MIN_PART);
    let what = format!(
        "The disk is nearly full, {} are left: something else than the store takes its room.",
        bytes(free)
    );
    (is_known && is_full).then(|| trouble("disk", None, what))
}

fn of_host(status: &Status) -> impl Iterator<Item = Trouble> {
    let machine = &status.host.machine;
    let is = |told: Option<bool>| told == Some(true);
    let voltage = is(machine.under_voltage).then(|| {
        let what = "The machine gets too little voltage: use the power supply made for it. Cards and \
                    disks lose data this way.";
        trouble("under-voltage", None, what)
    });
    let was = !is(machine.under_voltage) && is(machine.under_voltage_since_boot);
    let was_low = was.then(|| {
        let what = "The machine had too little voltage since it was started: look after the power \
                    supply and its cable.";
        trouble("under-voltage before", None, what)
    });
    let throttled = (is(machine.throttled) && !is(machine.under_voltage)).then(|| {
        let what = "The processor is being held back: look after the power supply and the cooling.";
        trouble("throttled", None, what)
    });
    let off = if status.host.clock_sane { clock_off(&status.host) } else { None };
    let clock = (!status.host.clock_sane).then(|| {
        let what = "The clock of this machine is years off, so encrypted upstreams refuse us: give it \
                    the network time, or set it.";
        trouble("clock", None, what)
    });
    let short_since_s = status.host.memory.short_since_s;
    let memory = short_since_s.map(|since_s| {
        let what = "The machine's memory runs short, so less is unpacked at once and NARs with large \
                    windows are left to other caches: see what else runs there.";
        trouble("memory", Some(since_s), what)
    });
    clock.into_iter().chain(off).chain(memory).chain(voltage).chain(was_low).chain(throttled)
}

/// A clock that can be right, and is not what upstreams say.
fn clock_off(host: &HostStatus) -> Option<Trouble> {
    let behind_s = host.clock_behind_s.filter(|it| it.unsigned_abs() > CLOCK_OFF_MAX_S)?;
    let what = format!(
        "The clock of this machine is {} {} what its upstreams say: give it the network time, or \
         set it.",
        span(behind_s.unsigned_abs()),
        if behind_s > 0 { "behind" } else { "ahead of" },
    );
    Some(trouble("clock off", None, what))
}

#[cfg(test)]
mod tests {
    use super::super::admin_scrub::UnrepairedPath;
    use super::super::appliance::Appliance;
    use super::super::status::tests::{status, target};
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Status), wanted: &[(&str, Option<u64>)]) {
        let mut ill = status();
        change(&mut ill);
        let found = troubles(&ill);
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (found, (part, since_s)) in found.iter().zip(wanted) {
            assert!(found.what.contains(part) && found.since_s == *since_s, "{part}: {found:?}");
        }
    }

    #[test]
    fn a_cache_that_is_well_has_none() {
        check(|_| {}, &[]);
    }

    #[test]
    fn each_trouble_is_told_with_its_beginning_where_it_is_known() {
        check(
            |it| {
                it.store.degraded = Some("the disk is missing".into());
                it.store.degraded_since_s = Some(9);
            },
            &[("the disk is missing", Some(9))],
        );
        check(|it| it.offline_since_s = Some(7200), &[("No upstream answers", Some(7200))]);
        check(|it| it.local_name = Some("s-2.local".into()), &[("this one is s-2.local", None)]);
        check(|it| it.store.corrupt = 2, &[("gave back 2 rows", None)]);
        check(|it| it.host.clock_sane = false, &[("clock", None)]);
        let off = |behind_s| move |it: &mut Status| it.host.clock_behind_s = Some(behind_s);
        check(off(7200), &[("is 2 h 0 min behind what", None)]);
        check(off(-7200), &[("is 2 h 0 min ahead of what", None)]);
        check(off(300), &[]);
        check(|it| it.host.memory.short_since_s = Some(7), &[("memory runs short", Some(7))]);
        let lost =
            |name: &str, since_s| UnrepairedPath { name: name.into(), since_s, nowhere: true };
        let promised = |name: &str| UnrepairedPath { nowhere: false, ..lost(name, 9) };
        check(
            |it| {
                it.scrub.unrepaired = 1;
                it.scrub.unrepaired_nowhere = 1;
                it.scrub.unrepaired_paths = vec![lost("a-1", 60)];
            },
            &[("no upstream has now: a-1. Build", Some(60))],
        );
        check(
            |it| {
                it.scrub.unrepaired = 70;
                it.scrub.unrepaired_nowhere = 70;
                it.scrub.unrepaired_paths = ["a", "b", "c", "d"].map(|it| lost(it, 5)).to_vec();
            },
            &[("now: a, b, c and 67 more. Build", Some(5))],
        );
        check(
            |it| {
                it.scrub.unrepaired = 6;
                it.scrub.unrepaired_nowhere = 1;
                it.scrub.unrepaired_paths = vec![lost("a-1", 60)];
                it.scrub.unrepaired_paths.extend(["b", "c", "d", "e"].map(promised));
            },
            &[
                ("no upstream has now: a-1. Build", Some(60)),
                ("could not be fetched again yet: b, c, d and 2 more. It is tried", Some(9)),
            ],
        );
        check(|it| it.host.machine.throttled = Some(true), &[("held back", None)]);
        check(
            |it| {
                it.host.machine.throttled = Some(true);
                it.host.machine.under_voltage = Some(true);
                it.host.machine.under_voltage_since_boot = Some(true);
            },
            &[("too little voltage", None)],
        );
        check(
            |it| it.host.machine.under_voltage_since_boot = Some(true),
            &[("had too little voltage", None)],
        );
        check(|it| it.host.disk_free_bytes = 1 << 20, &[("nearly full, 1.0 MiB", None)]);
        let appliance = Appliance { last_error: Some("no".into()), ..Appliance::default() };
        check(|it| it.appliance = Some(appliance), &[("The last update: no", None)]);
        check(
            |it| it.upstreams.iter_mut().for_each(|upstream| upstream.state = "refusing"),
            &[("cache.example refuses us: <refused>", Some(5))],
        );
    }

    #[test]
    fn a_queue_that_stands_still_is_told() {
        check(
            |it| {
                it.queue.targets = vec![super::super::status::Target {
                    state: "stopped",
                    lost: 3,
                    last_error: Some("put nar/x of s3://nix-cache: 403".into()),
                    ..target()
                }];
                it.queue.waiting_bytes = 100 << 30;
            },
            &[
                ("it waits here: put nar/x: 403", None),
                ("3 objects", None),
                ("100.0 GiB of the 200.0 GiB", None),
            ],
        );
    }
}
