"""Settings of the boot partition, as an owner writes them on another computer."""

import json
import random
import re
import subprocess
import tempfile
from pathlib import Path

from harness.card import MIB, SECTOR_BYTES, Card, run
from harness.machine import COMMAND_WAIT_S, SOON_S, Machine, wait_for

from .kit import CARD_BYTES, Image, Report, Skipped, expect

SECRET = "the-secret-of-this-bucket-0123456789"
# KEY stands for the owner's.
GOOD = f"""
[system]
hostname = "attic"

[locale]
timezone = "Europe/Berlin"

[ssh]
authorized-keys = ["KEY"]

[bucket-credentials]
access-key-id = "nixbuilder"
secret-access-key = "{SECRET}"

[[upstream]]
url = "s3://nix-cache?profile=nixbuilder&scheme=http&endpoint=10.0.2.2:9"
trusted-public-keys = ["a-1:m0J/oDlLEuG6ezc6MzmpLCN2MYjssO3NMIlr9JdxkTs="]
push = true
"""
BROKEN = """
[system]
hostname = "attic 2"
[wlan]
ssid = "unfinished
"""


class Owner:
    """Who logs in: a key, and what they remember of the machine's own."""

    def __init__(self, folder: Path) -> None:
        self._key = folder / "key"
        self._known = folder / "known_hosts"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "image-test", "-f", str(self._key))
        self.public = self._key.with_suffix(".pub").read_text().strip()

    def log_in(self, machine: Machine) -> None:
        """As root, by the key. The second time the machine's own key must be the one of the first."""
        done = subprocess.run(
            [
                "ssh", "-F", "none", "-i", str(self._key), "-p", str(machine.ports[22]), "-o", "BatchMode=yes",
                "-o", "HostKeyAlias=attic", "-o", "StrictHostKeyChecking=accept-new",
                "-o", f"UserKnownHostsFile={self._known}", "root@127.0.0.1", "id -un; uname -n",
            ],
            capture_output=True, text=True, timeout=COMMAND_WAIT_S, check=False,
        )  # fmt: skip
        expect(done.stdout.split() == ["root", "attic"], f"ssh: {done.stdout}{done.stderr}")


def check_all(image: Image, report: Report) -> None:
    """Every check of this module, on one card."""
    with tempfile.TemporaryDirectory(prefix="snowberry-settings.") as name:
        folder = Path(name)
        owner = Owner(folder)
        card = Card.flash(image.path, folder / "card.img", CARD_BYTES)
        if report.check("settings at the first start", lambda: applied(card, owner)):
            report.check("settings kept", lambda: kept(card, owner))
            report.check("boot partition that cannot be read", lambda: unreadable(card))
            report.check("broken settings", lambda: broken(card))


def applied(card: Card, owner: Owner) -> str:
    """Everything that was set is so, and the secret is no longer on the boot partition."""
    card.write("snowberry.toml", GOOD.replace("KEY", owner.public).encode())
    with Machine(card) as machine:
        machine.first_answer()
        if "unrecognized subcommand" in machine.shell("snowberry first-boot --help"):
            raise Skipped("the program has no `first-boot`")
        _is_set(machine, owner)
        wait_for("the identity's file", SOON_S, lambda: _has(card, "snowberry-identity.txt"))
        machine.shell("systemctl --no-block poweroff")
        machine.ended()
    text = card.read("snowberry.toml").decode()
    expect(SECRET not in text, "the secret is still on the boot partition")
    expect("attic" in text, "the rest of the settings is gone")
    written = card.read("snowberry-identity.txt").decode()
    expect("attic" in written, f"the identity is {written!r}")
    expect("snowberry-errors.txt" not in card.names(), "there are errors")
    return "host name, time zone, SSH by key, upstream, credentials; identity written"


def _has(card: Card, name: str) -> bool | None:
    """Whether the boot partition has the file; not, either, while the machine is writing there."""
    try:
        return name in card.names() or None
    except RuntimeError:
        return None


def _is_set(machine: Machine, owner: Owner) -> None:
    expect(machine.shell("uname -n").strip() == "attic", "host name")
    expect("Berlin" in machine.shell("readlink /etc/localtime"), "time zone")
    wait_for("sshd", SOON_S, lambda: machine.shell("systemctl is-active ssh").strip() == "active" or None)
    owner.log_in(machine)
    status = json.loads(machine.get("/api/status")[1])
    expect("10.0.2.2:9" in json.dumps(status["upstreams"]), f"upstreams: {status['upstreams']}")
    readable = machine.shell("runuser -u snowberry -- cat /etc/snowberry/credentials")
    expect(SECRET in readable, f"the daemon's credentials: {readable[:200]!r}")
    others = machine.shell("runuser -u nobody -- cat /etc/snowberry/credentials")
    expect(SECRET not in others, "anybody can read the credentials")


def kept(card: Card, owner: Owner) -> str:
    """The next start has them all, credentials and SSH's own key too."""
    with Machine(card) as machine:
        machine.first_answer()
        _is_set(machine, owner)
        machine.shell("systemctl --no-block poweroff")
        machine.ended()
    return "the same after another start"


def broken(card: Card) -> str:
    """A file that nobody can read as TOML: up, and it is said."""
    card.write("snowberry.toml", BROKEN.encode())
    with Machine(card) as machine:
        up = machine.first_answer()
        wait_for(
            "the errors at /api/status",
            SOON_S,
            lambda: "snowberry.toml" in json.dumps(_appliance(machine)) or None,
        )
        wait_for("the errors' file", SOON_S, lambda: _has(card, "snowberry-errors.txt"))
        machine.shell("systemctl --no-block poweroff")
        machine.ended()
    told = card.read("snowberry-errors.txt").decode()
    expect("line" in told or ":" in told, f"it says {told!r}")
    return f"up after {up:.0f} s; {told.strip().splitlines()[-1][:120]}"


def unreadable(card: Card) -> str:
    """Noise where the FAT was, by the time the system looks: up with the last settings, and it is said."""
    damaged = card.copy(card.path.with_name("damaged.img"))
    with damaged.path.open("r+b") as file:
        file.seek(card.partition(1).start * SECTOR_BYTES)
        file.write(random.Random(1).randbytes(4 * MIB))
    with Machine(damaged, firmware=card) as machine:
        up = machine.first_answer()
        told = wait_for(
            "why at /api/status",
            SOON_S,
            lambda: re.search("the boot partition[^\"]*", json.dumps(_appliance(machine))),
        )
        expect(machine.shell("uname -n").strip() == "attic", "the last settings are not there")
        noted = machine.shell("cat /run/snowberry-boot.log")
        expect("the boot partition cannot be had" in noted, f"the initramfs says {noted!r}")
        machine.pull_the_plug()
    return f"up after {up:.0f} s; {told[0][:120]}"


def _appliance(machine: Machine) -> object:
    status = json.loads(machine.get("/api/status")[1] or b"{}")
    return status.get("appliance")
