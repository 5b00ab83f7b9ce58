"""The real parts that the house has besides the cache: a MinIO, a Nix client. They are those of the
project's other tests (tests/parts), in the same cache folder.
"""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from harness.machine import free_port, wait_for

from .kit import Image, Skipped, expect

ADMIN = ("ADMINKEY", "adminsecret0123456789")
# One command of a Nix client, with a cache behind it that is emulated.
NIX_WAIT_S = 600


def cache_folder(image: Image) -> Path:
    """Where tests/parts keeps the parts."""
    return Path(os.environ.get("SNOWBERRY_TEST_CACHE", image.top / "tests/.cache"))


def part(image: Image, name: str) -> Path:
    """A part, if it was fetched."""
    path = cache_folder(image) / name
    if not path.exists():
        raise Skipped(f"tests/parts has not made {name}")
    return path


class Closure:
    """The project's closure of about a hundred paths, as a signed binary cache in a folder."""

    def __init__(self, image: Image) -> None:
        folder = part(image, "closure")
        self.binary_cache = folder / "zstd"
        self.key = (folder / "key.public").read_text().strip()
        self.top = (folder / "top").read_text().strip()
        self.paths = (folder / "paths").read_text().split()
        self.dump = folder / "dump"


def hash_part(path: str) -> str:
    """The hash of a store path."""
    return path.removeprefix("/nix/store/").split("-", 1)[0]


def nix32(digest: bytes) -> str:
    """A hash as Nix writes it: base 32 without e, o, t and u, the last bits first."""
    letters = "0123456789abcdfghijklmnpqrsvwxyz"
    number = int.from_bytes(digest, "little")
    length = (len(digest) * 8 + 4) // 5
    return "".join(letters[number >> 5 * place & 31] for place in reversed(range(length)))


class Minio:
    """A MinIO on this host's loopback with a bucket `nix-cache`. The machine sees it at 10.0.2.2."""

    def __init__(self, image: Image) -> None:
        self._mc = part(image, "minio/mc")
        self._folder = TemporaryDirectory(prefix="snowberry-minio.")
        self.port = free_port()
        home = self._folder.name
        self._environment = {
            "HOME": home, "PATH": os.environ["PATH"], "MINIO_ROOT_USER": ADMIN[0],
            "MINIO_ROOT_PASSWORD": ADMIN[1], "MINIO_BROWSER": "off", "MINIO_UPDATE": "off",
            "GOMEMLIMIT": "512MiB",
            "MC_HOST_s3": f"http://{ADMIN[0]}:{ADMIN[1]}@127.0.0.1:{self.port}",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [
                str(part(image, "minio/minio")), "server", "--quiet",
                "--address", f"127.0.0.1:{self.port}", f"{home}/data",
            ],
            env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for("MinIO", 60, lambda: True if self._try("mb", "--ignore-existing", "s3/nix-cache") else None)
        self._try("anonymous", "set", "download", "s3/nix-cache")

    def _try(self, *arguments: str) -> bool:
        command = [str(self._mc), "--quiet", *arguments]
        return (
            subprocess.run(command, env=self._environment, capture_output=True, check=False).returncode == 0
        )

    def fill(self, folder: Path) -> None:
        """Uploads a binary cache."""
        expect(self._try("mirror", str(folder), "s3/nix-cache"), "mc could not fill the bucket")

    def holds(self, name: str) -> bool:
        """Whether the bucket has an object of that name."""
        return self._try("stat", f"s3/nix-cache/{name}")

    @property
    def url(self) -> str:
        """As the machine writes it."""
        return f"s3://nix-cache?scheme=http&endpoint=10.0.2.2:{self.port}&profile=nixbuilder"

    @property
    def credentials(self) -> str:
        """The credentials file for it."""
        return f"[nixbuilder]\naws_access_key_id = {ADMIN[0]}\naws_secret_access_key = {ADMIN[1]}\n"

    def __enter__(self) -> "Minio":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


class Nix:
    """A real Nix with a store of its own, that trusts one key and asks one substituter."""

    def __init__(self, image: Image, substituter: str, key: str) -> None:
        part(image, "nix-trixie")
        self._enter = image.top / "tests/parts/enter"
        self._folder = TemporaryDirectory(prefix="snowberry-nix.")
        self._environment = os.environ | {
            "SNOWBERRY_TEST_CACHE": str(cache_folder(image)),
            "NIX_CONFIG": f"substituters = {substituter}\ntrusted-public-keys = {key}\n"
            "require-sigs = true\nmax-jobs = 1\n",
        }

    @property
    def folder(self) -> Path:
        """What the commands see as /world."""
        return Path(self._folder.name)

    def run(self, script: str) -> str:
        """The output of a script that must succeed."""
        command = [
            str(self._enter),
            "trixie",
            self._folder.name,
            "/bin/bash",
            "-euo",
            "pipefail",
            "-c",
            script,
        ]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=NIX_WAIT_S, check=False
        )  # fmt: skip
        expect(done.returncode == 0, f"{script}: {done.stderr[-600:]}")
        return done.stdout

    def close(self) -> None:
        """Takes its store away; Nix leaves it read-only."""
        subprocess.run(["chmod", "-R", "u+w", self._folder.name], check=False)
        shutil.rmtree(self._folder.name, ignore_errors=True)
        self._folder.cleanup()
