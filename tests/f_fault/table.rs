//! The table: what goes wrong, and how soon after its end all must be well.

use std::time::Duration;

use snowberry::nix::Compression;

use crate::made::Made;
use crate::world::Scripted;
use crate::world::fault::{self, Fault};

/// "Within seconds".
const SECONDS: Duration = Duration::from_secs(10);

/// Absence is remembered for 60 s, and what failed its hash is not asked of its upstream for as
/// long; then comes the next question.
const MINUTE: Duration = Duration::from_secs(66);

/// Enough for a row that has landed and one in the making, and for two transfers that are cut.
const NAR_LEN: usize = 700_000;

/// Where transfers are cut, stall or begin to drip: less than half of the NAR, so that one
/// continuation with the same fault does not reach its end.
const BREAKS_AT: usize = 300_000;

/// What goes wrong.
#[derive(Clone, Copy)]
pub(crate) enum Trouble {
    /// Nobody listens, and the connections that there were are cut.
    Refused,
    /// The upstream answers wrongly.
    Fault(Fault),
    /// The NAR file is not there.
    Gone,
}

/// One line of the table.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) trouble: Trouble,
    /// How long after the end of the trouble the path may still be missing.
    pub(crate) well_after: Duration,
    /// Asked as an `s3://` bucket and not as an http cache.
    is_bucket: bool,
    /// The trouble ends while the client reads, and the same response must become whole.
    pub(crate) continues: bool,
    pub(crate) compression: Compression,
    pub(crate) nar_len: usize,
}

impl Case {
    /// The part of the upstream's paths that an S3 client puts in front.
    pub(crate) fn bucket(&self) -> &'static str {
        if self.is_bucket { "nix-cache" } else { "" }
    }

    pub(crate) fn upstream_url(&self, upstream: &Scripted) -> String {
        if self.is_bucket {
            let endpoint = upstream.address();
            return format!("s3://nix-cache?endpoint={endpoint}&scheme=http&region=us-east-1");
        }
        upstream.url()
    }

    const fn bucket_too(self) -> Self {
        Self { is_bucket: true, ..self }
    }

    const fn until_forgotten(self) -> Self {
        Self { well_after: MINUTE, ..self }
    }

    const fn continued(self) -> Self {
        Self { continues: true, ..self }
    }

    const fn plain(self) -> Self {
        Self { compression: Compression::None, ..self }
    }
}

const fn with(name: &'static str, trouble: Trouble) -> Case {
    Case {
        name,
        trouble,
        well_after: SECONDS,
        is_bucket: false,
        continues: false,
        compression: Compression::Xz,
        nar_len: NAR_LEN,
    }
}

const fn fault(name: &'static str, fault: Fault) -> Case {
    with(name, Trouble::Fault(fault))
}

const fn altered(name: &'static str, alter: fn(&[u8]) -> Vec<u8>) -> Case {
    fault(name, Fault::Altered(alter))
}

/// What can happen to any question. 404, 410 and a 403 of `AccessDenied` or of no code are absence,
/// everything else is trouble.
macro_rules! both {
    ($($more:expr),* $(,)?) => {
        &[
            with("refused", Trouble::Refused),
            fault("accepted and silent", Fault::Silent),
            fault("accepted and closed", Fault::Closed),
            fault("500", Fault::Status(500)),
            fault("502", Fault::Status(502)),
            fault("503", Fault::Status(503)),
            fault("429", Fault::Status(429)),
            fault("401", Fault::Status(401)),
            fault("400", Fault::Status(400)),
            fault("410", Fault::Status(410)).until_forgotten(),
            fault("403 without a code", Fault::Status(403)).until_forgotten(),
            fault("403 AccessDenied", Fault::S3(403, "AccessDenied")).until_forgotten(),
            fault("403 SignatureDoesNotMatch", Fault::S3(403, "SignatureDoesNotMatch")),
            fault("403 RequestTimeTooSkewed", Fault::S3(403, "RequestTimeTooSkewed")),
            fault("bucket 403 AccessDenied", Fault::S3(403, "AccessDenied"))
                .bucket_too()
                .until_forgotten(),
            fault("bucket 403 SignatureDoesNotMatch", Fault::S3(403, "SignatureDoesNotMatch"))
                .bucket_too(),
            fault("bucket 403 RequestTimeTooSkewed", Fault::S3(403, "RequestTimeTooSkewed"))
                .bucket_too(),
            fault("bucket 503 SlowDown", Fault::S3(503, "SlowDown")).bucket_too(),
            fault("redirect loop", Fault::RedirectLoop),
            fault("HTML with 200", Fault::Html),
            $($more),*
        ]
    };
}

/// The faults of narinfos.
pub(crate) const NARINFO_CASES: &[Case] = both![
    fault("404", Fault::Status(404)).until_forgotten(),
    altered("narinfo malformed", fault::malformed),
    altered("narinfo empty", fault::empty),
    altered("narinfo oversized", fault::oversized),
    altered("narinfo of another path", fault::of_another_path),
    altered("narinfo unsigned", fault::unsigned),
    altered("narinfo wrongly signed", fault::wrongly_signed),
    fault("narinfo cut", Fault::Cut(100)),
    fault("narinfo stalled", Fault::Stalled(100)),
    fault("narinfo dripping", Fault::Dripping(100)),
];

/// The faults of NARs.
pub(crate) const NAR_CASES: &[Case] = both![
    with("NAR missing", Trouble::Gone).until_forgotten(),
    altered("NAR empty", fault::empty),
    fault("NAR cut", Fault::Cut(BREAKS_AT)),
    fault("NAR cut, then well", Fault::Cut(BREAKS_AT)).continued(),
    altered("NAR short", fault::half),
    fault("NAR stalled", Fault::Stalled(BREAKS_AT)),
    fault("NAR stalled, then well", Fault::Stalled(BREAKS_AT)).continued(),
    fault("NAR dripping, then well", Fault::Dripping(BREAKS_AT)).continued(),
    altered("wrong byte in xz", fault::with_a_wrong_byte).until_forgotten(),
    altered("wrong byte in a plain NAR", fault::with_a_wrong_byte).plain().until_forgotten(),
    altered("plain NAR and more", and_more).plain().until_forgotten(),
    altered("another NAR", another_nar).until_forgotten(),
    altered("another NAR in zstd", fault::another_nar_in_zstd).until_forgotten(),
];

fn and_more(file: &[u8]) -> Vec<u8> {
    [file, &[0; 8]].concat()
}

fn another_nar(_: &[u8]) -> Vec<u8> {
    Made::noise("another", NAR_LEN).file
}
