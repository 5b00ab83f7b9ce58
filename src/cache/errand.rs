//! What people ask for that takes a whole closure: how far it is, and why it is not done.

use std::fmt;

use crate::store;
use crate::units::ByteSize;

/// Lacking paths that a sentence names.
const LACKS_NAMED: usize = 10;

/// How far an errand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is being done.
    pub what: &'static str,
    /// Bytes of it that came, and all of them.
    pub bytes: Option<(u64, u64)>,
    /// Paths or NARs that are done, and all of them where that is known.
    pub things: (usize, Option<usize>),
}

/// A path that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Its base name; its hash when nobody could say its name.
    pub path: String,
    /// A path that refers to it; none for one that was asked for itself.
    pub referrer: Option<String>,
    /// Why.
    pub why: Why,
}

/// Why a path cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No upstream has it.
    Absent,
    /// An upstream that may have it could not be asked, or its NAR did not come whole.
    Trouble,
    /// The disk has no room for it.
    NoRoom,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "no upstream has it",
            Self::Trouble => "it could not be fetched now",
            Self::NoRoom => "there is no room for it",
        })
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, referrer, why } = self;
        write!(f, "{path}: {why}")?;
        match referrer {
            Some(referrer) => write!(f, " ({referrer} refers to it)"),
            None => Ok(()),
        }
    }
}

/// Why a closure has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// What the closure takes, held or not.
    pub closure: ByteSize,
    /// What of it is not kept yet.
    pub more: ByteSize,
    /// What is pinned.
    pub pinned: ByteSize,
    /// What waits to be carried on.
    pub waiting: ByteSize,
    /// All that may be kept so.
    pub most: ByteSize,
    /// The store's budget.
    pub budget: ByteSize,
}

/// Why an errand is not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Errand {
    /// It is no name for a pin.
    #[error(
        "{0:?} is no name for a pin: 1 to {max} of the characters a-z A-Z 0-9 + - . _ ? =, the \
         first a letter or a digit",
        max = store::PIN_NAME_LEN_MAX
    )]
    Name(String),
    /// Nothing was asked for.
    #[error("no path is named")]
    Nothing,
    /// More than is taken.
    #[error("the closure has more than {0} paths, which is all that is taken at once")]
    TooMany(usize),
    /// More roots than one pin may have.
    #[error("more than {0} paths are named, which is all that one pin takes: give several names")]
    Roots(usize),
    /// More pins than there may be.
    #[error("there are {0} pins, which is all there may be: `snowberry pins` shows them")]
    Pins(usize),
    /// Paths are nowhere to be had.
    #[error("{}", lacking(.lacks, *.count))]
    Lacking {
        /// Some of them.
        lacks: Vec<Lack>,
        /// How many they are.
        count: usize,
    },
    /// It does not fit beside what is pinned and what waits.
    #[error(
        "{what} does not fit: it takes {closure}, {more} more than is kept already, beside {pinned} \
         pinned and {waiting} waiting to be pushed; {most} of the budget of {budget} is all that \
         may be kept so. Unpin something (`snowberry pins`) or raise store.budget",
        closure = .figures.closure, more = .figures.more, pinned = .figures.pinned,
        waiting = .figures.waiting, most = .figures.most, budget = .figures.budget
    )]
    NoFit {
        /// What is refused.
        what: &'static str,
        /// By which figures.
        figures: Figures,
    },
    /// It was pinned again, or unpinned, meanwhile.
    #[error("{0:?} was pinned again or unpinned meanwhile: that holds, and this one does not")]
    Overtaken(String),
    /// The disk.
    #[error("the store cannot be used now")]
    Store(#[from] store::Error),
}

fn lacking(lacks: &[Lack], count: usize) -> String {
    let mut text = match count {
        1 => "a path cannot be had: ".to_owned(),
        _ => format!("{count} paths cannot be had: "),
    };
    let named: Vec<String> = lacks.iter().take(LACKS_NAMED).map(Lack::to_string).collect();
    text.push_str(&named.join("; "));
    match count.saturating_sub(named.len()) {
        0 => text,
        more => format!("{text}; and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_refers_to_a_path_that_nobody_has_is_said() {
        let lack = |path: &str, referrer: Option<&str>| Lack {
            path: path.into(),
            referrer: referrer.map(str::to_owned),
            why: Why::Absent,
        };
        let one = Errand::Lacking { lacks: vec![lack("a-x", Some("b-y"))], count: 1 };
        let wanted = "a path cannot be had: a-x: no upstream has it (b-y refers to it)";
        assert_eq!(one.to_string(), wanted);
        let many = Errand::Lacking { lacks: vec![lack("a", None); 20], count: 30 };
        assert!(many.to_string().starts_with("30 paths cannot be had: a: no upstream has it; a:"));
        assert!(many.to_string().ends_with("; and 20 more"), "{many}");
    }
}
