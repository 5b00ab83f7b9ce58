//! The `[page]` table: what the page shows.

use serde::Deserialize;

/// The `[page]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Page {
    /// Whether it shows who asked, and what for.
    pub clients: bool,
}
