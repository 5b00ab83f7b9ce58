//! A real bucket, written as the guides' user, read by a real Nix.
