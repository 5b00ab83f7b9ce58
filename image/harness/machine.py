"""A machine in QEMU with a card in it. Nothing in the image is changed for a test: what looks from
inside is a unit that comes as a systemd credential over fw_cfg, which no Raspberry Pi has.

Every port that is forwarded is one of this machine's loopback.
"""

import contextlib
import json
import random
import re
import secrets
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TypeVar

from . import cut
from .card import Card
from .firmware import hand_over

# A boot under emulation takes two minutes, and on a machine that has much else to do several times that.
BOOT_WAIT_S = 900.0
# What comes a while after the first answer, and one command inside.
SOON_S = COMMAND_WAIT_S = 300.0
POLL_S = 0.5

# A shell for root at a virtio port, which can be opened once only. Comes with the test and goes with it.
SHELL_UNIT = """[Unit]
Description=Shell of the image test (passed in as a credential)
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
ExecStartPre=/bin/sh -c 'until [ -e /dev/virtio-ports/test ]; do sleep 1; done'
ExecStart=/bin/sh -c 'exec /bin/sh <>/dev/virtio-ports/test >&0 2>&1'
Restart=always
RestartSec=1
TimeoutStartSec=infinity
"""
# fw_cfg takes names of 55 characters at most; this one makes it just that.
SHELL_UNIT_NAME = "t.service"

T = TypeVar("T")

# The test is to end: machines run no longer, nobody waits for anything, no other is switched on.
_over = threading.Event()
_running: set["Machine"] = set()


class Failed(Exception):
    """Something did not come within its time."""


