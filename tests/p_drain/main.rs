//! The queue is carried up to each target, whatever happens: nothing is lost, nothing is sent twice
//! without need, no narinfo comes before its NAR.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops and says what it saw"
)]

#[path = "../made/mod.rs"]
mod made;
#[path = "../world/mod.rs"]
mod world;

mod folders;
mod kit;
mod objects;
mod real;
mod troubles;

use made::Made;

/// A path at the top of a small closure, and what is below it, references first.
fn small_closure(name: &str) -> Vec<Made> {
    let part = |what: &str, len| Made::mixed(&format!("{name}-{what}"), len);
    let libc = part("libc", 30_000);
    let lib = part("lib", 3_000).referring_to(&[&libc]);
    let tool = part("tool", 400_000).referring_to(&[&libc, &lib]);
    let docs = part("docs", 10);
    let top = part("top", 5_000).referring_to(&[&libc, &lib, &tool, &docs]);
    vec![libc, lib, tool, docs, top]
}
