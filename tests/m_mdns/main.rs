//! A house with real multicast DNS: the built `snowberry serve` on its machines, and who looks for
//! it. Each house is a network of its own (`tests/world/house.rs`); no packet leaves it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect"
)]

#[path = "../world/mod.rs"]
mod world;

mod avahi;
mod changes;
mod found;
mod lines;
mod python;
mod quiet;
mod units;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use snowberry::mdns::{Browser, Config, Found};
use tokio::time::timeout;
use world::{Answer, Client, Machine, Settings, Snowberry};

/// Names are asked for during 1.5 s, interfaces looked at every 2 s, and the test machine is busy.
const LIMIT: Duration = Duration::from_secs(30);

/// A cache with this machine's addresses, and nothing to cache from.
async fn serve(machine: &Machine) -> Snowberry {
    Settings::new().on(machine).start().await
}

/// Looks for caches from this machine.
fn browse(machine: &Machine) -> Browser {
    machine.inside(|| Browser::start(&Config::default()).unwrap())
}

/// Waits until what is found fits.
async fn until_found(browser: &Browser, what: &str, fits: impl Fn(&[Found]) -> bool) -> Vec<Found> {
    let mut found = browser.found();
    let waited = timeout(LIMIT, found.wait_for(|all| fits(all))).await;
    let all = waited.map(|all| all.unwrap().to_vec());
    all.unwrap_or_else(|_| panic!("waited in vain for {what}: {:?}", *browser.found().borrow()))
}

fn names(found: &[Found]) -> Vec<&str> {
    let mut names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
    names.sort_unstable();
    names
}

fn has(found: &[Found], name: &str, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    found.iter().any(|one| one.name == name && one.addresses.contains(&address))
}

/// Asks a cache from another machine of the house.
fn ask(machine: &Machine, address: &str, path: &'static str) -> Answer {
    let address = SocketAddr::new(address.parse().unwrap(), 80);
    machine.inside(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Client(address).get(path))
    })
}

async fn announced(snowberry: &Snowberry, name: &str) {
    let name = format!("name={name}.local");
    snowberry.log_line(&["announced in the house", &name], LIMIT).await;
}

fn status(machine: &Machine, address: &str) -> serde_json::Value {
    serde_json::from_slice(&ask(machine, address, "/api/status").body).unwrap()
}