def free_port() -> int:
    """A port of loopback that nobody listens at, below those that the kernel gives to connections."""
    while True:
        port = random.randrange(22_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port


def wait_for(what: str, limit_s: float, look: Callable[[], T | None]) -> T:
    """What `look` finds, asked again until it finds something."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if _over.is_set():
            raise Failed(f"{what}: the test was ended")
        found = look()
        if found is not None:
            return found
        time.sleep(POLL_S)
    raise Failed(f"{what}: not within {limit_s:.0f} s")


def end_all() -> None:
    """Ends every machine, whichever thread has it."""
    _over.set()
    for machine in list(_running):
        machine.pull_the_plug()


class Machine:
    """One power-on, from the firmware to the end of the process."""

    def __init__(
        self,
        card: Card,
        *,
        tryboot: bool = False,
        firmware: Card | None = None,
        disks: tuple[Path, ...] = (),
        network: tuple[str, ...] = (),
        outside: bool = False,
        memory_mib: int = 1024,
        rtc: str = "",
        forward: str = "",
        log: Path | None = None,
        writes: Path | None = None,
    ) -> None:
        """`firmware`: what is read before the system starts, where the card cannot be; `network`: QEMU's options
        for more cards; `outside`: this host is 10.0.2.2 in there; `rtc`: what the machine's own clock
        says, which no Pi but the 5 has; `forward`: an option of QEMU's network for what it reaches all the
        same; `writes`: where every write is noted, for `cut`."""
        if _over.is_set():
            raise Failed("the test was ended")
        self._folder = TemporaryDirectory(prefix="snowberry-boot.")
        self.folder = Path(self._folder.name)
        self.log = log or self.folder / "serial.log"
        self.log.write_bytes(b"")
        self.ports = {guest: free_port() for guest in (80, 443, 22)}
        boot = hand_over(firmware or card, tryboot)
        self.prefix = boot.prefix
        (self.folder / "kernel").write_bytes(boot.kernel)
        (self.folder / "initramfs").write_bytes(boot.initramfs)
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            self._command(
                card, boot.command_line, disks, network, outside, memory_mib, rtc, forward, writes
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "qemu.log").open("wb"),
        )
        self._shell: socket.socket | None = None
        _running.add(self)

    def _command(
        self,
        card: Card,
        command_line: str,
        disks: tuple[Path, ...],
        network: tuple[str, ...],
        outside: bool,
        memory_mib: int,
        rtc: str,
        forward: str,
        writes: Path | None,
    ) -> list[str]:
        # The consoles are this machine's own; the rest is what the card says.
        line = (
            re.sub(r"console=\S+\s*|\bquiet\b", "", command_line)
            + f" console=ttyAMA0,115200 systemd.show_status=0 systemd.wants={SHELL_UNIT_NAME}"
        )
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in self.ports.items())
        if forward:
            forwards += f",{forward}"
        restrict = "off" if outside else "on"
        drive = [
            "-drive", f"file={card.path},format=raw,if=none,id=card,cache=writeback",
            "-device", "virtio-blk-pci,drive=card",
        ]  # fmt: skip
        if writes:
            drive = cut.options(card.path, writes)
        command = [
            "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-smp", "2",
            "-m", str(memory_mib), "-accel", "tcg,thread=multi,tb-size=512",
            "-display", "none", "-monitor", "none", "-no-reboot",
            "-serial", f"file:{self.log}",
            "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off",
            "-kernel", f"{self.folder}/kernel", "-initrd", f"{self.folder}/initramfs",
            "-append", line,
            *drive,
            "-netdev", f"user,id=net,restrict={restrict}{forwards}",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=test,path={self.folder}/shell,server=on,wait=off",
            "-device", "virtserialport,chardev=test,name=test",
        ]  # fmt: skip
        for number, disk in enumerate(disks):
            command += ["-drive", f"file={disk},format=raw,if=none,id=disk{number}"]
            command += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        if rtc:
            command += ["-rtc", f"base={rtc}"]
        unit = f"systemd.extra-unit.{SHELL_UNIT_NAME}"
        (self.folder / unit).write_text(SHELL_UNIT)
        command += ["-fw_cfg", f"name=opt/io.systemd.credentials/{unit},file={self.folder}/{unit}"]
        return command + list(network)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, if it still runs, and takes its folder away."""
        self.pull_the_plug()
        _running.discard(self)
        self._folder.cleanup()

    @property
    def url(self) -> str:
        """Plain HTTP, from outside."""
        return f"http://127.0.0.1:{self.ports[80]}"

    def age_s(self) -> float:
        """Seconds since it was switched on."""
        return time.monotonic() - self.begun

    def said(self) -> str:
        """What the serial console showed until now."""
        return self.log.read_text(errors="replace")

    def get(self, path: str, limit_s: float = 30.0, method: str = "GET") -> tuple[int, bytes]:
        """One question from outside; status 0 where there was no answer."""
        request = urllib.request.Request(self.url + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()
        except (OSError, ValueError):
            return 0, b""

    def first_answer(self, limit_s: float = BOOT_WAIT_S) -> float:
        """Seconds from power-on until `/nix-cache-info` answered."""

        def look() -> float | None:
            if self.process.poll() is not None:
                told = (self.folder / "qemu.log").read_text(errors="replace")
                raise Failed(f"the machine ended, status {self.process.returncode}: {told}")
            if "Kernel panic" in self.said():
                raise Failed("the kernel panicked")
            return self.age_s() if self.get("/nix-cache-info", 3.0)[0] == 200 else None

        return wait_for("an answer to /nix-cache-info", limit_s, look)

    def shell(self, script: str, limit_s: float = COMMAND_WAIT_S) -> str:
        """Runs a script as root inside; its output, whatever its status."""
        end = time.monotonic() + limit_s
        if self._shell is None:
            self._shell = self._connect()
        # Some output of another script cannot hold this.
        mark = secrets.token_hex(8)
        line = f"( {script}\n) </dev/null 2>&1; echo {mark[:8]}''{mark[8:]}\n"
        self._shell.sendall(line.encode())
        heard = b""
        while mark.encode() not in heard:
            left = end - time.monotonic()
            if left <= 0:
                self._shell.close()
                self._shell = None
                raise Failed(f"inside, no end of: {script}")
            self._shell.settimeout(left)
            with contextlib.suppress(TimeoutError):
                piece = self._shell.recv(65536)
                if not piece:
                    raise Failed("the machine's shell went away")
                heard += piece
        return heard.split(mark.encode(), 1)[0].decode(errors="replace")

    def _connect(self) -> socket.socket:
        shell = socket.socket(socket.AF_UNIX)
        shell.connect(str(self.folder / "shell"))
        return shell

    def qmp(self) -> "Qmp":
        """QEMU's own control."""
        return Qmp(self.folder / "qmp")

    def pull_the_plug(self) -> None:
        """SIGKILL: nothing inside is told."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def ended(self, limit_s: float = SOON_S) -> str:
        """Waits for the machine to end by itself: "power-off", "restart" or "tryboot". The kernel
        names the argument of a restart on the console as its last word."""
        wait_for("the machine's end", limit_s, self.process.poll)
        last = self.said()[-4096:]
        if re.search(r"Restarting system with command '0 tryboot'", last):
            return "tryboot"
        return "restart" if "reboot: Restarting system" in last else "power-off"

    def cpu_s(self) -> float:
        """CPU time that QEMU took."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100


class Qmp:
    """QEMU's control socket, for figures of the card."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._read()
        next(self._lines)
        self.ask("qmp_capabilities")

    def _read(self) -> Iterator[dict[str, object]]:
        for line in self._socket.makefile("rb"):
            yield json.loads(line)

    def ask(self, command: str) -> object:
        """The answer to a command without arguments."""
        self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
        for answer in self._lines:
            if "return" in answer or "error" in answer:
                return answer.get("return")
        return None

    def written_bytes(self) -> int:
        """What was written to the card since power-on."""
        devices = self.ask("query-blockstats")
        assert isinstance(devices, list)
        return next(int(each["stats"]["wr_bytes"]) for each in devices if each["device"] == "card")
