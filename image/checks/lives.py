"""The life of one card: its first start, a house that uses it, the plug, the card flashed again."""

import contextlib
import hashlib
import json
import random
import re
import tempfile
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from harness import cut
from harness.card import Card, run
from harness.lan import PTR, A, Lan
from harness.machine import SOON_S, Failed, Machine, wait_for

from .kit import CARD_BYTES, Image, Report, Skipped, expect
from .parts import Closure, Minio, Nix, hash_part, nix32

# What is written in rest may be this much a day: a card of 32 GB lasts for decades then.
REST_MIB_A_DAY_MAX = 20
REST_WATCHED_S = 180
DAY_S = 86400
# The plug is pulled at some write of so many seconds.
PUSHED_FOR_S = 20
# Of what was pushed before earlier pulls so many are asked for after each; all of them in the end.
OLDER_ASKED_MAX = 10
# Something that the house builds and pushes, with a name of its own.
EXPRESSION = """derivation {{
  name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
  args = [ "-euc" ''
    awk -v s={seed} -v n={lines} 'BEGIN {{ while (n-- > 0) {{ s = s * 16807 % 2147483647; print s }} }}' > $out
  '' ];
}}
"""


@dataclass(frozen=True)
class House:
    """What is around the card."""

    minio: Minio
    closure: Closure


class Life:
    """A card, and what is known of it from one power-on to the next."""

    def __init__(self, image: Image, folder: Path, house: House | str) -> None:
        self.image = image
        self.folder = folder
        self._house = house
        self.card = Card.flash(image.path, folder / "card.img", CARD_BYTES)
        self.identity = ""
        self.token = ""
        self.pushed: list[str] = []
        # The machine whose writes are noted, and the card as it was before it was switched on.
        self.machine: Machine | None = None
        self._before = folder / "before.img"
        self._writes = folder / "writes.log"

    def house(self) -> House:
        """What is around the card, where it could be had."""
        if isinstance(self._house, str):
            raise Skipped(self._house)
        return self._house

    def power_on(self, **more: object) -> Machine:
        """The card in a machine that can reach this host."""
        return Machine(self.card, outside=True, log=self.folder / "serial.log", **more)  # type: ignore[arg-type]

    def watch(self) -> Machine:
        """The card in a machine that notes what is written."""
        self.close()
        self.card.copy(self._before)
        self.machine = self.power_on(writes=self._writes)
        return self.machine

    def running(self) -> Machine:
        """The machine of the last `watch`."""
        assert self.machine is not None
        return self.machine

    def written(self) -> int:
        """How many writes that machine has made."""
        return cut.count(self._writes)

    def cut_power(self, earliest: int, chance: random.Random) -> cut.Cut:
        """Ends that machine, as at one of its writes from that number on: the card keeps what it was
        told to keep, and some of the rest."""
        self.close()
        made = cut.replay(self._writes, self._before, earliest, chance)
        self._before.replace(self.card.path)
        return made

    def close(self) -> None:
        """Ends that machine, if it runs; the card has all that was written."""
        if self.machine is not None:
            self.machine.close()
            self.machine = None

    def configure(self, machine: Machine) -> str:
        """Gives the running cache this house's bucket and a writer; the token. /etc is volatile: a
        start without this has the image's own configuration."""
        config = (
            "[push]\nplain = true\n\n[[upstream]]\n"
            f'url = "{self.house().minio.url}"\ntrusted-public-keys = ["{self.house().closure.key}"]\n'
            'credentials-file = "/run/credentials/snowberry.service/bucket"\npush = true\n'
        )
        machine.shell(
            "umask 077; "
            f"cat >/etc/snowberry/snowberry.toml <<'E'\n{config}\nE\n"
            # Root's alone: systemd hands them over to the unit.
            f"mkdir -p /etc/credstore; cat >/etc/credstore/snowberry.bucket <<'E'\n"
            f"{self.house().minio.credentials}\nE\n"
            "chown snowberry /etc/snowberry/snowberry.toml; systemctl restart snowberry"
        )
        wait_for("the cache's return", SOON_S, lambda: machine.get("/healthz")[0] == 200 or None)
        if not self.token:
            self.token = (
                machine.shell(
                    "STATE_DIRECTORY=/var/lib/snowberry runuser -u snowberry -- snowberry token add tower"
                )
                .split("\n")[0]
                .strip()
            )
        return self.token


