//! How the machine is: temperature, throttling, our own memory. Read off the reactor, and at most
//! once in a few seconds however often it is asked for.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use sysinfo::{Component, Components, ProcessRefreshKind, ProcessesToUpdate, System};

/// How long figures count as current: a browser that reloads must not make a Pi read its sensors
/// (some take milliseconds) more often than they change.
const FRESH: Duration = Duration::from_secs(5);

/// Where the Pi's firmware says whether it holds the processor back.
const THROTTLED_PATH: &str = "/sys/devices/platform/soc/soc:firmware/get_throttled";

/// What holds back now: under-voltage, frequency capped, throttled, soft temperature limit. The
/// higher bits say that it happened since boot.
const THROTTLED_NOW: u64 = 0b1111;

/// The machine's figures; what cannot be known is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Machine {
    /// The processor's temperature.
    pub(super) temperature_c: Option<f32>,
    /// Whether under-voltage or heat holds the processor back now.
    pub(super) throttled: Option<bool>,
    /// Resident memory of this process.
    pub(super) memory_bytes: Option<u64>,
}

/// The last reading.
#[derive(Default)]
pub(super) struct Machines {
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    machine: Machine,
    at: Option<Instant>,
}

impl Machines {
    /// The figures, at most [`FRESH`] old; while another request reads them, the ones before.
    pub(super) async fn current(&self) -> Machine {
        if let Some(machine) = self.fresh(Instant::now()) {
            return machine;
        }
        // The blocking pool is joined by the runtime; a panic in a sensor's driver is no figure.
        let machine = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        self.last.lock().unwrap_or_else(PoisonError::into_inner).machine = machine;
        machine
    }

    /// The last reading when it counts; `None` once for whoever must take the next.
    fn fresh(&self, now: Instant) -> Option<Machine> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.at.is_some_and(|at| now.saturating_duration_since(at) < FRESH) {
            return Some(last.machine);
        }
        last.at = Some(now);
        None
    }
}

fn read() -> Machine {
    Machine {
        temperature_c: temperature(),
        throttled: fs::read_to_string(Path::new(THROTTLED_PATH)).ok().and_then(|t| throttled(&t)),
        memory_bytes: resident_bytes(),
    }
}

/// The processor's sensor by its label; the first of all where none says so.
fn temperature() -> Option<f32> {
    let components = Components::new_with_refreshed_list().ok()?;
    let of_processor = |component: &&Component| {
        let label = component.label().to_ascii_lowercase();
        ["cpu", "package", "tctl", "soc"].iter().any(|word| label.contains(word))
    };
    let component = components.iter().find(of_processor).or_else(|| components.first())?;
    component.temperature().filter(|temperature| temperature.is_finite())
}

fn resident_bytes() -> Option<u64> {
    let own = sysinfo::get_current_pid().ok()?;
    let mut system = System::new().ok()?;
    let what = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
    system.process(own).map(sysinfo::Process::memory)
}

/// From the firmware's hexadecimal mask.
fn throttled(text: &str) -> Option<bool> {
    let digits = text.trim();
    let mask = u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()?;
    Some(mask & THROTTLED_NOW != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_s_mask_says_what_holds_now() {
        for (text, expected) in [
            ("0\n", Some(false)),
            ("0x0", Some(false)),
            ("50005\n", Some(true)),
            ("0x50000\n", Some(false)),
            ("0x8", Some(true)),
            ("", None),
            ("no", None),
        ] {
            assert_eq!(throttled(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sensors_are_read_once_in_a_while() {
        let machines = Machines::default();
        let now = Instant::now();
        assert_eq!(machines.fresh(now), None);
        assert_eq!(machines.fresh(now), Some(Machine::default()));
        assert_eq!(machines.fresh(now + FRESH), None);
        assert!(machines.fresh(now + FRESH).is_some());
    }

    #[tokio::test]
    async fn our_own_memory_is_known() {
        let machine = Machines::default().current().await;
        assert!(machine.memory_bytes.is_some_and(|bytes| bytes > 0), "{machine:?}");
    }
}
