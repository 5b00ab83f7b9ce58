//! Which row of a queue is next: references before referrers; what is unknown or cyclic blocks
//! nobody.