def own_key(machine: Machine) -> str:
    """What the cache signs with."""
    status, body = machine.get("/public-key")
    expect(status == 200, f"/public-key is {status}")
    return body.decode().splitlines()[0]


def identity(machine: Machine) -> str:
    """What must be the same for as long as the card lives."""
    return machine.shell("cat /etc/machine-id").strip() + " " + own_key(machine)


def check_all(image: Image, report: Report, pulls: int, seed: int) -> None:
    """Every check of this module; later ones need what earlier ones left on the card."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="snowberry-life.")))
        house: House | str
        try:
            closure = Closure(image)
            minio = stack.enter_context(Minio(image))
            minio.fill(closure.binary_cache)
            house = House(minio, closure)
        except Skipped as reason:
            house = str(reason)
        life = Life(image, folder, house)
        first_life(life, report)
        if not life.identity:
            return

        def pull(number: int) -> None:
            chance = random.Random(seed * 1000 + number)
            if not report.check(f"plug pulled, {number + 1} of {pulls}", lambda: pulled(life, number, chance)):
                life.close()

        stack.callback(life.close)
        for number in range(pulls):
            pull(number)
        report.check("card flashed again", lambda: flashed_again(life))


def first_life(life: Life, report: Report) -> None:
    """The first start, and a day in the house."""
    lan = Lan(("snowberry.local", A), ("_nix-cache._tcp.local", PTR))
    lan.start()
    try:
        with life.power_on(network=lan.options()) as machine:
            booted = report.check(
                "first start, empty card", lambda: f"first answer after {machine.first_answer():.0f} s"
            )
            if not booted:
                print(machine.said()[-3000:])
                return
            report.check("page and nix-cache-info", lambda: outside(machine))
            report.check("seen by multicast DNS", lambda: announced(lan))
            report.check("system is well", lambda: well(machine))
            report.check("root is read-only", lambda: read_only(machine))
            report.check("nobody can log in", lambda: locked(machine))
            report.check("sandbox of the unit", lambda: sandbox(machine))
            life.identity = identity(machine)
            report.check("a Nix client substitutes", lambda: substitutes(life, machine))
            report.check("a Nix client pushes, to the bucket", lambda: pushes(life, machine))
            report.check("written in rest", lambda: rest(machine))
            report.check("switched off in order", lambda: switched_off(machine))
    finally:
        lan.end()


def outside(machine: Machine) -> str:
    """What the house sees."""
    status, body = machine.get("/")
    expect(status == 200 and b"snowberry" in body, f"/ is {status}")
    status, body = machine.get("/nix-cache-info")
    expect(status == 200 and b"StoreDir: /nix/store" in body, f"/nix-cache-info is {status}")
    status, _ = machine.get("/" + "0" * 32 + ".narinfo")
    expect(status == 404, f"a narinfo that nobody has is {status}")
    return f"QEMU took {machine.cpu_s():.0f} s of CPU until now"


def announced(lan: Lan) -> str:
    """The daemon's own announcement, on the second network card."""

    def look() -> str | None:
        names = {record.name for record in lan.heard if record.kind == A}
        services = {
            record.value.decode()
            for record in lan.heard
            if record.name == "_nix-cache._tcp.local" and record.kind == PTR
        }
        return f"{names}, {services}" if "snowberry.local" in names and services else None

    return wait_for("snowberry.local and its service", SOON_S, look)


def well(machine: Machine) -> str:
    """Everything started, and little memory taken."""

    def settled() -> str | None:
        state = machine.shell("systemctl is-system-running").strip()
        return None if state in ("initializing", "starting") else state

    state = wait_for("the end of the start", SOON_S, settled)
    failed = machine.shell("systemctl --failed --no-legend --plain").strip()
    expect(state == "running" and not failed, f"{state}: {failed}")
    memory = machine.shell("free -m | awk '/^Mem/ {print $3, $2}'").split()
    times = machine.shell("systemd-analyze time | head -1").strip()
    return f"{memory[0]} of {memory[1]} MiB used; {times}"


