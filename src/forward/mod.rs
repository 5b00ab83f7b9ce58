//! The client's side: a loopback substituter that passes on what Nix asks to the cache of this
//! house, and answers "not here" at once where there is none.

pub mod joined;

pub use joined::{Joined, JoinedError};
