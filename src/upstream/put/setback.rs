//! What a failed write means for the queue. Pure: status, code and kind decide.

use std::io::{self, ErrorKind};

use crate::upstream::Error;

/// What a failed write means for the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// Trouble that passes: again, after a while.
    Passing,
    /// The target does not take anything from us until somebody mends it: credentials, rights, a
    /// bucket that is not there, no room, a disk that is not plugged in.
    Target,
    /// The clock, here or there, is wrong: again, after a while, and said as such.
    Clock,
    /// The target takes others, but not this object.
    Object,
    /// The source could not be read: the store's trouble, not the target's.
    Source,
}

/// Codes that say something about us or the bucket, whatever their status.
const TARGET_CODES: [&str; 22] = [
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidBucketName",
    "InvalidRegion",
    "InvalidToken",
    "InvalidSecurity",
    "MethodNotAllowed",
    "NoSuchBucket",
    "NotImplemented",
    "NotSignedUp",
    "PermanentRedirect",
    "QuotaExceeded",
    "SignatureDoesNotMatch",
    "TemporaryRedirect",
    "TokenRefreshRequired",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioDiskFull",
    "XMinioStorageFull",
];

/// Codes that stand for something which passes, whatever their status: S3's own, and a multipart
/// upload that was lost, which is begun anew.
const PASSING_CODES: [&str; 15] = [
    "IncompleteBody",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "InvalidPart",
    "InvalidPartOrder",
    "NoSuchUpload",
    "OperationAborted",
    "RequestExpired",
    "RequestThrottled",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottledException",
];

/// Codes that are about one object, whatever their status.
const OBJECT_CODES: [&str; 9] = [
    "BadDigest",
    "EntityTooLarge",
    "InvalidDigest",
    "KeyTooLong",
    "KeyTooLongError",
    "XAmzContentSHA256Mismatch",
    "XMinioInvalidObjectName",
    "XMinioObjectExistsAsDirectory",
    "XMinioParentIsObject",
];

impl Error {
    /// What it means for the queue when a write ended so.
    pub fn setback(&self) -> Setback {
        match self {
            Self::Source { .. } => Setback::Source,
            Self::Clock { .. } => Setback::Clock,
            Self::Refused { status, code, .. }
            | Self::Status { status, code, .. }
            | Self::NotTaken { status, code, .. } => of_answer(*status, code),
            Self::Io { source, .. } | Self::Write { source, .. } => of_folder(source),
            // The name cannot be written as one of the target's.
            Self::Url { .. } | Self::TooLong { .. } => Setback::Object,
            Self::Redirect { .. }
            | Self::NotACache { .. }
            | Self::CacheInfo { .. }
            | Self::StoreDir { .. }
            | Self::NoTarget { .. }
            | Self::Credentials { .. } => Setback::Target,
            Self::Resting { .. }
            | Self::Busy { .. }
            | Self::Transport { .. }
            | Self::Silent { .. }
            | Self::Stalled { .. }
            | Self::Encoding { .. }
            | Self::Body { .. }
            | Self::Short { .. }
            | Self::Changed { .. } => Setback::Passing,
        }
    }
}

fn of_answer(status: u16, code: &str) -> Setback {
    if code == "RequestTimeTooSkewed" {
        return Setback::Clock;
    }
    for (codes, setback) in [
        (&TARGET_CODES[..], Setback::Target),
        (&PASSING_CODES[..], Setback::Passing),
        (&OBJECT_CODES[..], Setback::Object),
    ] {
        if codes.contains(&code) {
            return setback;
        }
    }
    match (status, code) {
        // A proxy's bound, or S3's on names.
        (413 | 414, _) => Setback::Object,
        (408 | 409 | 425 | 429, _) => Setback::Passing,
        // S3 did not like something about this request; without a code it was not S3 that spoke.
        (400, code) if !code.is_empty() => Setback::Object,
        // Redirects of S3 name another region; 501, 505 and 507 do not pass by themselves.
        (300..=499 | 501 | 505 | 507, _) => Setback::Target,
        _ => Setback::Passing,
    }
}

fn of_folder(error: &io::Error) -> Setback {
    let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
    if is(&[
        ErrorKind::StorageFull,
        ErrorKind::QuotaExceeded,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::PermissionDenied,
    ]) {
        Setback::Target
    } else if is(&[
        // FAT has neither files of 4 GiB nor names with a colon.
        ErrorKind::FileTooLarge,
        ErrorKind::InvalidFilename,
        ErrorKind::InvalidInput,
        ErrorKind::IsADirectory,
        ErrorKind::NotADirectory,
    ]) {
        Setback::Object
    } else {
        Setback::Passing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_means_one_thing_for_the_queue() {
        let check = |status: u16, code: &str, wanted: Setback| {
            assert_eq!(of_answer(status, code), wanted, "{status} {code}");
        };
        for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken"]
        {
            check(403, code, Setback::Target);
        }
        check(403, "", Setback::Target);
        check(401, "", Setback::Target);
        check(404, "NoSuchBucket", Setback::Target);
        check(404, "", Setback::Target);
        check(400, "AuthorizationHeaderMalformed", Setback::Target);
        check(400, "ExpiredToken", Setback::Target);
        check(301, "PermanentRedirect", Setback::Target);
        check(403, "QuotaExceeded", Setback::Target);
        check(507, "XMinioStorageFull", Setback::Target);
        check(507, "", Setback::Target);
        check(501, "NotImplemented", Setback::Target);
        check(403, "RequestTimeTooSkewed", Setback::Clock);
        check(503, "SlowDown", Setback::Passing);
        check(403, "SlowDown", Setback::Passing);
        check(500, "InternalError", Setback::Passing);
        check(502, "", Setback::Passing);
        check(429, "", Setback::Passing);
        check(400, "RequestTimeout", Setback::Passing);
        check(404, "NoSuchUpload", Setback::Passing);
        check(200, "InternalError", Setback::Passing);
        check(413, "", Setback::Object);
        check(400, "EntityTooLarge", Setback::Object);
        check(400, "InvalidDigest", Setback::Object);
        check(400, "BadDigest", Setback::Object);
        check(400, "XAmzContentSHA256Mismatch", Setback::Object);
        check(400, "KeyTooLongError", Setback::Object);
        check(400, "XMinioInvalidObjectName", Setback::Object);
        check(400, "InvalidArgument", Setback::Object);
        check(400, "", Setback::Target);
    }

    #[test]
    fn a_folder_without_room_stops_and_a_name_that_it_cannot_have_does_not() {
        let check = |raw: i32, wanted: Setback| {
            assert_eq!(of_folder(&io::Error::from_raw_os_error(raw)), wanted, "{raw}");
        };
        check(libc::ENOSPC, Setback::Target);
        check(libc::EDQUOT, Setback::Target);
        check(libc::EROFS, Setback::Target);
        check(libc::EACCES, Setback::Target);
        check(libc::EFBIG, Setback::Object);
        check(libc::ENAMETOOLONG, Setback::Object);
        check(libc::EINVAL, Setback::Object);
        check(libc::EIO, Setback::Passing);
    }
}
