//! The world that the integration tests act in, three actors seen from outside: caches upstream
//! (scripted or real), the built `snowberry`, clients (plain HTTP or a real Nix). What a test
//! cannot have here it says loudly; nothing in here sleeps.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of the world")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

pub(crate) mod bucket;
pub(crate) mod client;
pub(crate) mod closure;
pub(crate) mod fault;
pub(crate) mod house;
pub(crate) mod forward;
pub(crate) mod netns;
pub(crate) mod nginx;
pub(crate) mod nix;
pub(crate) mod parts;
pub(crate) mod pki;
pub(crate) mod proxy;
pub(crate) mod s3;
pub(crate) mod scripted;
pub(crate) mod snowberry;

use std::future::Future;
use std::hash::BuildHasher as _;
use std::time::{Duration, Instant};

pub(crate) use bucket::{Bucket, Wrong};
pub(crate) use client::{Answer, Client};
pub(crate) use closure::Closure;
pub(crate) use fault::Fault;
pub(crate) use forward::Forward;
pub(crate) use house::{House, Machine};
pub(crate) use netns::Netns;
pub(crate) use nix::{NixClient, Release};
pub(crate) use scripted::Scripted;
pub(crate) use snowberry::{Settings, Snowberry};

/// How long a narinfo question may take, whatever happens (promise 1).
pub(crate) const NARINFO_LIMIT: Duration = Duration::from_millis(2_500);

/// Asks every 20 ms until there is an answer; panics when `limit` has passed without one.
pub(crate) async fn until<T, F, R>(what: &str, limit: Duration, mut ask: F) -> T
where
    F: FnMut() -> R,
    R: Future<Output = Option<T>>,
{
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain for {what}");
    }
}

/// Where servers listen that cannot choose a port of their own: below the ports that the kernel gives to
/// connections, of which others make hundreds between our look and the server's.
const PORTS: std::ops::Range<u16> = 10_000..22_000;

/// A port of loopback that was free a moment ago, for servers that cannot choose their own; so is
/// the port 10000 above it (`SeaweedFS` takes that one too).
pub(crate) fn free_port() -> u16 {
    for _ in 0..100 {
        let chance =
            std::hash::RandomState::new().hash_one(0) % u64::try_from(PORTS.len()).unwrap();
        let port = PORTS.start + u16::try_from(chance).unwrap();
        let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
    panic!("no free port on loopback")
}
