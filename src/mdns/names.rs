//! Which name a cache takes when its own is another machine's. Pure.

use std::net::IpAddr;

/// Names that are tried in all: a house has no more caches of one name, and who claims every name
/// must not keep us busy.
pub(super) const NAMES_MAX: u32 = 20;

/// What a label of the domain name system may have.
const LABEL_LEN_MAX: usize = 63;

/// The `n`th name that is tried: `snowberry`, `snowberry-2`, `snowberry-3`.
pub(super) fn candidate(name: &str, n: u32) -> String {
    if n <= 1 {
        return name.to_owned();
    }
    let end = format!("-{n}");
    let room = LABEL_LEN_MAX.saturating_sub(end.len());
    let start: String = name.chars().take(room).collect();
    format!("{}{end}", start.trim_end_matches('-'))
}

/// Who keeps a name that two machines found out to share after both had taken it: both come to
/// the same answer from the same addresses. The lower one keeps it; IPv4 is lower than IPv6.
pub(super) fn keeps(own: &[IpAddr], others: &[IpAddr]) -> bool {
    match (own.iter().min(), others.iter().min()) {
        (Some(own), Some(other)) => own < other,
        (None, Some(_)) => false,
        (Some(_) | None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_differs_and_stays_a_label() {
        assert_eq!(candidate("snowberry", 1), "snowberry");
        assert_eq!(candidate("snowberry", 2), "snowberry-2");
        assert_eq!(candidate("snowberry-2", 2), "snowberry-2-2");
        let long = "a".repeat(LABEL_LEN_MAX);
        assert_eq!(candidate(&long, 1), long);
        assert_eq!(candidate(&long, 12).len(), LABEL_LEN_MAX);
        assert_eq!(candidate(&format!("{}-b", "a".repeat(60)), 2), format!("{}-2", "a".repeat(60)));
    }

    #[test]
    fn of_two_machines_exactly_one_keeps_the_name() {
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let check = |keeper: &[&str], leaver: &[&str]| {
            let (keeper, leaver) = (addresses(keeper), addresses(leaver));
            assert!(keeps(&keeper, &leaver) && !keeps(&leaver, &keeper), "{keeper:?} {leaver:?}");
        };
        check(&["192.168.1.2"], &["192.168.1.10"]);
        check(&["fd00::9", "192.168.1.2"], &["fd00::1", "192.168.1.3"]);
        check(&["192.168.1.2"], &["fd00::1"]);
        check(&["fd00::1"], &["fd00::2"]);
        check(&["192.168.1.2"], &[]);
    }
}
