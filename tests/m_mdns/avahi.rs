//! Beside Avahi: seen by it and through it by every program of the system, and not in its way on
//! the same machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::lines::Lines;
use crate::world::{House, Machine, Settings, parts, until};
use crate::{LIMIT, announced, browse, has, serve, until_found};

const BUS: &str = r#"<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/>
  </policy>
</busconfig>
"#;

/// Avahi on one machine, with a D-Bus and folders of its own. Dropping it ends it.
struct Avahi<'a> {
    machine: &'a Machine,
    root: PathBuf,
    scratch: TempDir,
    bus: Option<Lines>,
    daemon: Option<Lines>,
}

impl<'a> Avahi<'a> {
    /// None: the test was noted as skipped and must return.
    async fn start(machine: &'a Machine, host: &str, service: Option<&Path>) -> Option<Self> {
        let root = parts::part("mdns/root")?;
        let scratch = TempDir::new().unwrap();
        for folder in ["run/dbus", "run/avahi-daemon", "etc/avahi/services"] {
            fs::create_dir_all(scratch.path().join(folder)).unwrap();
        }
        let write = |name: &str, text: &str| {
            fs::write(scratch.path().join("etc").join(name), text).unwrap();
        };
        write("bus.conf", BUS);
        write("passwd", "root:x:0:0::/:/bin/sh\navahi:x:0:0::/:/bin/false\n");
        write("group", "root:x:0:\navahi:x:0:\nnetdev:x:0:\n");
        write("nsswitch.conf", "hosts: files mdns_minimal [NOTFOUND=return] dns\n");
        write(
            "avahi/avahi-daemon.conf",
            &format!(
                "[server]\nhost-name={host}\nuse-ipv4=yes\nuse-ipv6=yes\n[publish]\n\
                publish-workstation=no\npublish-hinfo=no\n"
            ),
        );
        if let Some(service) = service {
            let target = scratch.path().join("etc/avahi/services/snowberry.service");
            fs::copy(service, target).unwrap();
        }
        let mut avahi = Self { machine, root, scratch, bus: None, daemon: None };
        avahi.bus = Some(Lines::of(avahi.command(&["bus"])));
        let socket = avahi.scratch.path().join("run/dbus/system_bus_socket");
        until("D-Bus", LIMIT, || async { socket.exists().then_some(()) }).await;
        // It tells on stderr what it does.
        avahi.daemon = Some(Lines::of(avahi.telling_errors(&["daemon"])));
        avahi.log("Server startup complete").await;
        Some(avahi)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/m_mdns/avahi.sh");
        let mut command = self.machine.command(script);
        command.arg(&self.root).arg(self.scratch.path()).args(arguments).stdin(Stdio::null());
        command
    }

    /// The same with stderr where stdout goes.
    fn telling_errors(&self, arguments: &[&str]) -> Command {
        let plain = self.command(arguments);
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(plain.get_program());
        command.args(plain.get_args()).stdin(Stdio::null());
        command
    }

    async fn log(&self, words: &str) {
        let daemon = self.daemon.as_ref().unwrap();
        daemon.until(words, |line| line.contains(words)).await;
    }

    /// What a program says there.
    fn ask(&self, arguments: &[&str]) -> String {
        let told = self.command(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        text + &String::from_utf8_lossy(&told.stderr)
    }
}

#[tokio::test]
async fn avahi_and_every_program_of_a_laptop_resolve_the_name() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let Some(avahi) = Avahi::start(&laptop, "laptop", None).await else { return };
    let snowberry = serve(&pi).await;
    announced(&snowberry, "snowberry").await;
    let told = avahi.ask(&["avahi-resolve", "-4", "-n", "snowberry.local"]);
    assert_eq!(told.trim(), "snowberry.local\t10.77.0.2");
    let told = avahi.ask(&["avahi-resolve", "-6", "-n", "snowberry.local"]);
    assert_eq!(told.trim(), "snowberry.local\tfd77::2");
    // Through libnss-mdns, as browsers and curl do; the first answer may be of either kind.
    let told = avahi.ask(&["getent", "ahosts", "snowberry.local"]);
    assert!(told.contains("10.77.0.2") && told.contains("fd77::2"), "{told}");
    assert!(!told.contains("fe80"), "{told}");
    let told = avahi.ask(&["avahi-browse", "-rpt", "_nix-cache._tcp"]);
    let resolved = told.lines().find(|line| line.starts_with("=;eth0;IPv4;snowberry;"));
    let resolved = resolved.unwrap_or_else(|| panic!("{told}"));
    for part in ["snowberry.local;10.77.0.2;80;", "\"v=1\"", "\"store=/nix/store\"", "\"key="] {
        assert!(resolved.contains(part), "{part} is not in {resolved}");
    }
}

#[tokio::test]
async fn avahi_on_the_same_machine_may_say_the_same_name() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let Some(avahi) = Avahi::start(&pi, "snowberry", None).await else { return };
    let snowberry = serve(&pi).await;
    announced(&snowberry, "snowberry").await;
    let browser = browse(&laptop);
    until_found(&browser, "the Pi", |found| has(found, "snowberry", "10.77.0.2")).await;
    assert!(snowberry.log().iter().all(|line| !line.contains("another machine")));
    let log = avahi.daemon.as_ref().unwrap().all();
    assert!(log.iter().all(|line| !line.to_lowercase().contains("conflict")), "{log:#?}");
}

#[tokio::test]
async fn a_pi_that_leaves_it_to_avahi_is_found_too() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/avahi-snowberry.service");
    let Some(_avahi) = Avahi::start(&pi, "attic", Some(&file)).await else { return };
    let _snowberry = Settings::new().on(&pi).set("mdns.enabled=false").start().await;
    let browser = browse(&laptop);
    let found = until_found(&browser, "the Pi", |found| has(found, "attic", "10.77.0.2")).await;
    assert_eq!((found[0].port, found[0].store_dir.as_str()), (80, "/nix/store"));
}
