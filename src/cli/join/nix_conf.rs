//! The one line of nix.conf that is ours, put at its end and taken out again so that every other byte
//! is as it was. Pure.

/// The file of ours beside nix.conf: Nix looks for what it includes beside the file that says so. With
/// `!`, one that is missing is no error.
pub(super) const INCLUDE: &str = "!include snowberry.conf";

/// First line of a nix.conf that was not there before.
const MADE: &str = "# Made by `snowberry join`.\n";

/// The new nix.conf; `None` when the line is there already.
pub(super) fn with_include(before: Option<&[u8]>) -> Option<Vec<u8>> {
    let Some(before) = before else {
        return Some(format!("{MADE}{INCLUDE}\n").into_bytes());
    };
    if lines(before).any(is_ours) {
        return None;
    }
    let mut after = before.to_vec();
    if before.is_empty() || before.ends_with(b"\n") {
        after.extend_from_slice(INCLUDE.as_bytes());
        after.push(b'\n');
    } else {
        // Without an end of its own either: so it is known later what was there.
        after.push(b'\n');
        after.extend_from_slice(INCLUDE.as_bytes());
    }
    Some(after)
}

/// What a nix.conf is without our line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// The line is not there.
    Same,
    /// The file was made for the line.
    Nothing,
    /// What was there before, and what somebody wrote since.
    Text(Vec<u8>),
}

pub(super) fn without_include(after: &[u8]) -> Without {
    if after == format!("{MADE}{INCLUDE}\n").as_bytes() {
        return Without::Nothing;
    }
    if !lines(after).any(is_ours) {
        return Without::Same;
    }
    let unended = [b"\n", INCLUDE.as_bytes()].concat();
    if let Some(before) = after.strip_suffix(unended.as_slice())
        && !lines(before).any(is_ours)
    {
        return Without::Text(before.to_vec());
    }
    let kept = after.split_inclusive(|byte| *byte == b'\n').filter(|line| !is_ours(line));
    Without::Text(kept.collect::<Vec<_>>().concat())
}

/// Whether a setting is given a value here, whatever else is included.
pub(super) fn sets(text: &[u8], name: &str) -> bool {
    lines(text).any(|line| {
        let line = String::from_utf8_lossy(line);
        let line = line.split('#').next().unwrap_or_default();
        line.split_once('=').is_some_and(|(key, _)| key.trim() == name)
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn is_ours(line: &[u8]) -> bool {
    line.trim_ascii() == INCLUDE.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_again_was_never_there() {
        for before in [
            "",
            "\n",
            "sandbox = true",
            "sandbox = true\n",
            "sandbox = true\n\n",
            "a = b\n# !include snowberry.conf",
            "a = \u{e4}\r\n",
            "!include other.conf",
        ] {
            let after = with_include(Some(before.as_bytes())).unwrap();
            assert!(after.starts_with(before.as_bytes()), "{before:?}");
            assert_eq!(with_include(Some(&after)), None, "{before:?}");
            let again = without_include(&after);
            assert_eq!(again, Without::Text(before.as_bytes().to_vec()), "{before:?}");
        }
        let made = with_include(None).unwrap();
        assert_eq!(without_include(&made), Without::Nothing);
        assert_eq!(with_include(Some(&made)), None);
    }

    #[test]
    fn what_somebody_wrote_since_stays() {
        let check = |after: &str, expected: &str| {
            let expected = Without::Text(expected.as_bytes().to_vec());
            assert_eq!(without_include(after.as_bytes()), expected, "{after:?}");
        };
        check("a = b\n!include snowberry.conf\nc = d\n", "a = b\nc = d\n");
        check("a = b\n  !include snowberry.conf \n", "a = b\n");
        check(
            "# Made by `snowberry join`.\n!include snowberry.conf\nc = d\n",
            "# Made by `snowberry join`.\nc = d\n",
        );
        assert_eq!(without_include(b"a = b\n"), Without::Same);
    }

    #[test]
    fn a_setting_is_found_where_it_is_set() {
        let text = b"# post-build-hook = x\nsandbox=true\n post-build-hook-2 = /x # y\n";
        assert!(sets(text, "sandbox") && sets(text, "post-build-hook-2"));
        assert!(!sets(text, "post-build-hook"));
    }
}
