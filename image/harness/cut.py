"""What a card has after the plug was pulled at one of its writes: all that was flushed before, and of what
came after that flush any part in any order, as the cache of a card may lose it.

QEMU's `blklogwrites` driver notes every write and flush in a file; its layout is that of Linux'
dm-log-writes (drivers/md/dm-log-writes.c): one sector that says how many entries there are, then each
entry in a sector of its own with its data behind it. Numbers are little-endian.
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTOR_BYTES = 512
MAGIC = 0x6A736677736872
# Magic, version, number of entries, bytes of a sector.
SUPER = struct.Struct("<QQQI")
# Sector, number of sectors, flags, bytes of data that is no write.
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA = 1, 2
# Cards write pages of this size, whole or not at all.
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Write:
    """One entry of the log: where its data is in the log, and where it went on the card."""

    sector: int
    flags: int
    data_at: int
    length: int


@dataclass(frozen=True)
class Cut:
    """Where it was, and the pages that were written between the last flush and there."""

    write: int
    of: int
    kept: int
    lost: int


def options(card: Path, log: Path) -> list[str]:
    """QEMU's options for a card whose writes are noted in a new log."""
    log.write_bytes(b"")
    return [
        "-blockdev",
        # The count of entries is brought up to date with each: what was noted counts.
        "driver=blklogwrites,node-name=card,log-super-update-interval=1,"
        f"file.driver=file,file.filename={card},log.driver=file,log.filename={log}",
        # What has no data is noted otherwise, and zeros may stand between another entry and its data.
        "-device", "virtio-blk-pci,drive=card,discard=off,write-zeroes=off",
    ]  # fmt: skip


def count(log: Path) -> int:
    """How many writes and flushes were noted until now."""
    with log.open("rb") as file:
        first = file.read(SUPER.size)
    if not first:
        return 0
    magic, _, noted, sector_bytes = SUPER.unpack(first)
    if magic != MAGIC or sector_bytes != SECTOR_BYTES:
        raise ValueError(f"{log}: no log of writes: {first.hex()}")
    return int(noted)


def entries(log: Path) -> Iterator[Write]:
    """What the log holds, in its order. QEMU may have ended between counting an entry and writing it."""
    end, at = log.stat().st_size, SECTOR_BYTES
    noted = count(log)
    with log.open("rb") as file:
        for _ in range(noted):
            if at + SECTOR_BYTES > end:
                return
            file.seek(at)
            sector, sectors, flags, _ = ENTRY.unpack(file.read(ENTRY.size))
            at += SECTOR_BYTES
            length = sectors * SECTOR_BYTES
            if at + length > end:
                return
            yield Write(sector, flags, at, length)
            at += length


def replay(log: Path, card: Path, earliest: int, chance: random.Random) -> Cut:
    """Brings a copy of the card from before the power-on to what it has after the plug was pulled at
    any write from `earliest` on."""
    writes = list(entries(log))
    if earliest >= len(writes):
        raise ValueError(f"{log}: nothing was written after entry {earliest}")
    last = chance.randrange(earliest, len(writes))
    happened = writes[: last + 1]
    flushes = [number for number, write in enumerate(happened) if write.flags & FLUSH]
    flushed = flushes[-1] if flushes else -1
    kept = lost = 0
    with log.open("rb") as source, card.open("r+b") as target:
        for number, write in enumerate(happened):
            is_sure = number <= flushed or write.flags & FUA
            for offset in range(0, write.length, PAGE_BYTES):
                if not is_sure:
                    if chance.random() < 0.5:
                        lost += 1
                        continue
                    kept += 1
                source.seek(write.data_at + offset)
                target.seek(write.sector * SECTOR_BYTES + offset)
                target.write(source.read(min(PAGE_BYTES, write.length - offset)))
    return Cut(last, len(writes), kept, lost)