def read_only(machine: Machine) -> str:
    """The root cannot be written, what lies over it is memory, and what lasts is listed."""
    told = machine.shell("touch /usr/x; touch /x; findmnt -rn -o TARGET,FSTYPE,SOURCE,OPTIONS")
    expect(told.count("Read-only file system") == 2, "/ can be written")
    lasting, wrong = [], []
    for line in told.splitlines():
        target, kind, *_, options = line.split(" ") if line.count(" ") >= 3 else ("", "", "")
        writable = "rw" in options.split(",")
        if kind in ("ext4", "vfat", "xfs", "btrfs") and writable:
            lasting.append(target)
        if kind == "squashfs" and writable:
            wrong.append(target)
    expect(not wrong, f"writable: {wrong}")
    allowed = {"/var/lib/snowberry-data", "/var/lib/systemd", "/var/lib/snowberry"}
    expect(set(lasting) == allowed, f"what lasts is written at {sorted(lasting)}")
    return "what lasts is written at " + ", ".join(sorted(lasting))


def locked(machine: Machine) -> str:
    """No password, no ssh; only the cache listens, and what the system needs."""
    expect(machine.shell("systemctl is-active ssh").strip() == "inactive", "ssh runs")
    expect(re.search(r"^root (L|LK) ", machine.shell("passwd -S root")), "root is not locked")
    listeners = machine.shell("ss -Hlntu | awk '{print $1, $5}'").split("\n")
    ports = {
        (each.split()[0], int(each.rsplit(":", 1)[1]))
        for each in listeners
        if ":" in each and "127.0.0." not in each and "%lo" not in each
    }
    stranger = {
        each
        for each in ports
        if each not in {("tcp", 80), ("tcp", 443), ("udp", 5353), ("udp", 68), ("udp", 546)}
    }
    expect(not stranger, f"listened to from outside: {sorted(stranger)}")
    return f"listens at {sorted(ports)}"


def sandbox(machine: Machine) -> str:
    """systemd's own figure; 1.5 is asked for."""
    told = machine.shell("systemd-analyze security --no-pager snowberry.service | tail -1")
    figure = re.search(r"([\d.]+) OK", told)
    assert figure is not None, told
    expect(float(figure[1]) <= 1.5, told)
    return figure[1]


def rest(machine: Machine) -> str:
    """Bytes that reach the card while nobody asks, and the files behind them."""
    # The start's own writes are down after two turns of the file system's commit.
    time.sleep(75)
    control = machine.qmp()
    before, begun = control.written_bytes(), time.monotonic()
    machine.shell("touch /run/rest-begins")
    time.sleep(REST_WATCHED_S)
    written, took = control.written_bytes() - before, time.monotonic() - begun
    changed = machine.shell("find /var/lib/snowberry-data -xdev -newer /run/rest-begins -type f").split()
    a_day = written * DAY_S / took / (1 << 20)
    expect(a_day <= REST_MIB_A_DAY_MAX, f"{a_day:.1f} MiB a day; changed: {changed}")
    return f"{written} bytes in {took:.0f} s, {a_day:.1f} MiB a day; changed: {changed or 'nothing'}"


def substitutes(life: Life, machine: Machine) -> str:
    """The whole closure, from the bucket through the machine into a real store."""
    life.configure(machine)
    client = Nix(life.image, machine.url, life.house().closure.key)
    try:
        begun = time.monotonic()
        client.run(f"nix-store --realise {life.house().closure.top} && nix-store --verify --check-contents")
        paths = client.run(f"nix-store -qR {life.house().closure.top}").split()
        expect(len(paths) == len(life.house().closure.paths), f"{len(paths)} paths")
        return f"{len(paths)} paths in {time.monotonic() - begun:.0f} s"
    finally:
        client.close()


def push(life: Life, machine: Machine, token: str, name: str, lines: int) -> str:
    """Builds something and pushes it; returns when it was acknowledged."""
    client = Nix(life.image, "", "")
    try:
        text = EXPRESSION.format(name=name, seed=zlib.crc32(name.encode()) % 100000 + 1, lines=lines)
        (client.folder / "push.nix").write_text(text)
        path = client.run("nix-build --quiet --no-out-link /world/push.nix").strip()
        url = machine.url.replace("http://", f"http://any:{token}@")
        client.run(f"nix copy --to '{url}/push?compression=zstd' {path}")
        life.pushed.append(path)
        return path
    finally:
        client.close()


