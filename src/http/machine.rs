//! How the machine is: temperature, throttling, our own memory. Read off the reactor, and at most
//! once in a few seconds however often it is asked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use sysinfo::{Component, Components, ProcessRefreshKind, ProcessesToUpdate, System};

/// How long figures count as current: a browser that reloads must not make a Pi read its sensors
/// (some take milliseconds) more often than they change.
const FRESH: Duration = Duration::from_secs(5);

/// Where the kernel tells of the machine.
const SYSTEM: &str = "/sys";

/// Where the Pi's firmware says whether it holds the processor back; its own kernel alone has it.
const THROTTLED_PATH: &str = "devices/platform/soc/soc:firmware/get_throttled";

/// What holds back now: under-voltage, frequency capped, throttled, soft temperature limit. The
/// higher bits say that it happened since boot.
const THROTTLED_NOW: u64 = 0b1111;

/// Under-voltage now.
const UNDER_VOLTAGE: u64 = 1;

/// Under-voltage since boot.
const UNDER_VOLTAGE_BEFORE: u64 = 1 << 16;

/// Sensors of other kernels: the Pi's voltage is one that only says whether it is too low.
const SENSORS: &str = "class/hwmon";
const VOLTAGE_SENSOR: &str = "rpi_volt";
const VOLTAGE_ALARM: &str = "in0_lcrit_alarm";

/// The machine's figures; what cannot be known is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Machine {
    /// The processor's temperature.
    pub(super) temperature_c: Option<f32>,
    /// Whether under-voltage or heat holds the processor back now.
    pub(super) throttled: Option<bool>,
    /// Whether the supply is too weak now.
    pub(super) under_voltage: Option<bool>,
    /// Whether it was since the machine was started.
    pub(super) under_voltage_since_boot: Option<bool>,
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
    let supply = supply(Path::new(SYSTEM));
    Machine { temperature_c: temperature(), memory_bytes: resident_bytes(), ..supply }
}

/// What the Pi says of its power supply, by its own kernel or by another.
fn supply(system: &Path) -> Machine {
    let mask = fs::read_to_string(system.join(THROTTLED_PATH)).ok().and_then(|text| mask(&text));
    let has = |bits: u64| mask.map(|mask| mask & bits != 0);
    Machine {
        throttled: has(THROTTLED_NOW),
        under_voltage: has(UNDER_VOLTAGE).or_else(|| voltage_alarm(system)),
        under_voltage_since_boot: has(UNDER_VOLTAGE | UNDER_VOLTAGE_BEFORE),
        ..Machine::default()
    }
}

fn voltage_alarm(system: &Path) -> Option<bool> {
    let sensors = fs::read_dir(system.join(SENSORS)).ok()?;
    let folders = sensors.filter_map(|sensor| Some(sensor.ok()?.path()));
    let is_voltage = |folder: &PathBuf| {
        fs::read_to_string(folder.join("name")).is_ok_and(|name| name.trim() == VOLTAGE_SENSOR)
    };
    let folder = folders.into_iter().find(is_voltage)?;
    match fs::read_to_string(folder.join(VOLTAGE_ALARM)).ok()?.trim() {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
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
fn mask(text: &str) -> Option<u64> {
    let digits = text.trim();
    u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Throttled, under-voltage, and that since boot, where the firmware's file says `text`.
    fn by_firmware(text: &str) -> [Option<bool>; 3] {
        let system = tempfile::tempdir().unwrap();
        let file = system.path().join(THROTTLED_PATH);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        let machine = supply(system.path());
        [machine.throttled, machine.under_voltage, machine.under_voltage_since_boot]
    }

    #[test]
    fn the_firmware_s_mask_says_what_holds_now_and_what_did() {
        let [yes, no] = [Some(true), Some(false)];
        for (text, expected) in [
            ("0\n", [no, no, no]),
            ("0x0", [no, no, no]),
            ("50005\n", [yes, yes, yes]),
            ("0x50000\n", [no, no, yes]),
            ("0x8", [yes, no, no]),
            ("", [None; 3]),
            ("no", [None; 3]),
        ] {
            assert_eq!(by_firmware(text), expected, "{text:?}");
        }
    }

    #[test]
    fn where_the_firmware_says_nothing_the_sensor_does() {
        for (name, alarm, expected) in [
            ("rpi_volt\n", "1\n", Some(true)),
            ("rpi_volt", "0", Some(false)),
            ("rpi_volt", "?", None),
            ("cpu_thermal", "1", None),
        ] {
            let system = tempfile::tempdir().unwrap();
            let folder = system.path().join(SENSORS).join("hwmon3");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("name"), name).unwrap();
            fs::write(folder.join(VOLTAGE_ALARM), alarm).unwrap();
            let machine = supply(system.path());
            assert_eq!((machine.under_voltage, machine.throttled), (expected, None), "{name}");
        }
        assert_eq!(supply(Path::new("/nowhere")), Machine::default());
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
