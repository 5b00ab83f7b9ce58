"""The part that a Raspberry Pi's firmware plays: reads config.txt of the boot partition, follows
os_prefix, and hands over kernel, initramfs and command line. With the tryboot flag set, which a
restart by `reboot "0 tryboot"` does, tryboot.txt is read in its place, once.

Understood is what the image's own files say; a real firmware knows much more.
"""

import gzip
import re
from dataclasses import dataclass

from .card import Card

# Sections of config.txt that are taken: a Pi 4, as good as any.
SECTIONS = {"all", "pi4"}


@dataclass(frozen=True)
class Handover:
    """What the firmware starts."""

    prefix: str
    kernel: bytes
    initramfs: bytes
    command_line: str


def settings(text: str) -> dict[str, str]:
    """The settings of a config.txt; the last of a name counts."""
    found = {"os_prefix": "", "kernel": "kernel8.img", "cmdline": "cmdline.txt", "initramfs": ""}
    taken = True
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        section = re.fullmatch(r"\[(.+)\]", line)
        if section:
            taken = section[1].lower() in SECTIONS
        elif taken and line.startswith("initramfs "):
            found["initramfs"] = line.split()[1]
        elif taken and "=" in line:
            name, value = line.split("=", 1)
            found[name.strip()] = value.strip()
    return found


def hand_over(card: Card, tryboot: bool) -> Handover:
    """What a card boots. Files that are missing are an error, as they are a dead board there."""
    tried = tryboot and "tryboot.txt" in card.names()
    config = settings(card.read("tryboot.txt" if tried else "config.txt").decode())
    prefix = config["os_prefix"]
    kernel = card.read(prefix + config["kernel"])
    if kernel.startswith(b"\x1f\x8b"):
        kernel = gzip.decompress(kernel)
    return Handover(
        prefix,
        kernel,
        card.read(prefix + config["initramfs"]),
        card.read(prefix + config["cmdline"]).decode().strip(),
    )
