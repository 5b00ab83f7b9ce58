//! Where nothing is said.

use crate::world::{House, Machine, Settings, Snowberry};
use crate::{LIMIT, announced};

/// 224.0.0.251 as `/proc/net/igmp` writes it.
const GROUP: &str = "FB0000E0";
/// 5353 as `/proc/net/udp` writes it.
const PORT: &str = ":14E9";

fn net(machine: &Machine, file: &str) -> String {
    let told = machine.command("cat").arg(format!("/proc/self/net/{file}")).output().unwrap();
    String::from_utf8(told.stdout).unwrap()
}

/// The interfaces that have joined the group of multicast DNS.
fn listening_on(machine: &Machine) -> Vec<String> {
    let mut joined = Vec::new();
    let mut interface = String::new();
    for line in net(machine, "igmp").lines().skip(1) {
        if line.starts_with(|c: char| c.is_ascii_digit()) {
            line.split_whitespace().nth(1).unwrap().clone_into(&mut interface);
        } else if line.contains(GROUP) {
            joined.push(interface.clone());
        }
    }
    joined
}

fn threads(snowberry: &Snowberry) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", snowberry.pid())).unwrap();
    tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap()).collect()
}

async fn check_silent(settings: &str) {
    let Some(house) = House::build() else { return };
    let pi = house.machine(2);
    let snowberry = Settings::new().on(&pi).set(settings).start().await;
    snowberry.ready().await;
    let (udp, udp6) = (net(&pi, "udp"), net(&pi, "udp6"));
    assert!(!udp.contains(PORT) && !udp6.contains(PORT), "{udp}{udp6}");
    assert_eq!(listening_on(&pi), [""; 0]);
    let threads = threads(&snowberry);
    assert!(threads.iter().all(|name| !name.to_lowercase().contains("mdns")), "{threads:?}");
    assert!(threads.len() > 1, "the threads were not found");
}

#[tokio::test]
async fn a_server_on_loopback_says_nothing_and_has_no_thread_for_it() {
    check_silent(r#"listen=["127.0.0.1:80", "[::1]:80"]"#).await;
}

#[tokio::test]
async fn it_can_be_switched_off() {
    check_silent("mdns.enabled=false").await;
}

#[tokio::test]
async fn containers_are_not_told() {
    let Some(house) = House::build() else { return };
    let pi = house.machine(2);
    for (interface, port) in [("docker0", "port2b"), ("tailscale0", "port2c")] {
        pi.plug(interface, port);
        pi.ip(&format!("link set {interface} up"));
    }
    pi.ip("addr add 10.78.0.1/24 dev docker0");
    pi.ip("addr add 10.79.0.1/24 dev tailscale0");
    let mut snowberry = Settings::new().on(&pi).start().await;
    let line = snowberry.log_line(&["announced in the house"], LIMIT).await;
    assert!(
        line.contains("10.77.0.2") && !line.contains("10.78") && !line.contains("10.79"),
        "{line}"
    );
    assert_eq!(listening_on(&pi), ["eth0"]);
    // Unless they are named.
    snowberry.stop().await;
    let chosen = Settings::new().on(&pi).set(r#"mdns.interfaces=["docker*"]"#);
    snowberry.restart_with(chosen).await;
    let line = snowberry.log_line(&["announced in the house", "10.78.0.1"], LIMIT).await;
    assert!(!line.contains("10.77.0.2"), "{line}");
    assert_eq!(listening_on(&pi), ["docker0"]);
}

#[tokio::test]
async fn who_listens_on_one_address_announces_that_one() {
    let Some(house) = House::build() else { return };
    let pi = house.machine(2);
    pi.ip("addr add 10.77.0.200/24 dev eth0");
    let only = Settings::new().on(&pi).set(r#"listen=["10.77.0.200:80"]"#);
    let snowberry = only.start().await;
    announced(&snowberry, "snowberry").await;
    let line = snowberry.log_line(&["announced in the house"], LIMIT).await;
    assert!(line.contains("addresses=[10.77.0.200]"), "{line}");
}
