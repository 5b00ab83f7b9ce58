//! The `[scrub]` table: how often what is stored is read again.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::units::Span;

/// Cards hold what they have for a year without power; a month finds what goes wrong before its
/// neighbours do.
const DEFAULT_EVERY: Duration = Duration::from_hours(30 * 24);

/// How often each byte is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrub {
    /// Once in so long; `None`: only when it is asked for.
    pub every: Option<Duration>,
}

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ScrubTable {
    every: Option<Every>,
}

impl ScrubTable {
    pub(super) fn freeze(self) -> Scrub {
        let every = self.every.map_or(Some(DEFAULT_EVERY), |every| every.0);
        Scrub { every: every.filter(|every| !every.is_zero()) }
    }
}

/// A span, or `"never"`.
#[derive(Debug)]
struct Every(Option<Duration>);

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match (text.trim(), text.parse::<Span>()) {
            ("never" | "0", _) => Ok(Self(None)),
            (_, Ok(Span(every))) => Ok(Self(Some(every))),
            (_, Err(error)) => Err(de::Error::custom(format!("{error}, nor \"never\""))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_or_never() {
        let every = |text: &str| toml::from_str(text).map(|table: ScrubTable| table.freeze().every);
        let day = Duration::from_hours(24);
        assert_eq!(every(""), Ok(Some(day * 30)));
        assert_eq!(every("every = \"14 d\""), Ok(Some(day * 14)));
        assert_eq!(every("every = \"never\""), Ok(None));
        assert_eq!(every("every = \"0\""), Ok(None));
        assert_eq!(every("every = \"0 s\""), Ok(None));
        let wrong = every("every = \"often\"").unwrap_err().to_string();
        assert!(
            wrong.contains("\"often\" is not a span") && wrong.contains("nor \"never\""),
            "{wrong}"
        );
    }
}
