"""What can be seen of an image without starting it."""

import re
import subprocess
import tempfile
from pathlib import Path

from harness.card import MIB, Card, run

from .kit import Image, Report, expect

XZ_MIB_MAX = 400
# A line of config.txt that is longer is cut by the firmware.
CONFIG_LINE_MAX = 98
ERASE_BLOCK_SECTORS = 8192
FIRMWARE = (
    "bootcode.bin", "start.elf", "fixup.dat", "start_cd.elf", "fixup_cd.dat",
    "start4.elf", "fixup4.dat", "start4cd.elf", "fixup4cd.dat", "config.txt",
)  # fmt: skip
# Device trees, and a word that the boards' card, network or watchdog drivers match on.
TREES = {
    "bcm2837-rpi-3-b-plus.dtb": b"brcm,bcm2835-sdhost",
    "bcm2837-rpi-zero-2-w.dtb": b"brcm,bcm2835-pm-wdt",
    "bcm2711-rpi-4-b.dtb": b"brcm,bcm2711-genet-v5",
    "bcm2711-rpi-400.dtb": b"brcm,bcm2711-genet-v5",
    "bcm2711-rpi-cm4-io.dtb": b"brcm,bcm2711-genet-v5",
    "bcm2712-rpi-5-b.dtb": b"brcm,bcm2712-sdhci",
    "bcm2712d0-rpi-5-b.dtb": b"brcm,bcm2712-sdhci",
}
MODULES = (
    "bcm2835", "sdhci-iproc", "sdhci-brcmstb", "genet", "macb", "lan78xx", "bcm2835_wdt", "brcmfmac",
    "uas", "xhci-pci", "dwc2", "ext4", "vfat", "squashfs", "overlay", "zram",
)  # fmt: skip
ENABLED = (
    "snowberry.service", "snowberry.socket", "snowberry-tls.socket", "snowberry-store-disk.service",
    "systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service",
    "wpa_supplicant@wlan0.service", "ssh.service",
)  # fmt: skip
DISABLED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "ssh.socket",
)
SET_ID = {
    "su", "mount", "umount", "passwd", "chfn", "chsh", "newgrp", "gpasswd", "chage", "expiry",
    "unix_chkpwd", "ssh-agent", "ssh-keysign", "dbus-daemon-launch-helper",
}  # fmt: skip


class Root:
    """The slot's root, unpacked."""

    def __init__(self, squashfs: Path, folder: Path) -> None:
        self.squashfs = squashfs
        self.folder = folder
        run("unsquashfs", "-q", "-n", "-no-xattrs", "-d", str(folder), str(squashfs))

    def text(self, name: str) -> str:
        """A file of it."""
        return (self.folder / name.lstrip("/")).read_text(errors="replace")

    def listed(self) -> list[str]:
        """Each entry as `ls -l` writes it, by numbers."""
        return run("unsquashfs", "-llnumeric", str(self.squashfs)).decode().splitlines()


def check_all(image: Image, report: Report) -> None:
    """Every check of this module."""
    card = Card(image.path)
    report.check("layout", lambda: layout(card))
    report.check("size", lambda: size(image))
    report.check("boot partition", lambda: boot_partition(card))
    report.check("boot files", lambda: boot_files(card))
    report.check("device trees", lambda: device_trees(card))
    with tempfile.TemporaryDirectory(prefix="snowberry-root.") as name:
        folder = Path(name)
        squashfs = card_root(card, folder / "squashfs")
        root = Root(squashfs, folder / "root")
        report.check("kernel modules", lambda: modules(root))
        report.check("no credentials", lambda: credentials(root))
        report.check("owners and modes", lambda: owners(root))
        report.check("units that are on", lambda: units(root))
        report.check("systemd-analyze verify", lambda: verify(root))
        report.check("appliance.toml", lambda: appliance(root, image))
        report.check("packages", lambda: packages(root))


def card_root(card: Card, path: Path) -> Path:
    """Slot A's file system. The image ends where that ends."""
    start = card.partition(2).start * 512
    run("dd", f"if={card.path}", f"of={path}", "bs=4M", f"skip={start}", "iflag=skip_bytes", "status=none")
    return path


def layout(card: Card) -> str:
    """The partitions stand where cards in use have them."""
    parts = card.partitions()
    expect(len(parts) == 3, f"{len(parts)} partitions, not 3")
    expect(all(each.start % ERASE_BLOCK_SECTORS == 0 for each in parts), "not on erase blocks")
    expect(all(a.start + a.size == b.start for a, b in zip(parts, parts[1:], strict=False)), "gaps")
    expect(parts[1].size == parts[2].size, "slots of different sizes")
    root = card.path.stat().st_size - parts[1].start * 512
    expect(0 < root <= parts[1].size * 512, "the image does not end within slot A")
    return f"boot {parts[0].size // 2048} MiB, slots {parts[1].size // 2048} MiB, root {root // MIB} MiB"


def size(image: Image) -> str:
    """What is downloaded."""
    packed = Path(f"{image.path}.xz").stat().st_size / MIB
    expect(packed <= XZ_MIB_MAX, f"{packed:.0f} MiB packed")
    return f"{packed:.0f} MiB packed, {image.path.stat().st_size / MIB:.0f} MiB on the card"


def boot_partition(card: Card) -> None:
    """A clean FAT."""
    with tempfile.TemporaryDirectory() as folder:
        run("fsck.vfat", "-n", str(card.extract(1, Path(folder) / "fat")))


