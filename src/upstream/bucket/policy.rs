//! The two policies of a cache: who reads, and the user that pushes. Pure.

use serde_json::{Value, json};

/// What the Nix manual lets the user do that uploads to a cache. Nothing in here can delete.
const PUSH_ACTIONS: [&str; 7] = [
    "s3:AbortMultipartUpload",
    "s3:GetBucketLocation",
    "s3:GetObject",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
];

/// The policy of the user that pushes into a bucket: the seven actions of the Nix manual, and no
/// right to delete.
pub fn user_policy(bucket: &str) -> String {
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "UploadToCache",
            "Effect": "Allow",
            "Action": PUSH_ACTIONS,
            "Resource": [arn(bucket), objects(bucket)],
        }],
    });
    format!("{policy:#}")
}

/// Lets anybody read, and list only where a missing key is 403 otherwise (AWS).
pub(super) fn public_read(bucket: &str, is_aws: bool) -> String {
    let on_bucket: &[&str] =
        if is_aws { &["s3:GetBucketLocation", "s3:ListBucket"] } else { &["s3:GetBucketLocation"] };
    let allow = |actions: &[&str], resource: String| {
        json!({
            "Effect": "Allow",
            "Principal": {"AWS": ["*"]},
            "Action": actions,
            "Resource": [resource],
        })
    };
    let statements = [allow(on_bucket, arn(bucket)), allow(&["s3:GetObject"], objects(bucket))];
    json!({"Version": "2012-10-17", "Statement": statements}).to_string()
}

/// Whether a policy lets anybody read all objects already, and denies nobody anything.
pub(super) fn allows_reading(policy: &[u8], bucket: &str) -> bool {
    let Ok(policy) = serde_json::from_slice::<Value>(policy) else { return false };
    let statements = many(policy.get("Statement"));
    let is = |statement: &Value, key: &str, wanted: &[&str]| {
        many(statement.get(key)).any(|it| it.as_str().is_some_and(|it| wanted.contains(&it)))
    };
    let mut denies = statements.clone().filter(|it| is(it, "Effect", &["Deny"]));
    let objects = objects(bucket);
    let mut allows = statements.filter(|statement| {
        let principal = statement.get("Principal");
        let anybody = principal.and_then(|principal| principal.get("AWS")).or(principal);
        is(statement, "Effect", &["Allow"])
            && many(anybody).any(|it| it == "*")
            && is(statement, "Action", &["s3:GetObject", "s3:Get*", "s3:*", "*"])
            && is(statement, "Resource", &[&objects, "arn:aws:s3:::*", "*"])
            && statement.get("Condition").is_none()
    });
    denies.next().is_none() && allows.next().is_some()
}

/// A value or the list of them, as policies have either.
fn many(value: Option<&Value>) -> impl Iterator<Item = &Value> + Clone {
    let (one, list) = match value {
        Some(Value::Array(list)) => (None, Some(list)),
        one => (one, None),
    };
    one.into_iter().chain(list.into_iter().flatten())
}

fn arn(bucket: &str) -> String {
    format!("arn:aws:s3:::{bucket}")
}

fn objects(bucket: &str) -> String {
    format!("arn:aws:s3:::{bucket}/*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_policy_is_recognised_and_lists_only_on_aws() {
        for is_aws in [false, true] {
            let policy = public_read("nix-cache", is_aws);
            assert!(allows_reading(policy.as_bytes(), "nix-cache"), "{policy}");
            assert!(!allows_reading(policy.as_bytes(), "other"), "{policy}");
            assert_eq!(policy.contains("s3:ListBucket"), is_aws);
        }
    }

    #[test]
    fn what_mc_writes_is_recognised_and_what_allows_less_is_not() {
        let check = |statement: &str, wanted: bool| {
            let policy = format!("{{\"Version\":\"2012-10-17\",\"Statement\":{statement}}}");
            assert_eq!(allows_reading(policy.as_bytes(), "b"), wanted, "{policy}");
        };
        let allow = |principal: &str, action: &str, resource: &str| {
            format!(
                "{{\"Effect\":\"Allow\",\"Principal\":{principal},\"Action\":{action},\
                 \"Resource\":{resource}}}"
            )
        };
        let mc = allow("{\"AWS\":[\"*\"]}", "[\"s3:GetObject\"]", "[\"arn:aws:s3:::b/*\"]");
        check(&format!("[{mc}]"), true);
        check(&mc, true);
        check(&allow("\"*\"", "\"s3:*\"", "\"*\""), true);
        check(&allow("\"me\"", "\"s3:*\"", "\"*\""), false);
        check(&allow("\"*\"", "\"s3:PutObject\"", "\"*\""), false);
        check(&allow("\"*\"", "\"s3:GetObject\"", "\"arn:aws:s3:::b/nar/*\""), false);
        check(&mc.replace("\"Effect\"", "\"Condition\":{},\"Effect\""), false);
        let deny = mc.replace("Allow", "Deny");
        check(&format!("[{mc},{deny}]"), false);
        check("[]", false);
        assert!(!allows_reading(b"no policy", "b"));
    }

    #[test]
    fn the_user_may_do_what_the_nix_manual_says_and_nothing_else() {
        let policy: Value = serde_json::from_str(&user_policy("nix-cache")).unwrap();
        let statement = &policy["Statement"][0];
        assert_eq!(statement["Action"].as_array().unwrap().len(), 7);
        assert_eq!(
            statement["Resource"],
            json!(["arn:aws:s3:::nix-cache", "arn:aws:s3:::nix-cache/*"])
        );
        assert!(!policy.to_string().contains("Delete"));
    }
}
