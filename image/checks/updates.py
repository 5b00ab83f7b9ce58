"""Updates from slot to slot by the image's own program, with the harness for the firmware's tryboot."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness.card import Card, run
from harness.machine import SOON_S, Machine, wait_for

from .kit import CARD_BYTES, Image, Report, Skipped, expect

# A minute of being well, after a start under emulation; eleven are the program's own limit.
CONFIRM_WAIT_S = 700.0
# Until a version that is not well is given up, which takes ten minutes, and the machine restarts.
FALL_BACK_WAIT_S = 1500.0
# Until one whose program does not run at all has restarted: no watch begins.
BROKEN_WAIT_S = 1200.0
# Writing and reading back a root under emulation.
INSTALL_WAIT_S = 1200.0


class Updates:
    """A card, and a disk with the update files of next versions: one that is well, three that are not."""

    def __init__(self, image: Image, folder: Path) -> None:
        self.image = image
        self.folder = folder
        self.card = Card.flash(image.path, folder / "card.img", CARD_BYTES)
        self.disk = folder / "updates.img"
        major, minor, patch = re.findall(r"\d+", image.version)[:3]
        self.good = f"{major}.{minor}.{int(patch) + 1}"
        self.sick = f"{major}.{minor}.{int(patch) + 2}"
        self.dead = f"{major}.{minor}.{int(patch) + 3}"
        self.broken = f"{major}.{minor}.{int(patch) + 4}"
        self._running: Machine | None = None

    def pack(self) -> str:
        """Makes the files."""
        made = self.image.out / f"update-{self.image.version}"
        packer = self.image.top / "image/pack-update"
        cache = Path(os.environ.get("SNOWBERRY_IMAGE_CACHE", self.image.top / "image/.cache"))
        key = Path(os.environ.get("SNOWBERRY_KEY", cache / "release-key.pem"))
        for needed in (made, packer, key):
            if not needed.exists():
                raise Skipped(f"{needed.name} is not there")
        files = self.folder / "files"
        files.mkdir()
        faults = {self.good: "none", self.sick: "sick", self.dead: "dead", self.broken: "broken"}
        for version, fault in faults.items():
            inner = self.folder / "next"
            shutil.copytree(made, inner)
            userns = self.image.top / "image/lib/userns.sh"
            script = f'. "{userns}"; in_userns "{self.image.top}/image/lib/next-version" "$@"'
            run("bash", "-euc", script, "--", str(inner), version, fault)
            if fault == "dead":
                # A kernel that starts, and finds no root file system's tools.
                (inner / "boot/initrd.img").write_bytes(b"\0" * 4096)
            name = os.environ.get("SNOWBERRY_KEY_NAME", "snowberry-image-1")
            run(str(packer), str(inner), str(files / f"{version}.update"), str(key), name)
            subprocess.run(["rm", "-rf", str(inner)], check=True)
        megabytes = sum(each.stat().st_size for each in files.iterdir()) // (1 << 20) + 64
        run("mke2fs", "-q", "-t", "ext4", "-L", "updates", "-d", str(files), str(self.disk), f"{megabytes}m")
        shutil.rmtree(files)
        return ", ".join(f"{version} ({fault})" for version, fault in faults.items())

    def running(self) -> Machine:
        """What config.txt boots; what was found well is used for the next update too."""
        if self._running is None:
            self._running = Machine(self.card, disks=(self.disk,))
        self._running.first_answer()
        return self._running

    def switch_off(self) -> None:
        """Ends that machine, if there is one."""
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None

    def install(self, version: str) -> None:
        """Has the running version install another, and restart into it."""
        try:
            self._install(self.running(), version)
        finally:
            self.switch_off()

    @staticmethod
    def _install(machine: Machine, version: str) -> None:
        if "unrecognized subcommand" in machine.shell("snowberry update --help"):
            raise Skipped("the program has no `update`")
        told = machine.shell(
            "mount -o ro /dev/disk/by-label/updates /mnt && "
            f"snowberry update /mnt/{version}.update && echo installed",
            INSTALL_WAIT_S,
        )
        expect("installed" in told, f"update: {told[-600:]}")
        expect(machine.ended() == "tryboot", "the restart was not with the tryboot flag")

    def slot(self) -> str:
        """What config.txt boots; "?" also while the machine is writing there."""
        try:
            config = self.card.read("config.txt").decode()
        except RuntimeError:
            return "?"
        found = re.search(r"^os_prefix=(\w)/", config, re.M)
        return found[1] if found else "?"

    def version(self, machine: Machine) -> str:
        """What runs."""
        machine.first_answer()
        told = machine.shell("sed -n 's/^version = //p' /usr/lib/snowberry/appliance.toml")
        return told.strip().strip('"')


def check_all(image: Image, report: Report) -> None:
    """Every check of this module, on one card."""
    with tempfile.TemporaryDirectory(prefix="snowberry-updates.") as name:
        updates = Updates(image, Path(name))
        if not report.check("update files of next versions", updates.pack):
            return
        try:
            if report.check("update, confirmed", lambda: confirmed(updates)):
                report.check("update whose program does not run, rolled back", lambda: broken(updates))
                report.check("update that does not start, rolled back", lambda: never_up(updates))
                report.check("update that is not well, rolled back", lambda: rolled_back(updates))
        finally:
            updates.switch_off()


def confirmed(updates: Updates) -> str:
    """The next version runs on trial, is well for a minute, and stays."""
    updates.install(updates.good)
    expect(updates.slot() == "a", "config.txt was changed before the trial")
    with Machine(updates.card, tryboot=True) as machine:
        expect(machine.prefix == "b/", f"the trial booted {machine.prefix}")
        expect(updates.version(machine) == updates.good, "another version")
        wait_for("the confirmation", CONFIRM_WAIT_S, lambda: updates.slot() == "b" or None)
        after = machine.age_s()
        machine.shell("systemctl --no-block poweroff")
        machine.ended()
    expect(updates.version(updates.running()) == updates.good, "another version after a plain start")
    return f"{updates.good} confirmed {after:.0f} s after power-on"


def rolled_back(updates: Updates) -> str:
    """A version whose daemon does not live restarts into the one before by itself."""
    updates.install(updates.sick)
    with Machine(updates.card, tryboot=True) as machine:
        expect(machine.prefix == "a/", f"the trial booted {machine.prefix}")
        ended = machine.ended(FALL_BACK_WAIT_S)
        expect(ended == "restart", f"it ended by {ended}")
        after = machine.age_s()
    return _back(updates, updates.sick) + f", given up {after:.0f} s after power-on"


def never_up(updates: Updates) -> str:
    """A kernel that finds no root: it panics, starts again by itself, and that is the old version."""
    updates.install(updates.dead)
    with Machine(updates.card, tryboot=True) as machine:
        wait_for("the panic", SOON_S, lambda: "Kernel panic" in machine.said() or None)
        machine.ended()
        after = machine.age_s()
    return _back(updates, updates.dead) + f", restarted {after:.0f} s after power-on"


def broken(updates: Updates) -> str:
    """A program that does not even start: what would confirm it or give it up cannot."""
    updates.install(updates.broken)
    with Machine(updates.card, tryboot=True) as machine:
        ended = machine.ended(BROKEN_WAIT_S)
        expect(ended == "restart", f"it ended by {ended}")
        after = machine.age_s()
    return _back(updates, updates.broken) + f", given up {after:.0f} s after power-on"


def _back(updates: Updates, tried: str) -> str:
    expect(updates.slot() == "b", "config.txt was changed")
    machine = updates.running()
    expect(updates.version(machine) == updates.good, "another version than before")
    appliance = json.loads(machine.get("/api/status")[1])["appliance"]
    expect(appliance["state"] == "rolled-back" and not appliance["trial"], f"the status says {appliance}")
    expect(tried in (appliance["last_error"] or ""), f"why: {appliance['last_error']}")
    return f"{updates.good} runs again and says so"
