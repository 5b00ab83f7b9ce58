//! A house: its machines are network namespaces, each with an `eth0` of its own, joined by a bridge
//! in a namespace of the house. No packet leaves it, and none comes in. Needs root and `ip`.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::parts;

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";
/// All namespaces of these tests begin so, then comes the process that made them.
const PREFIX: &str = "snowtest";

/// Dropping it takes the network away.
pub(crate) struct House {
    prefix: String,
}

/// A machine of the house, with an address of each kind that ends with the same number.
pub(crate) struct Machine {
    space: String,
    /// Its end of the cable at the switch.
    port: String,
    switch: String,
}

fn ip(arguments: &str) {
    let told = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success(), "ip {arguments}: {error}");
}

impl House {
    /// None: the test was noted as skipped and must return.
    pub(crate) fn build() -> Option<Self> {
        static HOUSES: AtomicU32 = AtomicU32::new(0);
        parts::program("ip")?;
        remove_what_was_left();
        let number = HOUSES.fetch_add(1, Ordering::Relaxed);
        let house = Self { prefix: format!("{PREFIX}{}-{number}", std::process::id()) };
        let switch = house.switch();
        ip(&format!("netns add {switch}"));
        // Without snooping: there is no querier that would keep the groups alive.
        ip(&format!("-n {switch} link add br0 type bridge mcast_snooping 0"));
        ip(&format!("-n {switch} link set br0 up"));
        Some(house)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    /// A machine at `10.77.0.<number>` and `fd77::<number>`.
    pub(crate) fn machine(&self, number: u8) -> Machine {
        let (switch, port) = (self.switch(), format!("port{number}"));
        let machine = Machine { space: format!("{}-{number}", self.prefix), port, switch };
        ip(&format!("netns add {}", machine.space));
        ip(&format!("-n {} link set lo up", machine.space));
        machine.plug("eth0", &machine.port);
        machine.ip("link set eth0 up");
        machine.take_address(number);
        machine
    }
}

impl Drop for House {
    fn drop(&mut self) {
        remove(|name| name.starts_with(&format!("{}-", self.prefix)));
    }
}

/// What a run that was killed has left: the process that made it is gone.
fn remove_what_was_left() {
    remove(|name| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    });
}

fn remove(fits: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(NAMED).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if fits(&name) {
            drop(Command::new("ip").args(["netns", "del", &name]).output());
        }
    }
}

impl Machine {
    /// One more cable to the switch: `interface` here, `port` there.
    pub(crate) fn plug(&self, interface: &str, port: &str) {
        let (space, switch) = (&self.space, &self.switch);
        ip(&format!(
            "link add {interface} netns {space} type veth peer name {port} netns {switch}"
        ));
        ip(&format!("-n {switch} link set {port} master br0 up"));
    }

    /// `ip` in this machine.
    pub(crate) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.space));
    }

    /// Gives `eth0` the addresses with this number, in place of what it had.
    pub(crate) fn take_address(&self, number: u8) {
        self.ip("addr flush dev eth0 scope global");
        self.ip(&format!("addr add 10.77.0.{number}/24 dev eth0"));
        self.ip(&format!("addr add fd77::{number}/64 dev eth0 nodad"));
    }

    /// Its port at the switch: `up`, `down`, or `type bridge_slave isolated on`.
    pub(crate) fn port(&self, what: &str) {
        ip(&format!("-n {} link set {} {what}", self.switch, self.port));
    }

    /// The name of the namespace.
    pub(crate) fn space(&self) -> &str {
        &self.space
    }

    /// A program on this machine.
    pub(crate) fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space]).arg(program.into());
        command
    }

    /// Runs it on a thread of this machine; so do the threads that it starts.
    pub(crate) fn inside<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        let space = File::open(Path::new(NAMED).join(&self.space)).unwrap();
        let thread = std::thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(space.as_fd(), network).unwrap();
            run()
        });
        thread.join().unwrap()
    }
}