def pushes(life: Life, machine: Machine) -> str:
    """What the house builds goes through the machine into the bucket."""
    token = life.configure(machine)
    path = push(life, machine, token, "from-the-house", 50000)
    wait_for(
        "the path in the bucket", SOON_S, lambda: life.house().minio.holds(f"{hash_part(path)}.narinfo") or None
    )
    return path


def switched_off(machine: Machine) -> str:
    """In bounded time."""
    begun = time.monotonic()
    machine.shell("systemctl --no-block poweroff")
    expect(machine.ended() == "power-off", "it started again")
    return f"after {time.monotonic() - begun:.0f} s"


def acknowledged(life: Life, machine: Machine, paths: list[str]) -> None:
    """What was answered 200 is here, to the last byte, on the card: where the bucket is not known yet
    nobody else has it."""
    for path in paths:
        status, body = machine.get(f"/{hash_part(path)}.narinfo")
        expect(status == 200, f"the narinfo of {path} is {status}")
        said = dict(line.split(": ", 1) for line in body.decode().splitlines())
        status, nar = machine.get("/" + said["URL"], 120)
        expect(status == 200, f"the NAR of {path} is {status}")
        found = nix32(hashlib.sha256(nar).digest())
        expect(said["FileHash"] == f"sha256:{found}", f"the NAR of {path} is {found}: {said}")


def file_system(life: Life) -> str:
    """The data partition after its journal was played back, as the next start does it."""
    data = life.card.extract(4, life.folder / "data.ext4")
    try:
        run("e2fsck", "-p", str(data))
    except RuntimeError as error:
        # 1: something was put right, as it is at a start; told apart by the second look.
        expect("UNEXPECTED" not in str(error), str(error))
    run("e2fsck", "-fn", str(data))
    data.unlink()
    return "e2fsck: clean"


def pulled(life: Life, number: int, chance: random.Random) -> str:
    """Pushes under way, the plug at a seeded write of theirs, everything acknowledged before that is there.
    The machine runs on for the next one."""
    if life.machine is None:
        up_again(life, life.pushed)
    machine = life.running()
    token = life.configure(machine)
    older = list(life.pushed)
    # What was acknowledged, and after how many writes.
    newer: list[tuple[str, int]] = []
    stop = threading.Event()

    def load() -> None:
        count = 0
        while not stop.is_set():
            name, lines = f"under-load-{number}-{count}", chance.randrange(1000, 300000)
            try:
                path = push(life, machine, token, name, lines)
            except (AssertionError, Failed, OSError):
                return
            newer.append((path, life.written()))
            count += 1

    earliest = life.written()
    worker = threading.Thread(target=load)
    worker.start()
    time.sleep(PUSHED_FOR_S)
    machine.pull_the_plug()
    stop.set()
    worker.join()
    made = life.cut_power(earliest, chance)
    told = file_system(life)
    held = [path for path, written in newer if written <= made.write]
    life.pushed = older + held
    again = up_again(life, held + chance.sample(older, min(len(older), OLDER_ASKED_MAX)))
    return (
        f"at write {made.write - earliest} of {made.of - earliest} with {len(held)} of {len(newer)} pushes "
        f"answered, {made.lost} of {made.lost + made.kept} pages that were not flushed lost, {told}, "
        f"up after {again:.0f} s"
    )


def up_again(life: Life, paths: list[str]) -> float:
    """Powers the card on, with these paths on it; the seconds until the first answer."""
    machine = life.watch()
    took = machine.first_answer()
    expect(identity(machine) == life.identity, "another identity")
    acknowledged(life, machine, paths)
    return took


def flashed_again(life: Life) -> str:
    """A new image over the card: keys, identity and everything that was stored stay."""
    life.close()
    life.card.flash_again(life.image.path)
    expect(len(life.card.partitions()) == 3, "the table still lists the data partition")
    with life.power_on() as machine:
        machine.first_answer()
        expect(identity(machine) == life.identity, "another identity")
        acknowledged(life, machine, life.pushed)
        status = json.loads(machine.get("/api/status")[1])
        machine.pull_the_plug()
    return f"{len(life.pushed)} pushed paths are still here, {status['store']['nars']} NARs"
