"""A card image in a plain file: its partitions, and the files of its boot partition by mtools."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SECTOR_BYTES = 512
MIB = 1 << 20


def run(*command: str, stdin: bytes | None = None) -> bytes:
    """The standard output of a command that must succeed."""
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


@dataclass(frozen=True)
class Partition:
    """One entry of the partition table, in sectors."""

    number: int
    start: int
    size: int


class Card:
    """A card that may be written to: a copy of an image, as large as a real card."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def flash(cls, image: Path, path: Path, size_bytes: int) -> "Card":
        """A new card with the image on it; blocks that were never written take no room here."""
        run("cp", "--sparse=always", str(image), str(path))
        with path.open("r+b") as file:
            file.truncate(size_bytes)
        return cls(path)

    def flash_again(self, image: Path) -> None:
        """Writes the image over the card, as a card writer does: what lies behind stays."""
        with image.open("rb") as source, self.path.open("r+b") as target:
            shutil.copyfileobj(source, target, 4 * MIB)

    def copy(self, path: Path) -> "Card":
        """The same card once more."""
        run("cp", "--sparse=always", str(self.path), str(path))
        return Card(path)

    def partitions(self) -> list[Partition]:
        """What the table lists."""
        table = json.loads(run("sfdisk", "-J", str(self.path)))["partitiontable"]["partitions"]
        return [
            Partition(number, entry["start"], entry["size"]) for number, entry in enumerate(table, start=1)
        ]

    def partition(self, number: int) -> Partition:
        """The partition of that number."""
        return next(each for each in self.partitions() if each.number == number)

    def extract(self, number: int, path: Path) -> Path:
        """A copy of a partition's bytes; zeros take no room."""
        part = self.partition(number)
        run(
            "dd", f"if={self.path}", f"of={path}", "bs=1M", "conv=sparse", "status=none",
            f"skip={part.start * SECTOR_BYTES}", f"count={part.size * SECTOR_BYTES}",
            "iflag=skip_bytes,count_bytes",
        )  # fmt: skip
        return path

    def _fat(self) -> str:
        return f"{self.path}@@{self.partition(1).start * SECTOR_BYTES}"

    def names(self, folder: str = "") -> list[str]:
        """The names in a folder of the boot partition."""
        listed = run("mdir", "-b", "-i", self._fat(), f"::{folder}").decode().split("\n")
        return [line.rstrip("/").rsplit("/", 1)[-1] for line in listed if line]

    def read(self, name: str) -> bytes:
        """A file of the boot partition."""
        return run("mtype", "-i", self._fat(), f"::{name}")

    def write(self, name: str, content: bytes) -> None:
        """Puts a file onto the boot partition, as the owner's computer does."""
        run("mcopy", "-D", "o", "-i", self._fat(), "-", f"::{name}", stdin=content)

    def remove(self, name: str) -> None:
        """Takes a file off the boot partition."""
        run("mdel", "-i", self._fat(), f"::{name}")
