//! What `check` and `doctor` tell: one line for each thing that must be right, ok or with what to
//! do, or all of them as one JSON list.

use serde_json::{Value, json};

use super::{Ended, out};

/// Gathers what is wrong, and says each thing at once unless all of it is wanted as JSON.
#[derive(Debug, Default)]
pub(super) struct Lines {
    problems: usize,
    /// For `--json`.
    gathered: Option<Vec<Value>>,
}

impl Lines {
    pub(super) fn new(json: bool) -> Self {
        Self { problems: 0, gathered: json.then(Vec::new) }
    }

    /// `Ok` is how it is, `Err` what is wrong and what to do about it.
    pub(super) fn tell(&mut self, what: &str, told: Result<String, String>) -> anyhow::Result<()> {
        let is_ok = told.is_ok();
        self.problems += usize::from(!is_ok);
        let text = told.unwrap_or_else(|wrong| wrong);
        if let Some(gathered) = &mut self.gathered {
            gathered.push(json!({ "what": what, "ok": is_ok, "told": text }));
            return Ok(());
        }
        out::line(&format!("{} {what}: {text}", if is_ok { "ok   " } else { "WRONG" }))
    }

    pub(super) fn end(self) -> anyhow::Result<Ended> {
        if let Some(gathered) = self.gathered {
            out::line(&Value::from(gathered).to_string())?;
        }
        Ok(if self.problems == 0 { Ended::Well } else { Ended::Badly })
    }
}
