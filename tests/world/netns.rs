//! A network namespace of its own, joined to ours by a cable that can be pulled.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// How many there were in this process: each has a network of its own.
static COUNT: AtomicU8 = AtomicU8::new(0);

/// A namespace; dropping it takes it and its cable away.
pub(crate) struct Netns {
    pub(crate) name: String,
    cable: String,
    network: String,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Both ends of 10.128/9, which belongs to nobody outside, by process and by count.
        let process = u8::try_from(std::process::id() % 128).unwrap() + 128;
        let name = format!("sb{}-{count}", std::process::id());
        let netns = Self {
            cable: format!("sb{}.{count}", std::process::id() % 1_000_000),
            network: format!("10.{process}.{count}"),
            name,
        };
        let Self { name, cable, network } = &netns;
        ip(&format!("netns add {name}"));
        ip(&format!("link add {cable} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add {network}.1/24 dev {cable}"));
        ip(&format!("link set {cable} up"));
        ip(&format!("-n {name} addr add {network}.2/24 dev eth0"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set eth0 up"));
        netns
    }

    /// The address inside.
    pub(crate) fn inside(&self) -> String {
        format!("{}.2", self.network)
    }

    /// Pulls the cable: nothing is said to anybody, packets go nowhere.
    pub(crate) fn pull(&self) {
        ip(&format!("-n {} link set eth0 down", self.name));
    }

    /// Puts it back.
    pub(crate) fn plug(&self) {
        ip(&format!("-n {} link set eth0 up", self.name));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.name]).status());
        drop(Command::new("ip").args(["link", "del", &self.cable]).output());
    }
}

#[track_caller]
fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A program, inside a namespace where one is named. It keeps its process id.
pub(super) fn command(netns: Option<&str>, program: &OsStr) -> Command {
    let Some(netns) = netns else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).arg(program);
    command
}
