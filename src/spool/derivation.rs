//! The outputs that a derivation file names. Pure, and no more of its format than that needs.

/// The paths of the outputs of a `.drv` file, of which the beginning suffices; `None` for what is
/// none. A derivation whose outputs are named by their content names no paths.
///
/// `Derive([("dev","/nix/store/...","",""),("out",...)],...`: the first list.
pub(super) fn output_paths(derivation: &[u8]) -> Option<Vec<String>> {
    let mut rest = derivation.strip_prefix(b"Derive([")?;
    let mut paths = Vec::new();
    loop {
        rest = rest.strip_prefix(b"(")?;
        let (_, after_name) = string(rest)?;
        let (path, mut after) = string(after_name.strip_prefix(b",")?)?;
        if !path.is_empty() {
            paths.push(path);
        }
        for _ in 0..2 {
            (_, after) = string(after.strip_prefix(b",")?)?;
        }
        rest = after.strip_prefix(b")")?;
        match rest.split_first()? {
            (b',', more) => rest = more,
            (b']', _) => return Some(paths),
            _ => return None,
        }
    }
}

/// A quoted string without escapes, which outputs have none of, and what follows it.
fn string(text: &[u8]) -> Option<(String, &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let end = text.iter().position(|c| *c == b'"')?;
    let (inner, rest) = text.split_at_checked(end)?;
    let inner = std::str::from_utf8(inner).ok().filter(|inner| !inner.contains('\\'))?;
    Some((inner.to_owned(), rest.strip_prefix(b"\"")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_all_outputs_are_found() {
        let check = |text: &str, paths: Option<&[&str]>| {
            let found = output_paths(text.as_bytes());
            assert_eq!(found.as_deref().map(<[_]>::len), paths.map(<[_]>::len), "{text}");
            assert!(found.iter().flatten().eq(paths.into_iter().flatten()), "{text}");
        };
        check("Derive([(\"out\",\"/s/a\",\"\",\"\")],[(\"x\"", Some(&["/s/a"]));
        check(
            "Derive([(\"dev\",\"/s/d\",\"\",\"\"),(\"out\",\"/s/o\",\"sha256\",\"ab\")],",
            Some(&["/s/d", "/s/o"]),
        );
        check("Derive([(\"out\",\"\",\"r:sha256\",\"\")],", Some(&[]));
        for none in ["", "Derive(", "Derive([]", "Derive([(\"out\",\"/s/a", "DrvWithVersion(", "x"]
        {
            check(none, None);
        }
        check("Derive([(\"o\\\"ut\",\"/s/a\",\"\",\"\")],", None);
    }

    #[test]
    fn a_beginning_that_is_cut_anywhere_is_none() {
        let whole = "Derive([(\"out\",\"/s/a\",\"\",\"\")],";
        for len in 0..whole.len() - 1 {
            assert_eq!(output_paths(&whole.as_bytes()[..len]), None, "{len}");
        }
    }
}
