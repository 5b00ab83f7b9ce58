//! The `[update]` and `[appliance]` tables: where updates of the appliance come from, and where what is
//! told about them lies.

use std::path::PathBuf;

use serde::Deserialize;

use super::check::{readable, without_user};
use super::{Files, Problem};
use crate::units::ByteSize;
use crate::update::Config;

/// Where the parts of the appliance tell the daemon how they are, unless configured.
const DEFAULT_NOTES: &str = "/run/snowberry-appliance";

/// The lowest bound that any upstream may have; an update of 200 MB takes four hours then.
const LIMIT_MIN: ByteSize = ByteSize(16 << 10);

/// The `[update]` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct UpdateTable {
    url: Option<String>,
    ca_file: Option<PathBuf>,
    limit: Option<ByteSize>,
}

impl UpdateTable {
    pub(super) fn freeze(self, files: Files, told: &mut Vec<Problem>) -> Config {
        let mut tell = |message: String| told.push(Problem::of_the_whole(message));
        if let Some(url) = &self.url
            && !["https://", "http://", "file:///"].iter().any(|start| url.starts_with(start))
        {
            let shown = without_user(url);
            tell(format!("update.url: {shown} is neither https://, http:// nor file:///"));
        }
        if let Some(Err(error)) = self.ca_file.as_deref().map(|path| readable(path, files)) {
            tell(format!("update.ca-file: {error}"));
        }
        if self.limit.is_some_and(|limit| limit < LIMIT_MIN) {
            tell(format!("update.limit: less than {LIMIT_MIN} a second"));
        }
        Config { url: self.url, ca_file: self.ca_file, limit: self.limit }
    }
}

/// The `[appliance]` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ApplianceTable {
    notes: Option<PathBuf>,
}

impl ApplianceTable {
    /// The folder of notes.
    pub(super) fn freeze(self, told: &mut Vec<Problem>) -> PathBuf {
        let notes = self.notes.unwrap_or_else(|| DEFAULT_NOTES.into());
        if !notes.is_absolute() {
            let message = format!("appliance.notes: {} is not absolute", notes.display());
            told.push(Problem::of_the_whole(message));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_told() {
        let check = |text: &str, start: &str| {
            let (table, mut told) = (toml::from_str::<UpdateTable>(text).unwrap(), Vec::new());
            table.freeze(Files::Here, &mut told);
            assert_eq!(told.len(), usize::from(!start.is_empty()), "{text}: {told:?}");
            assert!(told.iter().all(|it| it.message.starts_with(start)), "{told:?}");
        };
        check("", "");
        check("url = \"https://updates.example/pi\"\nlimit = \"1 MiB\"", "");
        check("url = \"s3://me:secret@b\"", "update.url: s3://b is neither");
        check("ca-file = \"/nonexistent/ca.pem\"", "update.ca-file: /nonexistent");
        check("limit = \"1 B\"", "update.limit: less than 16.0 KiB");
        let mut told = Vec::new();
        ApplianceTable { notes: Some("run".into()) }.freeze(&mut told);
        assert_eq!(told.len(), 1);
    }
}
