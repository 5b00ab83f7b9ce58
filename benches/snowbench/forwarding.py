"""The rows of the forwarder: what it costs with nobody there, what it adds to a closure, and what it
holds in memory. The rival is the same client without it."""

import contextlib
import statistics
import time

import chroot
import readers
import servers
from rows import LOCAL_UPSTREAM, MIB, Failed, Row, fill, nar_url, ratio_row, rounded, turns, wall

FORWARD = 8501

# Enough for a median that a scheduler's pause does not move.
ABSENT_MAX = 500

# As many as the goal names.
NARS = 200


@contextlib.contextmanager
def forward(bench, cache):
    """`snowberry forward` to one cache, known by its address."""
    with open(f"{bench.run}/forward.toml", "w", encoding="ascii") as out:
        out.write(f'[forward]\nlisten = ["127.0.0.1:{FORWARD}"]\ncache = "http://{cache}"\n'
                  f'joined-file = "{bench.run}/joined.toml"\n'
                  f'[spool]\npath = "{bench.run}/spool"\n')
    server = servers.Server("forward", [bench.binary, "forward", "--config",
                                        f"{bench.run}/forward.toml"],
                            bench.run, ("127.0.0.1", FORWARD))
    try:
        server.await_answer("/nix-cache-info")
        yield server
    finally:
        server.stop()


def realise(bench, *substituters):
    """A real client has the closure from the first of these that has it."""
    urls = " ".join(f"http://127.0.0.1:{port}" for port in substituters)
    return chroot.run(bench.root, f"nix-store --realise {bench.top}",
                      conf=f"trusted-public-keys = {bench.key}\nsubstituters = {urls}\n")


def absent_ms(server):
    """How long one 404 takes, each over a connection of its own."""
    found = []
    for number in range(ABSENT_MAX):
        started = time.monotonic()
        status, _, _ = servers.get(server.address, f"/{number:032d}.narinfo")
        found.append(1000 * (time.monotonic() - started))
        if status != 404:
            raise Failed(f"{server.name} answers {status} with nobody there")
    return found


def away(bench):
    """Nobody is there: the client asks the forwarder first for each path, and its upstream then."""
    with bench.upstream("xz") as upstream, forward(bench, f"127.0.0.1:{servers.DEAD}") as ours:
        found = absent_ms(ours)
        with_it, without = turns(bench.pairs, lambda: realise(bench, FORWARD, servers.UPSTREAM),
                                 lambda: realise(bench, servers.UPSTREAM))
        del upstream
    yield ratio_row("forward-away", "a closure from upstream, forwarder first and nobody there",
                    "the same without forwarder", "<= 1.05 x", 1.05, wall(with_it), wall(without),
                    raw={"absent_p50_ms": rounded([statistics.median(found)])[0],
                         "absent_worst_ms": rounded([max(found)])[0]})


def through(bench):
    """A warm closure through the forwarder and directly, and then what the forwarder holds."""
    keys = list(bench.fixtures["closure"])
    with bench.upstream("xz"), bench.snowberry(LOCAL_UPSTREAM) as cache:
        fill(cache, keys)
        cache.await_quiet()
        host, port = cache.address
        with forward(bench, f"{host}:{port}") as ours:
            # Its first probe is over before the first copy is timed.
            time.sleep(1)
            mine, direct = turns(bench.pairs, lambda: bench.copy(ours.address),
                                 lambda: bench.copy(cache.address))
        yield ratio_row("forward-closure", "warm closure through the forwarder, wall",
                        "directly from the cache", "<= 1.05 x", 1.05, wall(mine), wall(direct))
        with forward(bench, f"{host}:{port}") as ours:
            time.sleep(1)
            urls = [nar_url(ours, key) for key in keys]
            for number in range(NARS):
                readers.read(ours.address, urls[number % len(urls)])
            one = ours.resident_bytes() / MIB
            readers.together(ours.address, urls[:16])
            many = ours.resident_bytes() / MIB
            detail = {name: round(ours.figure("status", name) / 1024, 1)
                      for name in ("RssAnon", "RssFile", "VmHWM")}
        yield Row("forward-memory", f"forwarder's memory after {NARS} NARs", "", "<= 10 MiB", one,
                  f"{one:.1f} MiB", 10.0,
                  raw={"after_16_at_once_mib": round(many, 1)} | {f"{k}_mib": v
                                                                  for k, v in detail.items()})


GROUPS = {
    away: ("forward-away",),
    through: ("forward-closure", "forward-memory"),
}
