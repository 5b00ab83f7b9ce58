"""A disk of the owner's, labelled `snowberry`, that takes the store's place."""

import json
import subprocess
import tempfile
from pathlib import Path

from harness.card import Card
from harness.machine import SOON_S, Machine, wait_for

from .kit import CARD_BYTES, GIB, Image, Report, expect


def check_all(image: Image, report: Report) -> None:
    """Every check of this module."""
    with tempfile.TemporaryDirectory(prefix="snowberry-disks.") as name:
        folder = Path(name)
        disk = folder / "disk.img"
        with disk.open("wb") as file:
            file.truncate(2 * GIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "snowberry", str(disk)], check=True)
        card = Card.flash(image.path, folder / "card.img", CARD_BYTES)
        if report.check("store on a disk of its own", lambda: with_disk(card, disk)):
            report.check("that disk is missing", lambda: without_disk(card))
            report.check("that disk is back", lambda: with_disk(card, disk))


def trouble(machine: Machine) -> str | None:
    """Why the store is not open, as /api/status says it."""
    machine.first_answer()
    told = json.loads(machine.get("/api/status")[1])["store"].get("degraded")
    return None if told is None else str(told)


def with_disk(card: Card, disk: Path) -> str:
    """The store is on the disk, and nothing of it on the card."""
    with Machine(card, disks=(disk,)) as machine:
        wait_for("an open store", SOON_S, lambda: trouble(machine) is None or None)
        place = machine.shell("findmnt -n -o SOURCE /var/lib/snowberry/store").strip()
        expect(place.endswith("[/store]"), f"the store is on {place or 'the card'}")
        on_card = machine.shell("ls -A /var/lib/snowberry-data/snowberry/store").strip()
        expect(not on_card, f"on the card: {on_card}")
        machine.shell("systemctl --no-block poweroff")
        machine.ended()
    return place


def without_disk(card: Card) -> str:
    """Degraded: nix-cache-info answers, nothing else is served, no second store is begun."""
    with Machine(card) as machine:
        why = trouble(machine)
        expect(why, "a second store was begun")
        expect(machine.get("/nix-cache-info")[0] == 200, "/nix-cache-info")
        expect(machine.get("/" + "0" * 32 + ".narinfo")[0] == 404, "a narinfo")
        on_card = machine.shell("ls -A /var/lib/snowberry-data/snowberry/store").strip()
        expect(not on_card, f"on the card: {on_card}")
    return why or ""
