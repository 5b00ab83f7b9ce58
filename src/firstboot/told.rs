//! What was wrong, in sentences: bounded in number and length, because they go onto a small
//! partition, into the log and onto a page. Pure.

use std::fmt;

/// Sentences at most: who has more to mend has a file of another program.
const SENTENCES_MAX: usize = 64;

/// A sentence at most, in bytes: three lines of a page.
const SENTENCE_LEN_MAX: usize = 512;

/// Where something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: &'static str,
    pub(super) line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(self.file),
        }
    }
}

/// Everything that was wrong.
#[derive(Debug, Default)]
pub(super) struct Told {
    sentences: Vec<String>,
    more: usize,
}

impl Told {
    pub(super) fn tell(&mut self, place: Place, what: &str) {
        self.say(&format!("{place}: {what}"));
    }

    /// What is about no line of a file.
    pub(super) fn say(&mut self, sentence: &str) {
        let sentence = bounded(sentence);
        if self.sentences.contains(&sentence) {
            return;
        }
        // The last place is for how many more there are.
        if self.sentences.len() < SENTENCES_MAX - 1 {
            self.sentences.push(sentence);
        } else {
            self.more += 1;
        }
    }

    pub(super) fn sentences(self) -> Vec<String> {
        let mut sentences = self.sentences;
        if self.more > 0 {
            sentences.push(format!("and {} more", self.more));
        }
        sentences
    }
}

/// One line of text: control characters would play with whoever reads the log on a terminal.
fn bounded(sentence: &str) -> String {
    let plain: String = sentence.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if plain.len() <= SENTENCE_LEN_MAX {
        return plain;
    }
    let mut end = SENTENCE_LEN_MAX - "...".len();
    while !plain.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", plain.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_bounded_in_number_and_length() {
        let mut told = Told::default();
        for n in 0..100 {
            told.say(&format!("{n} {}\u{1b}[31m", "\u{e9}".repeat(500)));
            told.say("the same");
        }
        let told = told.sentences();
        assert_eq!(told.len(), SENTENCES_MAX);
        assert!(told.iter().all(|it| it.len() <= SENTENCE_LEN_MAX && !it.contains('\u{1b}')));
        assert_eq!(told.last().unwrap(), "and 38 more");
    }
}
