//! The rule that lets a bucket's objects expire. Pure.

use crate::upstream::xml::{self, Element};

/// Days after which parts of an upload that nobody completed go, where the server has such a rule:
/// longer than any upload takes.
const ABORT_AFTER_DAYS: u32 = 7;

/// What the rules of a bucket say of all its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// No rule at all.
    Nothing,
    /// All objects expire after these days, and no other rule expires anything.
    Days(u32),
    /// Something else.
    Other,
}

/// The configuration with one rule. With `abort` uploads that nobody completed go too.
pub(super) fn rule(days: u32, abort: bool) -> String {
    let abort = if abort {
        format!(
            "<AbortIncompleteMultipartUpload><DaysAfterInitiation>{ABORT_AFTER_DAYS}\
             </DaysAfterInitiation></AbortIncompleteMultipartUpload>"
        )
    } else {
        String::new()
    };
    format!(
        "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Rule>\
         <ID>snowberry-expire</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>\
         <Expiration><Days>{days}</Days></Expiration>{abort}</Rule></LifecycleConfiguration>"
    )
}

/// Reads what a bucket has.
pub(super) fn find(configuration: &[u8]) -> Found {
    let Some(root) = xml::parse(configuration) else { return Found::Other };
    let mut rules = root.all("Rule").filter(|rule| text(rule, &["Status"]) != Some("Disabled"));
    match (rules.next(), rules.next()) {
        (None, _) => Found::Nothing,
        (Some(rule), None) if covers_all(rule) && expires_only(rule) => {
            let days = text(rule, &["Expiration", "Days"]).and_then(|days| days.parse().ok());
            days.map_or(Found::Other, Found::Days)
        }
        (Some(_), _) => Found::Other,
    }
}

fn covers_all(rule: &Element) -> bool {
    let is_bare = |filter: &Element| {
        filter.text.is_empty()
            && filter.children.iter().all(|it| it.name == "Prefix" && it.text.is_empty())
    };
    rule.all("Filter").all(is_bare) && rule.all("Prefix").all(|prefix| prefix.text.is_empty())
}

fn expires_only(rule: &Element) -> bool {
    let known =
        ["ID", "Status", "Filter", "Prefix", "Expiration", "AbortIncompleteMultipartUpload"];
    rule.children.iter().all(|it| known.contains(&it.name.as_str()))
}

fn text<'a>(element: &'a Element, path: &[&str]) -> Option<&'a str> {
    element.at(path).map(|found| found.text.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_rule_is_recognised() {
        for abort in [false, true] {
            assert_eq!(find(rule(30, abort).as_bytes()), Found::Days(30));
        }
    }

    #[test]
    fn rules_are_told_apart() {
        let check = |rules: &str, wanted: Found| {
            let text = format!(
                "<?xml version=\"1.0\"?><LifecycleConfiguration>{rules}\
                 </LifecycleConfiguration>"
            );
            assert_eq!(find(text.as_bytes()), wanted, "{rules}");
        };
        let mc = "<Rule><Expiration><Days>30</Days></Expiration><ID>c</ID>\
                  <Status>Enabled</Status></Rule>";
        check("", Found::Nothing);
        check(mc, Found::Days(30));
        check(&mc.replace("Enabled", "Disabled"), Found::Nothing);
        check(&mc.replace("</ID>", "</ID><Filter><Prefix>nar/</Prefix></Filter>"), Found::Other);
        check(&mc.replace("</ID>", "</ID><Prefix>nar/</Prefix>"), Found::Other);
        check(&mc.replace("Days", "Date"), Found::Other);
        check(&mc.replace("</ID>", "</ID><Transition><Days>1</Days></Transition>"), Found::Other);
        check(&format!("{mc}{mc}"), Found::Other);
        assert_eq!(find(b"cut"), Found::Other);
    }
}
