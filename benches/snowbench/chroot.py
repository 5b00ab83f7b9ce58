"""A real Nix of Debian sid in a root folder: what makes the closure, and what copies it.

Each call mounts what it needs in a mount namespace of its own, so that calls side by side, and
other users of the same root folder, do not see each other. Run as a script, this file is the inner
half: it mounts, times one command, and says what it found as JSON in its last line."""

import ctypes
import json
import os
import subprocess
import sys
import time

# From <sys/mount.h>: no other way from the standard library.
MS_BIND, MS_REC, MS_RDONLY, MS_REMOUNT = 4096, 16384, 1, 32
LIBC = ctypes.CDLL(None, use_errno=True)

# A client that hangs is a failed row, not a hung run. The slowest, a cold xz closure over a line of
# 100 Mbit/s, takes 15 s; making the xz cache takes minutes.
CLIENT_SECONDS_MAX = 1800

NIX_CONFIG = """build-users-group =
sandbox = false
substituters =
experimental-features = nix-command
stalled-download-timeout = 30
warn-dirty = false
max-jobs = 2
"""


class Failed(Exception):
    """A command in the root folder ended badly."""


def run(root, script, binds=(), conf="", nice=0):
    """Runs a shell script in the root folder with an empty Nix store in memory.

    `binds` are (folder of the host, place, "ro" or "rw"). Returns the wall and CPU seconds of the
    script itself, without the mounting, and what it printed."""
    task = {"root": root, "script": script, "binds": list(binds), "nice": nice,
            "conf": NIX_CONFIG + conf}
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
         sys.executable, __file__],
        input=json.dumps(task), capture_output=True, text=True, timeout=CLIENT_SECONDS_MAX)
    if done.returncode != 0:
        raise Failed(f"client ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    *printed, figures = done.stdout.rstrip("\n").split("\n")
    return json.loads(figures) | {"printed": printed}


def mount(source, target, kind, flags=0, options=""):
    done = LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode())
    if done != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} at {target}")


def inner():
    task = json.load(sys.stdin)
    root = task["root"]
    mount("proc", root + "/proc", "proc")
    mount("/dev", root + "/dev", "none", MS_BIND | MS_REC)
    for folder in ("/nix", "/root", "/tmp"):
        mount("tmpfs", root + folder, "tmpfs", options="size=75%")
    for source, place, mode in task["binds"]:
        mount(source, root + place, "none", MS_BIND)
        if mode == "ro":
            mount("none", root + place, "none", MS_BIND | MS_REMOUNT | MS_RDONLY)
    env = {"PATH": "/usr/bin:/bin", "HOME": "/root", "NIX_REMOTE": "", "LC_ALL": "C",
           "NIX_CONFIG": task["conf"]}
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.chroot(root)
        os.chdir("/root")
        os.nice(task["nice"])
        os.execve("/bin/sh", ["sh", "-ec", task["script"]], env)
    _, status, used = os.wait4(child, 0)
    wall = time.monotonic() - started
    figures = {"wall_s": wall, "user_s": used.ru_utime, "system_s": used.ru_stime}
    print("\n" + json.dumps(figures))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    inner()
