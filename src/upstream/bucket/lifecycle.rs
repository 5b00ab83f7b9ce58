//! The rule that lets a bucket's objects expire. Pure.

use crate::upstream::xml::{self, Element};

/// Days after which parts of an upload that nobody completed go, where the server has such a rule:
/// longer than any upload takes.
const ABORT_AFTER_DAYS: u32 = 7;

/// Objects up to this length stay, where the server can tell: nix-cache-info has some 60 bytes, a
/// narinfo never less than 300.
const KEPT_LEN_MAX: u64 = 200;

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

/// How much of a rule a server is asked for, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Objects as small as nix-cache-info stay: a bucket without it is no cache any more.
    keep_small: bool,
    /// Uploads that nobody completed go too. `MinIO` refuses such a rule, and does it by itself.
    abort: bool,
}

impl Wanted {
    /// All of them, in the order in which they are tried.
    pub(super) const ALL: [Self; 4] = [
        Self { keep_small: true, abort: true },
        Self { keep_small: true, abort: false },
        Self { keep_small: false, abort: true },
        Self { keep_small: false, abort: false },
    ];
}

/// The configuration: a rule that expires objects, and perhaps one that aborts uploads, which may
/// not have a filter by size.
pub(super) fn rules(days: u32, wanted: Wanted) -> String {
    let rule = |id: &str, filter: &str, action: &str| {
        format!(
            "<Rule><ID>{id}</ID><Status>Enabled</Status><Filter>{filter}</Filter>{action}</Rule>"
        )
    };
    let all = "<Prefix></Prefix>";
    let larger = format!("<ObjectSizeGreaterThan>{KEPT_LEN_MAX}</ObjectSizeGreaterThan>");
    let filter = if wanted.keep_small { &*larger } else { all };
    let expiration = format!("<Expiration><Days>{days}</Days></Expiration>");
    let mut rules = rule("snowberry-expire", filter, &expiration);
    if wanted.abort {
        let abort = format!(
            "<AbortIncompleteMultipartUpload><DaysAfterInitiation>{ABORT_AFTER_DAYS}\
             </DaysAfterInitiation></AbortIncompleteMultipartUpload>"
        );
        rules.push_str(&rule("snowberry-abort", all, &abort));
    }
    format!(
        "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{rules}\
         </LifecycleConfiguration>"
    )
}

/// Reads what a bucket has.
pub(super) fn find(configuration: &[u8]) -> Found {
    let Some(root) = xml::parse(configuration) else { return Found::Other };
    let enabled = |rule: &&Element| text(rule, &["Status"]) != Some("Disabled");
    let mut rules = root.all("Rule").filter(enabled).filter(|rule| !aborts_only(rule));
    match (rules.next(), rules.next()) {
        (None, _) => Found::Nothing,
        (Some(rule), None) if covers_all(rule) && expires_only(rule) => {
            let days = text(rule, &["Expiration", "Days"]).and_then(|days| days.parse().ok());
            days.map_or(Found::Other, Found::Days)
        }
        (Some(_), _) => Found::Other,
    }
}

/// Whether a rule is about all objects, small ones aside.
fn covers_all(rule: &Element) -> bool {
    let is_small = |text: &str| text.parse::<u64>().is_ok_and(|len| len <= KEPT_LEN_MAX);
    let is_bare = |filter: &Element| {
        filter.text.is_empty()
            && filter.children.iter().all(|it| match it.name.as_str() {
                "Prefix" => it.text.is_empty(),
                "ObjectSizeGreaterThan" => is_small(&it.text),
                _ => false,
            })
    };
    rule.all("Filter").all(is_bare) && rule.all("Prefix").all(|prefix| prefix.text.is_empty())
}

/// What a rule has besides what it does.
const FRAME: [&str; 4] = ["ID", "Status", "Filter", "Prefix"];

const ABORT: &str = "AbortIncompleteMultipartUpload";

fn expires_only(rule: &Element) -> bool {
    let known = |name: &str| FRAME.contains(&name) || name == "Expiration" || name == ABORT;
    rule.children.iter().all(|it| known(&it.name))
}

fn aborts_only(rule: &Element) -> bool {
    rule.children.iter().all(|it| FRAME.contains(&it.name.as_str()) || it.name == ABORT)
}

fn text<'a>(element: &'a Element, path: &[&str]) -> Option<&'a str> {
    element.at(path).map(|found| found.text.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_rule_is_recognised() {
        for wanted in Wanted::ALL {
            assert_eq!(find(rules(30, wanted).as_bytes()), Found::Days(30));
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
        let sized = |len: &str| {
            let filter =
                format!("<Filter><ObjectSizeGreaterThan>{len}</ObjectSizeGreaterThan></Filter>");
            mc.replace("</ID>", &format!("</ID>{filter}"))
        };
        check(&sized("200"), Found::Days(30));
        check(&sized("5000"), Found::Other);
        check(&format!("{mc}{mc}"), Found::Other);
        assert_eq!(find(b"cut"), Found::Other);
    }
}
