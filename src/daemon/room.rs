//! What of the machine's memory goes to what is bounded by it: less on a small machine, or where a control
//! group holds us to less. `docs/architecture.md` has the sum of all that the process can hold.

use tracing::info;

use crate::http::CONNECTIONS_MAX;
use crate::pressure::Kernel;

/// Memory of codecs in all where there is enough: three xz streams of the usual preset at once with what
/// compresses them anew.
const CODEC_BYTES: u64 = 48 << 20;

/// The least: one such stream, whatever the machine.
const CODEC_BYTES_MIN: u64 = 16 << 20;

/// Codecs get this part of the room.
const CODEC_PART: u64 = 6;

/// What one NAR that is unpacked alone may take: the window of zstd's `--ultra --long`, 128 MiB, fits.
const UNPACK_BYTES_MAX: u64 = 160 << 20;

/// No more than this part of the room: on a Pi Zero 2 W the window of `xz -9`, 64 MiB, still fits.
const UNPACK_PART: u64 = 3;

/// The least of connections: five Nix clients with their 25 each.
const CONNECTIONS_MIN: usize = 128;

/// For each connection there must be so much room: four times two rows and the buffers of one that reads
/// slowly.
const ROOM_A_CONNECTION: u64 = 5 << 19;

/// Who gets how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) codec_bytes: u64,
    pub(super) unpack_bytes_max: u64,
    pub(super) connections_max: usize,
}

impl Shares {
    /// On this machine.
    pub(super) fn here() -> Self {
        let room_bytes = Kernel::default().look().room_bytes();
        let shares = Self::of(room_bytes);
        let Self { codec_bytes, unpack_bytes_max, connections_max } = shares;
        info!(room_bytes, codec_bytes, unpack_bytes_max, connections_max, "memory is shared out");
        shares
    }

    /// Where there is so much; `None`: nobody knows, and it is taken to be enough.
    fn of(room_bytes: Option<u64>) -> Self {
        let room_bytes = room_bytes.unwrap_or(u64::MAX);
        let codec_bytes = (room_bytes / CODEC_PART).clamp(CODEC_BYTES_MIN, CODEC_BYTES);
        let connections = usize::try_from(room_bytes / ROOM_A_CONNECTION).unwrap_or(usize::MAX);
        Self {
            codec_bytes,
            unpack_bytes_max: (room_bytes / UNPACK_PART).clamp(codec_bytes, UNPACK_BYTES_MAX),
            connections_max: connections.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_small_machine_gives_less() {
        for (room_mib, codec_mib, unpack_mib, connections_max) in [
            (Some(8192), 48, 160, 512),
            (None, 48, 160, 512),
            // A Pi with 1 GiB.
            (Some(906), 48, 160, 362),
            // A Pi Zero 2 W, and the part of it that the unit may take.
            (Some(420), 48, 140, 168),
            (Some(252), 42, 84, 128),
            (Some(64), 16, 21, 128),
            (Some(1), 16, 16, 128),
        ] {
            let shares = Shares::of(room_mib.map(|mib| mib * MIB));
            let wanted = Shares {
                codec_bytes: codec_mib * MIB,
                unpack_bytes_max: unpack_mib * MIB,
                connections_max,
            };
            let told = format!("{room_mib:?}");
            assert_eq!(shares.connections_max, wanted.connections_max, "{told}");
            assert_eq!(shares.codec_bytes / MIB, codec_mib, "{told}");
            assert_eq!(shares.unpack_bytes_max / MIB, unpack_mib, "{told}");
        }
    }
}
