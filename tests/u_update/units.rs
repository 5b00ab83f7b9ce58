//! Nothing yet here in this file.