def boot_files(card: Card) -> str:
    """What the firmware looks for."""
    top = card.names()
    missing = [name for name in FIRMWARE if name not in top]
    expect(not missing, f"missing: {missing}")
    config = card.read("config.txt").decode()
    expect("\nos_prefix=a/\n" in config and "\narm_64bit=1\n" in config, "config.txt")
    expect(all(len(line) <= CONFIG_LINE_MAX for line in config.splitlines()), "long lines")
    line = card.read("a/cmdline.txt").decode()
    expect(line.count("\n") == 1, "cmdline.txt is not one line")
    for word in ("root=PARTUUID=5b0e2217-02", "snowberry.slot=a", "boot=snowberry", " ro "):
        expect(word in line, f"cmdline.txt lacks {word}")
    kernel, initramfs = (len(card.read(f"a/{name}")) // MIB for name in ("vmlinuz", "initrd.img"))
    return f"kernel {kernel} MiB, initramfs {initramfs} MiB"


def device_trees(card: Card) -> None:
    """The boards that the image is for."""
    for name, word in TREES.items():
        expect(word in card.read(f"a/{name}"), f"{name} lacks {word.decode()}")


def modules(root: Root) -> str:
    """Drivers of the boards' cards, networks, disks and watchdog."""
    (kernel,) = (root.folder / "usr/lib/modules").iterdir()
    known = (kernel / "modules.dep").read_text() + (kernel / "modules.builtin").read_text()
    missing = [name for name in MODULES if not re.search(rf"/{name}\.ko", known)]
    expect(not missing, f"missing: {missing}")
    return kernel.name


def credentials(root: Root) -> None:
    """Nothing that opens, and nothing that two cards would share."""
    hashes = [line.split(":")[1] for line in root.text("/etc/shadow").splitlines()]
    expect(all(each in ("*", "!", "!*", "!!") for each in hashes), "an account has a password")
    people = [
        line for line in root.text("/etc/passwd").splitlines() if 1000 <= int(line.split(":")[2]) < 60000
    ]
    expect(not people, f"accounts of people: {people}")
    expect(not list((root.folder / "etc/ssh").glob("ssh_host_*")), "ssh host keys")
    expect(root.text("/etc/machine-id") == "", "a machine-id")
    for name in (
        "var/lib/systemd/random-seed",
        "root/.ssh/authorized_keys",
        "var/lib/snowberry/key",
        "etc/snowberry/credentials",
    ):
        expect(not (root.folder / name).exists(), f"{name} exists")
    for pattern in ("*.pem", "*.key", "*secret*"):
        found = [each for each in (root.folder / "etc").rglob(pattern) if "ssl/certs" not in str(each)]
        expect(not found, f"{found}")


def owners(root: Root) -> str:
    """Files are root's, or of the few users of the system; none may be written by everybody."""
    set_id, open_to_all, strangers, count = [], [], [], 0
    for line in root.listed():
        entry = re.match(r"([-dlcbps])(\S{9}) (\d+)/(\d+)\s+\d+ \S+ \S+ squashfs-root(\S*)", line)
        if entry is None:
            continue
        count += 1
        kind, mode, user, _group, name = entry.groups()
        if int(user) == 65534:
            strangers.append(name)
        if kind == "-" and re.search("[sS]", mode) and name.rsplit("/", 1)[-1] not in SET_ID:
            set_id.append(name)
        if kind != "l" and mode[7] == "w" and mode[8] not in "tT":
            open_to_all.append(name)
    expect(count > 1000, "the listing was not understood")
    expect(not strangers, f"of nobody: {strangers[:5]}")
    expect(not set_id, f"set-id: {set_id}")
    expect(not open_to_all, f"writable by all: {open_to_all[:5]}")
    return f"{count} entries"


def units(root: Root) -> None:
    """On is what the preset names."""
    listed = run(
        "systemctl", f"--root={root.folder}", "list-unit-files", "--state=enabled", "--no-legend", "--plain"
    ).decode()  # fmt: skip
    on = {line.split()[0] for line in listed.splitlines() if line}
    wants = {each.name for each in (root.folder / "etc/systemd/system").glob("*.wants/*")}
    missing = [unit for unit in ENABLED if unit not in on | wants]
    expect(not missing, f"off: {missing}")
    expect(not [unit for unit in DISABLED if unit in on | wants], f"on: {on & set(DISABLED)}")


def verify(root: Root) -> str:
    """Our units as systemd reads them."""
    ours = sorted(each.name for each in (root.folder / "usr/lib/systemd/system").glob("snowberry*"))
    ours = [name for name in ours if not name.endswith(".d")]
    done = subprocess.run(
        ["systemd-analyze", f"--root={root.folder}", "--man=no", "--recursive-errors=no", "verify", *ours],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = [line for line in done.stderr.splitlines() if "snowberry" in line]
    expect(done.returncode == 0 and not told, "; ".join(told) or done.stderr[-400:])
    return ", ".join(ours)


def appliance(root: Root, image: Image) -> None:
    """What update and first-boot read is of this version, and names the card's slots."""
    text = root.text("/usr/lib/snowberry/appliance.toml")
    for word in (f'version = "{image.version}"', "5b0e2217-02", "5b0e2217-03"):
        expect(word in text, f"lacks {word}")
    keys = [line for line in root.text("/usr/lib/snowberry/release-keys").splitlines() if line]
    expect(keys and all(re.fullmatch(r"[\w.-]+:[A-Za-z0-9+/]{43}=", key) for key in keys), "release-keys")


def packages(root: Root) -> str:
    """A bounded number of packages."""
    count = len(root.text("/usr/share/doc/snowberry/packages").splitlines())
    expect(100 < count < 260, f"{count} packages")
    return f"{count} packages"
