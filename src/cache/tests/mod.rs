//! The state machine, with real parts on both sides.
