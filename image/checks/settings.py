"""Settings of the boot partition, as an owner writes them on another computer."""

import json
import tempfile
from pathlib import Path

from harness.card import Card
from harness.machine import Machine, wait_for

from .kit import CARD_BYTES, Image, Report, Skipped, expect

SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1dsQ0wS9YdR1f3r1eY0n7b6k2u5m8p4q9s3t6v1w2x image-test"
SECRET = "the-secret-of-this-bucket-0123456789"
GOOD = f"""
[system]
hostname = "attic"

[locale]
timezone = "Europe/Berlin"

[ssh]
authorized-keys = ["{SSH_KEY}"]

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


def check_all(image: Image, report: Report) -> None:
    """Every check of this module, on one card."""
    with tempfile.TemporaryDirectory(prefix="snowberry-settings.") as name:
        card = Card.flash(image.path, Path(name) / "card.img", CARD_BYTES)
        if report.check("settings at the first start", lambda: applied(card)):
            report.check("settings kept", lambda: kept(card))
            report.check("broken settings", lambda: broken(card))


def applied(card: Card) -> str:
    """Everything that was set is so, and the secret is no longer on the boot partition."""
    card.write("snowberry.toml", GOOD.encode())
    with Machine(card) as machine:
        machine.first_answer()
        if "unrecognized subcommand" in machine.shell("snowberry first-boot --help"):
            raise Skipped("the program has no `first-boot`")
        _is_set(machine)
        wait_for("the identity's file", 240, lambda: "snowberry-identity.txt" in card.names() or None)
        machine.shell("systemctl --no-block poweroff")
        machine.ended()
    text = card.read("snowberry.toml").decode()
    expect(SECRET not in text, "the secret is still on the boot partition")
    expect("attic" in text, "the rest of the settings is gone")
    written = card.read("snowberry-identity.txt").decode()
    expect("attic" in written, f"the identity is {written!r}")
    expect("snowberry-errors.txt" not in card.names(), "there are errors")
    return "host name, time zone, SSH key, upstream, credentials; identity written"


def _is_set(machine: Machine) -> None:
    expect(machine.shell("hostname").strip() == "attic", "host name")
    expect("Berlin" in machine.shell("readlink /etc/localtime"), "time zone")
    wait_for("sshd", 120, lambda: machine.shell("systemctl is-active ssh").strip() == "active" or None)
    expect(SSH_KEY.split()[1] in machine.shell("cat /etc/ssh/authorized_keys/root"), "the key")
    status = json.loads(machine.get("/api/status")[1])
    expect("10.0.2.2:9" in json.dumps(status["upstreams"]), f"upstreams: {status['upstreams']}")
    readable = machine.shell("runuser -u snowberry -- cat /etc/snowberry/credentials")
    expect(SECRET in readable, f"the daemon's credentials: {readable[:200]!r}")
    others = machine.shell("runuser -u nobody -- cat /etc/snowberry/credentials")
    expect(SECRET not in others, "anybody can read the credentials")


def kept(card: Card) -> str:
    """The next start has them all, credentials too."""
    with Machine(card) as machine:
        machine.first_answer()
        _is_set(machine)
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
            120,
            lambda: "snowberry.toml" in json.dumps(_appliance(machine)) or None,
        )
        wait_for("the errors' file", 120, lambda: "snowberry-errors.txt" in card.names() or None)
        machine.shell("systemctl --no-block poweroff")
        machine.ended()
    told = card.read("snowberry-errors.txt").decode()
    expect("line" in told or ":" in told, f"it says {told!r}")
    return f"up after {up:.0f} s; {told.strip().splitlines()[-1][:120]}"


def _appliance(machine: Machine) -> object:
    status = json.loads(machine.get("/api/status")[1] or b"{}")
    return status.get("appliance")
