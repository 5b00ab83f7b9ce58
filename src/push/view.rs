//! What `/push` has: the same store seen without its upstreams.
