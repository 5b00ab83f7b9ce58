//! The bytes of a NAR file in, a checked zstd stream out, on blocking threads: decode, hash, list,
//! compress. It knows nothing of where bytes come from or go to; misses and uploads share it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::nix::nar::NarError;
use crate::nix::{FileHash, NarHash};

mod decode;
mod encode;
mod frames;
mod pack;
mod pipe;
mod sniff;
mod stored_brotli;
mod zstd_frames;

#[cfg(test)]
mod tests;

pub(crate) use pack::{Packing, pack};
pub(crate) use sniff::{Codec, SNIFF_LEN, sniff};

/// A decoded piece: big enough that the hand-over between threads costs nothing, small enough that
/// two NARs at once stay within 32 MiB.
const PIECE_LEN: usize = 256 * 1024;

/// Pieces between two stages. Two keep both busy; more would only be memory.
const STAGE_PIECES: usize = 2;

/// Below this a NAR is decoded, hashed and compressed on one thread: a second one costs more than
/// it brings.
const ONE_THREAD_LEN: u64 = 1024 * 1024;

/// Memory that a listing may take while it is made; the biggest trees in the wild (linux sources)
/// need about half of it.
const LISTING_LEN_MAX: usize = 8 * 1024 * 1024;

/// The biggest window of a zstd stream that is kept as it is, 16 MiB: any client unpacks it.
pub(crate) const WINDOW_KEPT_MAX: u64 = 1 << 24;

/// What the source says to the pipe.
#[derive(Debug)]
pub(crate) enum Feed {
    /// The next bytes of the file.
    Bytes(Bytes),
    /// The file is complete. Without it the pipe calls the source gone.
    End,
    /// The same NAR comes again from its start, maybe in another codec; what was decoded already
    /// is dropped. Only for [`Form::Recompressed`].
    Again(Codec),
}

/// What becomes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// It is an acceptable zstd stream: kept byte for byte and decoded only to be checked.
    Kept,
    /// It is compressed anew.
    Recompressed {
        /// The zstd level.
        level: i32,
    },
}

/// How long the NAR is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NarLen {
    /// So many bytes, else it is wrong. The frame's header will say it.
    Exactly(u64),
    /// At most so many: uploads come before their narinfo.
    AtMost(u64),
}

/// What is expected of one file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// How it is packed.
    pub(crate) codec: Codec,
    /// What becomes of it.
    pub(crate) form: Form,
    /// How long the NAR is.
    pub(crate) nar_len: NarLen,
    /// Whether the sum of the file itself is wanted, as it came.
    pub(crate) sums_source: bool,
}

/// What is known of a file that went through.
#[derive(Debug, Clone)]
pub(crate) struct Ingested {
    /// SHA-256 of the NAR.
    pub(crate) nar_hash: NarHash,
    /// Bytes of the NAR.
    pub(crate) nar_size: u64,
    /// SHA-256 of the zstd stream, the tail included.
    pub(crate) file_hash: FileHash,
    /// SHA-256 of the file as it came, where it was wanted.
    pub(crate) source_hash: Option<FileHash>,
    /// The `.ls` document, when it was small enough to make.
    pub(crate) listing: Option<Bytes>,
    /// Why no Nix would unpack it. What was signed is passed on all the same.
    pub(crate) flaw: Option<NarError>,
    /// The last bytes of the zstd stream, never empty: to be handed on only after the hash was
    /// compared, so that no client can take a wrong NAR for a whole one.
    pub(crate) tail: Bytes,
}

/// Why a file did not go through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The bytes are not what the codec wants.
    #[error("decode the NAR file")]
    Decode(#[source] io::Error),
    /// The NAR is longer than it may be.
    #[error("the NAR is longer than {0} bytes")]
    TooLong(u64),
    /// The NAR is shorter than it should be.
    #[error("the NAR has {found} bytes instead of {expected}")]
    TooShort {
        /// Bytes wanted.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A zstd stream that was to be kept has a frame with a window that is too big, or bytes after
    /// its last frame. It can still be compressed anew.
    #[error("the zstd stream cannot be kept as it is: {0}")]
    NotKeepable(&'static str),
    /// The source ended without saying that the file is complete.
    #[error("the source of the NAR file is gone")]
    SourceGone,
    /// Nobody takes the zstd stream any more.
    #[error("nobody takes the zstd stream")]
    SinkGone,
    /// zstd refused to compress.
    #[error("compress the NAR")]
    Encode(#[source] io::Error),
    /// No thread could be started, or one panicked.
    #[error("a thread of the ingest failed")]
    Thread,
}

/// A running ingest: dropping both channels ends its threads.
pub(crate) struct Pipe {
    /// Where the file goes in.
    pub(crate) feed: mpsc::Sender<Feed>,
    /// Where the zstd stream comes out, but for its tail. It ends when the ingest does, never
    /// before.
    pub(crate) out: mpsc::Receiver<Bytes>,
    /// How it ended, once `out` has.
    pub(crate) done: JoinHandle<Result<Ingested, Error>>,
}

/// Starts ingests and counts those that run. A cheap clone.
#[derive(Debug, Clone)]
pub(crate) struct Ingest {
    tasks: TaskTracker,
    running: Arc<AtomicUsize>,
}

impl Ingest {
    /// Its threads belong to `tasks`, which somebody waits for.
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { tasks, running: Arc::default() }
    }

    /// Starts one. How many run at once is bounded by the caller's permits for codec memory.
    pub(crate) fn start(&self, plan: Plan) -> Pipe {
        let (feed, fed) = mpsc::channel(STAGE_PIECES);
        let (sink, out) = mpsc::channel(STAGE_PIECES);
        let running = Arc::clone(&self.running);
        let done = self.tasks.spawn_blocking(move || {
            let counted = Counted::new(running);
            let threads = if counted.alone && plan.nar_len.most() > ONE_THREAD_LEN { 2 } else { 1 };
            pipe::run(plan, fed, sink, threads)
        });
        Pipe { feed, out, done }
    }
}

impl Ingest {
    /// The same on one thread whoever else runs, and not counted among them: nobody waits for it.
    pub(crate) fn start_aside(&self, plan: Plan) -> Pipe {
        let (feed, fed) = mpsc::channel(STAGE_PIECES);
        let (sink, out) = mpsc::channel(STAGE_PIECES);
        let done = self.tasks.spawn_blocking(move || pipe::run(plan, fed, sink, 1));
        Pipe { feed, out, done }
    }
}

/// Counts a running ingest while it lives.
struct Counted {
    running: Arc<AtomicUsize>,
    alone: bool,
}

impl Counted {
    fn new(running: Arc<AtomicUsize>) -> Self {
        let alone = running.fetch_add(1, Ordering::Relaxed) == 0;
        Self { running, alone }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl NarLen {
    /// The most bytes that may come.
    pub(crate) const fn most(self) -> u64 {
        match self {
            Self::Exactly(len) | Self::AtMost(len) => len,
        }
    }
}
