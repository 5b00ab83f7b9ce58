//! The built `snowberry forward` between plain clients or real Nixes and a real `snowberry serve`
//! that comes, goes, freezes and is cut off.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

mod answers;
mod away;
mod house;
mod nars;
mod nix;
mod tls;
mod units;
mod uploads;

use std::process::Command;

use made::{Made, MadeCache};
use world::{Scripted, Settings, Snowberry};

/// A cache with these paths, and a snowberry in front that holds nothing yet.
struct Lab {
    _cache: MadeCache,
    upstream: Scripted,
    snowberry: Snowberry,
}

impl Lab {
    async fn of(paths: &[&Made]) -> Self {
        let cache = MadeCache::of(paths.iter().copied());
        let upstream = Scripted::serve(cache.root()).await;
        let settings = Settings::new().upstream(&upstream.url(), &made::public_key());
        let snowberry = settings.start().await;
        Self { _cache: cache, upstream, snowberry }
    }
}

/// Sends a signal by its name.
fn signal(name: &str, pid: u32) {
    let done = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(done.success());
}
