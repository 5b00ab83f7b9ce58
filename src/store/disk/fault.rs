//! A disk for tests that does what cards do.
