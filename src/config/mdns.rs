//! The `[mdns]` table: what its interfaces must be.

use super::Problem;
use crate::mdns::{Config, PATTERN_WILDCARD};

/// What Linux takes for the name of an interface, without its end.
const INTERFACE_LEN_MAX: usize = 15;

pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut told = Vec::new();
    let mut tell = |message: String| told.push(Problem::of_the_whole(message));
    if config.interfaces.as_ref().is_some_and(Vec::is_empty) {
        tell("mdns.interfaces: an empty list; say mdns.enabled = false to be silent".to_owned());
    }
    for name in config.interfaces.iter().flatten() {
        let stem = name.strip_suffix(PATTERN_WILDCARD).unwrap_or(name);
        let fits = |c: char| c.is_ascii_graphic() && !['/', ':', PATTERN_WILDCARD].contains(&c);
        if stem.len() > INTERFACE_LEN_MAX || name.is_empty() || !stem.chars().all(fits) {
            tell(format!(
                "mdns.interfaces: {name:?} is no name of an interface such as \"eth0\" or \"wl*\""
            ));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_names_or_the_beginning_of_one() {
        let check = |names: &[&str], wrong: usize| {
            let interfaces = Some(names.iter().map(ToString::to_string).collect());
            let config = Config { interfaces, ..Config::default() };
            assert_eq!(problems(&config).len(), wrong, "{names:?}");
        };
        assert!(problems(&Config::default()).is_empty());
        check(&["eth0", "wl*", "br-lan", "eth0.5", "*"], 0);
        check(&[], 1);
        check(&["", "eth 0", "e*0", "192.168.1.2/24", "an-endless-name-of-it"], 5);
    }
}
