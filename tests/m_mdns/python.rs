//! Seen by python-zeroconf, which has nothing in common with what speaks here.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use crate::lines::Lines;
use crate::world::{House, Machine, parts};
use crate::{announced, serve, status};

/// None: the test was noted as skipped and must return.
fn zeroconf(machine: &Machine, arguments: &[&str]) -> Option<Lines> {
    let python = parts::part("mdns/venv/bin/python3")?;
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/m_mdns/house.py");
    let mut command = machine.command(python);
    command.arg(script).args(arguments).stdin(Stdio::null());
    Some(Lines::of(command))
}

async fn said(lines: &Lines, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let line = lines.until(what, |line| serde_json::from_str(line).is_ok_and(|it| fits(&it))).await;
    serde_json::from_str(&line).unwrap()
}

#[tokio::test]
async fn python_finds_the_pi_and_hears_its_goodbye() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let Some(python) = zeroconf(&laptop, &["follow"]) else { return };
    said(&python, "its start", |line| line["ready"] == true).await;
    let mut snowberry = serve(&pi).await;
    let came = said(&python, "the Pi", |line| {
        line["addresses"] == serde_json::json!(["10.77.0.2", "fd77::2"])
    })
    .await;
    assert_eq!(came["came"], "snowberry._nix-cache._tcp.local.");
    assert_eq!((&came["host"], &came["port"]), (&"snowberry.local.".into(), &80.into()));
    let key = status(&laptop, "10.77.0.2")["public_key"].clone();
    let txt = serde_json::json!({"v": "1", "store": "/nix/store", "priority": "30", "key": key});
    assert_eq!(came["txt"], txt);
    snowberry.stop().await;
    said(&python, "the goodbye", |line| line["left"] == "snowberry._nix-cache._tcp.local.").await;
}

#[tokio::test]
async fn a_name_that_another_kind_of_machine_has_is_left_to_it() {
    let Some(house) = House::build() else { return };
    let (printer, pi) = (house.machine(2), house.machine(3));
    let Some(python) = zeroconf(&printer, &["hold", "snowberry", "10.77.0.2"]) else { return };
    said(&python, "its start", |line| line["ready"] == true).await;
    let snowberry = serve(&pi).await;
    announced(&snowberry, "snowberry-2").await;
}

/// As systemd-resolved does it, which says its link-local address too.
#[tokio::test]
async fn the_same_name_said_by_this_machine_is_no_conflict() {
    let Some(house) = House::build() else { return };
    let pi = house.machine(2);
    pi.ip("addr add fe80::77/64 dev eth0 nodad");
    let own = ["hold", "snowberry", "10.77.0.2", "fd77::2", "fe80::77"];
    let Some(python) = zeroconf(&pi, &own) else { return };
    said(&python, "its start", |line| line["ready"] == true).await;
    let snowberry = serve(&pi).await;
    announced(&snowberry, "snowberry").await;
    assert!(snowberry.log().iter().all(|line| !line.contains("another machine")));
}
