//! Figures in words, for people.

use crate::units::ByteSize;

/// What went wrong at this URL, beside which it is shown: without the URL.
pub(super) fn beside(error: &str, url: &str) -> String {
    error.replace(&format!(" of {url}"), "")
}

/// `3.0 GiB`.
pub(super) fn bytes(count: u64) -> String {
    ByteSize(count).to_string()
}

/// `2 d 3 h`, `3 h 5 min`, `5 min`, `40 s`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / (24 * 3600));
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        (_, _, _) => format!("{days} d {} h", hours % 24),
    }
}

/// `12 345`, with spaces that do not break.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push('\u{a0}');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        for (seconds, text) in
            [(40, "40 s"), (300, "5 min"), (3660, "1 h 1 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn long_numbers_are_in_groups_of_three() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1\u{a0}000"), (1_234_567, "1\u{a0}234\u{a0}567")]
        {
            assert_eq!(count(number), text);
        }
    }
}
