//! What to do where a step cannot be done from here. Pure.

use super::Act;
use crate::upstream::{Error, Setback};

/// Status and code of an answer that was no success.
pub(super) fn answer(error: &Error) -> Option<(u16, &str)> {
    match error {
        Error::Refused { status, code, .. }
        | Error::Status { status, code, .. }
        | Error::NotTaken { status, code, .. } => Some((*status, code)),
        Error::Resting { .. }
        | Error::Busy { .. }
        | Error::Transport { .. }
        | Error::Silent { .. }
        | Error::Clock { .. }
        | Error::Redirect { .. }
        | Error::Url { .. }
        | Error::TooLong { .. }
        | Error::Encoding { .. }
        | Error::Body { .. }
        | Error::Short { .. }
        | Error::Changed { .. }
        | Error::Io { .. }
        | Error::NotACache { .. }
        | Error::CacheInfo { .. }
        | Error::StoreDir { .. }
        | Error::Stalled { .. }
        | Error::Source { .. }
        | Error::Write { .. }
        | Error::NoTarget { .. }
        | Error::Credentials { .. } => None,
    }
}

/// What to do after a refusal. `bucket` is `None` for a folder.
pub(super) fn of_failure(act: Act, bucket: Option<&str>, error: &Error) -> String {
    let Some(bucket) = bucket else {
        return "Is the disk plugged in and mounted, and may you write to the folder?".to_owned();
    };
    let (status, code) = answer(error).unwrap_or_default();
    match (status, code) {
        (501, _) => not_implemented(act, bucket),
        (409, _) => format!(
            "The name {bucket} is taken by somebody else on this server: choose another one."
        ),
        (404, "NoSuchBucket") => {
            format!("There is no bucket {bucket}: create it first, with its owner's credentials.")
        }
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
            "The server does not know these keys: look at the credentials file and at profile= \
             in the URL."
                .to_owned()
        }
        (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")
        | (301 | 307, _) => {
            "The server is in another region: say region= in the URL (Garage: region=garage)."
                .to_owned()
        }
        (403, _) => forbidden(act, bucket),
        (0, _) => match error.setback() {
            Setback::Clock => "Set the clock of this machine and try again.".to_owned(),
            Setback::Passing | Setback::Target | Setback::Object | Setback::Source => {
                "Is endpoint= in the URL right, does the server run, and is its certificate's \
                 authority given as ca-file?"
                    .to_owned()
            }
        },
        _ => by_hand(act, bucket),
    }
}

fn not_implemented(act: Act, bucket: &str) -> String {
    match act {
        Act::PublicRead => format!(
            "This server has no bucket policies. Garage: run `garage bucket website --allow \
             {bucket}` and list its web endpoint as an https upstream."
        ),
        Act::Expire(_) => {
            "This server has no expiry rules: look after the bucket's size by its own means."
                .to_owned()
        }
        Act::Create | Act::CacheInfo => by_hand(act, bucket),
    }
}

fn forbidden(act: Act, bucket: &str) -> String {
    match act {
        Act::Create => format!(
            "These keys may not do that, or the bucket belongs to somebody else. Use the \
             credentials of the server's owner, or run `mc mb ALIAS/{bucket}` (Garage: `garage \
             bucket create {bucket}`)."
        ),
        Act::CacheInfo => "These keys may not write to the bucket: give their user the policy \
             that is printed here, or use the credentials of the bucket's owner."
            .to_owned(),
        Act::PublicRead => format!(
            "Use the credentials of the bucket's owner, or run `mc anonymous set download \
             ALIAS/{bucket}`. On AWS, first switch off Block Public Access for the bucket."
        ),
        Act::Expire(days) => format!(
            "Use the credentials of the bucket's owner, or run `mc ilm rule add --expire-days \
             {days} ALIAS/{bucket}`."
        ),
    }
}

fn by_hand(act: Act, bucket: &str) -> String {
    match act {
        Act::Create => format!("Create it with the server's own tool: `mc mb ALIAS/{bucket}`."),
        Act::CacheInfo => format!("Copy it by hand: `mc cp nix-cache-info ALIAS/{bucket}/`."),
        Act::PublicRead => format!("Try `mc anonymous set download ALIAS/{bucket}`."),
        Act::Expire(days) => {
            format!("Try `mc ilm rule add --expire-days {days} ALIAS/{bucket}`.")
        }
    }
}

/// What to do where something else is there.
pub(super) fn of_difference(act: Act, bucket: Option<&str>) -> String {
    let bucket = bucket.unwrap_or("BUCKET");
    match act {
        Act::Create | Act::CacheInfo => {
            "Take another bucket or folder, or take its nix-cache-info away if nothing in it is \
             needed."
                .to_owned()
        }
        Act::PublicRead => format!(
            "Add a statement to it that allows s3:GetObject on arn:aws:s3:::{bucket}/* to \
             everybody, or, if nothing in it is needed, replace it: `mc anonymous set download \
             ALIAS/{bucket}`."
        ),
        Act::Expire(days) => format!(
            "Look at them with `mc ilm rule ls ALIAS/{bucket}`; if they are not needed, `mc ilm \
             rule rm --all --force ALIAS/{bucket}` and then `mc ilm rule add --expire-days {days} \
             ALIAS/{bucket}`."
        ),
    }
}

/// What a folder has instead.
pub(super) fn of_folder(act: Act) -> String {
    match act {
        Act::PublicRead => "Whoever may read its files may read the cache.".to_owned(),
        Act::Expire(_) => "Delete old files by hand, narinfos before their NARs.".to_owned(),
        Act::Create | Act::CacheInfo => String::new(),
    }
}
