//! How the appliance is, as its notes say: for status and page. Notes are read off the reactor.

use std::path::Path;

use serde::Serialize;

use crate::appliance::{Notes, UpdateState};

/// What status and page say of the appliance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Appliance {
    /// The slot that runs.
    pub(super) slot: Option<&'static str>,
    /// The version of its image.
    pub(super) version: Option<String>,
    /// Whether it runs on trial.
    pub(super) trial: bool,
    pub(super) state: Option<&'static str>,
    /// The version that comes.
    pub(super) next: Option<String>,
    pub(super) last_error: Option<String>,
    /// Since when it stands so, in seconds since 1970.
    pub(super) since: Option<u64>,
    /// What was wrong in the settings.
    pub(super) settings_errors: Vec<String>,
}

impl Appliance {
    /// As the notes say; `None` where there are none.
    pub(super) async fn read(folder: &Path) -> Option<Self> {
        let folder = folder.to_path_buf();
        // The blocking pool is joined by the runtime; a panic there is no appliance.
        let notes = tokio::task::spawn_blocking(move || Notes::read(&folder)).await;
        notes.ok().flatten().map(Self::of)
    }

    fn of(notes: Notes) -> Self {
        let settings_errors = notes.settings.map(|it| it.errors).unwrap_or_default();
        let Some(update) = notes.update else {
            return Self { settings_errors, ..Self::default() };
        };
        Self {
            slot: update.slot.map(crate::appliance::Slot::name),
            version: Some(update.version).filter(|version| !version.is_empty()),
            trial: update.trial,
            state: Some(update.state.name()),
            next: update.next,
            last_error: update.last_error,
            since: Some(update.since),
            settings_errors,
        }
    }

    /// The line of the page.
    pub(super) fn line(&self) -> String {
        let version = self.version.as_deref().unwrap_or("of an unknown version");
        let slot = self.slot.map(|slot| format!(" in slot {slot}")).unwrap_or_default();
        let next = self.next.as_deref().unwrap_or("the next version");
        let stands = match self.state {
            _ if self.trial => ", on trial: it stays when all is well for a minute".to_owned(),
            Some(state) if state == UpdateState::Downloading.name() => {
                format!("; {next} is being fetched")
            }
            Some(state) if state == UpdateState::Installing.name() => {
                format!("; {next} is being written")
            }
            Some(state) if state == UpdateState::Installed.name() => {
                format!("; {next} waits for a restart")
            }
            Some(_) | None => String::new(),
        };
        format!("image {version}{slot}{stands}")
    }

    /// What is not well, in sentences.
    pub(super) fn troubles(&self) -> Vec<String> {
        let update = self.last_error.iter().map(|why| format!("The last update: {why}"));
        let settings = self.settings_errors.iter().map(|why| format!("The settings: {why}"));
        settings.chain(update).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::{SettingsNote, Slot, UpdateNote};

    #[tokio::test]
    async fn what_the_notes_say_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Appliance::read(&folder.path().join("none")).await, None);
        assert_eq!(Appliance::read(folder.path()).await, Some(Appliance::default()));
        let mut note = UpdateNote {
            slot: Some(Slot::B),
            version: "0.2.0".into(),
            trial: true,
            state: UpdateState::Confirming,
            next: Some("0.2.0".into()),
            last_error: None,
            since: 7,
        };
        note.write(folder.path()).unwrap();
        SettingsNote { errors: vec!["no such zone".into()], applied_at: None }
            .write(folder.path())
            .unwrap();
        let shown = Appliance::read(folder.path()).await.unwrap();
        let wanted = serde_json::json!({
            "slot": "b", "version": "0.2.0", "trial": true, "state": "confirming", "next": "0.2.0",
            "last_error": null, "since": 7, "settings_errors": ["no such zone"],
        });
        assert_eq!(serde_json::to_value(&shown).unwrap(), wanted);
        assert!(shown.line().starts_with("image 0.2.0 in slot b, on trial"), "{}", shown.line());
        assert_eq!(shown.troubles(), ["The settings: no such zone"]);
        note.trial = false;
        note.last_error = Some("0.3.0 did not come up".into());
        let lines = [
            (UpdateState::Idle, "image 0.2.0 in slot b"),
            (UpdateState::Downloading, "image 0.2.0 in slot b; 0.2.0 is being fetched"),
            (UpdateState::Installed, "image 0.2.0 in slot b; 0.2.0 waits for a restart"),
        ];
        for (state, line) in lines {
            let notes =
                Notes { update: Some(UpdateNote { state, ..note.clone() }), settings: None };
            assert_eq!(Appliance::of(notes).line(), line);
        }
        note.write(folder.path()).unwrap();
        let shown = Appliance::read(folder.path()).await.unwrap();
        assert_eq!(shown.troubles().last().unwrap(), "The last update: 0.3.0 did not come up");
    }
}
