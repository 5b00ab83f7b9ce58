"""The rows of design 13 that can be measured here, in groups that share their servers.

A group is a generator of rows: it sets up, measures rival and snowberry in turn, and yields what
it found. A ratio is the median of the ratios of the pairs, not the ratio of two medians: what
disturbs the machine for a while disturbs both halves of a pair."""

import contextlib
import dataclasses
import json
import os
import re
import statistics
import subprocess
import time

import chroot
import readers
import servers

MIB = 1 << 20
GIB = 1 << 30


class Failed(Exception):
    """A row cannot be shown, and why."""


@dataclasses.dataclass
class Row:
    """One line of the table. `value` is compared with `bound` when there is one."""
    name: str
    what: str
    rival: str
    goal: str
    value: float | None
    shown: str
    bound: float | None = None
    least: bool = False
    raw: dict = dataclasses.field(default_factory=dict)

    def verdict(self):
        if self.value is None:
            return "not shown"
        if self.bound is None:
            return "-"
        met = self.value >= self.bound if self.least else self.value <= self.bound
        return "pass" if met else "MISS"


@dataclasses.dataclass
class Bench:
    """What every group needs to know."""
    binary: str
    root: str
    run: str
    fixtures: dict
    pairs: int
    small: bool
    store: str
    rtt_ms: int

    @property
    def key(self):
        return self.fixtures["public_key"]

    @property
    def top(self):
        return self.fixtures["top"]

    def cache(self, name):
        return f"{self.fixtures['folder']}/{name}"

    def seconds(self, full, small):
        return small if self.small else full

    def copy(self, address):
        """A real client copies the closure into a fresh store; it checks hashes and signatures."""
        host, port = address
        return chroot.run(self.root, f"nix copy --from http://{host}:{port} {self.top}",
                          conf=f"trusted-public-keys = {self.key}\n")

    def snowberry(self, upstream, fresh=True):
        return servers.snowberry(self.binary, self.run, upstream, self.key, fresh)

    def upstream(self, name):
        return servers.static(self.run, self.cache(name), servers.UPSTREAM, "upstream")


LOCAL_UPSTREAM = f"127.0.0.1:{servers.UPSTREAM}"


def ratio_row(name, what, rival, goal, bound, ours, theirs, **options):
    """A row of pairs of figures."""
    ratios = [a / b for a, b in zip(ours, theirs)]
    value = statistics.median(ratios)
    raw = {"ours": rounded(ours), "rival": rounded(theirs), "ratios": rounded(ratios)}
    raw |= options.pop("raw", {})
    return Row(name, what, rival, goal, value, f"{value:.2f} x", bound, raw=raw, **options)


def rounded(values):
    return [float(f"{value:.4g}") for value in values]


def turns(pairs, *acts):
    """Does all acts in each round, every other round backwards, and returns the figures of each."""
    found = {act: [] for act in acts}
    for number in range(pairs):
        for act in acts if number % 2 == 0 else reversed(acts):
            found[act].append(act())
    return [found[act] for act in acts]


def wall(runs):
    return [run["wall_s"] for run in runs]


def client_cpu(runs):
    return rounded([run["user_s"] + run["system_s"] for run in runs])


def narinfo_field(server, key, name):
    status, _, body = servers.get(server.address, f"/{key}.narinfo")
    if status != 200:
        raise Failed(f"{server.name}: narinfo of {key}: {status}")
    found = re.search(rf"(?m)^{name}: (.*)$", body.decode())
    if not found:
        raise Failed(f"{server.name}: narinfo of {key} has no {name}")
    return found[1]


def nar_url(server, key):
    return "/" + narinfo_field(server, key, "URL")


def fill(server, keys):
    """Has these paths fetched, one after the other."""
    for key in keys:
        readers.read(server.address, nar_url(server, key))


# --- a real client and a closure


def warm(bench):
    """The closure held by all three; the client copies it from each in turn."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(bench.upstream("xz"))
        static = stack.enter_context(
            servers.static(bench.run, bench.cache("zst"), servers.STATIC))
        proxy = stack.enter_context(servers.proxy(bench.run, LOCAL_UPSTREAM))
        ours = stack.enter_context(bench.snowberry(LOCAL_UPSTREAM))
        bench.copy(ours.address)
        bench.copy(proxy.address)
        ours.await_quiet()
        mine, zst, xz = turns(bench.pairs, lambda: bench.copy(ours.address),
                              lambda: bench.copy(static.address),
                              lambda: bench.copy(proxy.address))
    yield ratio_row("warm", "warm closure, real client, wall", "nginx, static zstd", "<= 1.1 x",
                    1.1, wall(mine), wall(zst),
                    raw={"client_cpu_s": client_cpu(mine), "rival_client_cpu_s": client_cpu(zst)})
    yield ratio_row("warm-proxy", "the same", "nginx proxy_cache, xz upstream", "<= 0.30 x",
                    0.30, wall(mine), wall(xz),
                    # What no cache that serves zstd can be better than, with this closure.
                    raw={"rival_client_cpu_s": client_cpu(xz), "static_zstd_over_rival":
                         rounded([a / b for a, b in zip(wall(zst), wall(xz))])})


def line(bench):
    """All of the closure missed, over a line of 100 Mbit/s."""
    with servers.line(bench.run, bench.cache("xz"), 100, bench.rtt_ms) as far:
        host, port = far.split(":")

        def ours():
            with bench.snowberry(far) as server:
                return bench.copy(server.address)

        mine, direct = turns(bench.pairs, ours, lambda: bench.copy((host, int(port))))
    yield ratio_row("line", "cold closure over 100 Mbit/s, wall", "client on the xz upstream",
                    "<= 1.05 x", 1.05, wall(mine), wall(direct), raw={"rtt_ms": bench.rtt_ms})


def cold(bench):
    """All of the closure missed over an unlimited line, then had again by a second machine."""
    with bench.upstream("xz") as upstream:

        def both(server):
            return bench.copy(server.address), bench.copy(server.address)

        def ours():
            with bench.snowberry(LOCAL_UPSTREAM) as server:
                return both(server)

        def nginx():
            with servers.proxy(bench.run, LOCAL_UPSTREAM) as server:
                return both(server)

        mine, direct, theirs = turns(bench.pairs, ours, lambda: bench.copy(upstream.address), nginx)
    first, second = ([run[n] for run in mine] for n in (0, 1))
    their_first, their_second = ([run[n] for run in theirs] for n in (0, 1))
    yield ratio_row("cold", "cold closure, unlimited line, wall", "client on the xz upstream",
                    "<= 1.8 x", 1.8, wall(first), wall(direct),
                    raw={"proxy_cache_cold_s": rounded(wall(their_first))})
    sums = [[a + b for a, b in zip(wall(one), wall(two))]
            for one, two in ((first, second), (their_first, their_second))]
    yield ratio_row("house", "a house of two: cold + warm, wall", "nginx proxy_cache, cold + warm",
                    "<= 0.9 x", 0.9, *sums,
                    raw={"warm_s": rounded(wall(second)),
                         "rival_warm_s": rounded(wall(their_second))})


# --- single answers


# Enough for a median and a worst case, few enough to take seconds.
FIRST_BYTES_MAX = 40


def first_byte(bench):
    """NARs of all sizes, each missed once, beside the upstream's own first byte."""
    sizes = bench.fixtures["closure"]
    by_size = sorted(sizes, key=lambda key: sizes[key]["nar_bytes"])
    sample = by_size[::max(1, -(-len(by_size) // FIRST_BYTES_MAX))]
    with bench.upstream("xz") as upstream, bench.snowberry(LOCAL_UPSTREAM) as ours:
        extra_ms = []
        for key in sample:
            theirs = readers.first_byte(upstream.address, nar_url(upstream, key))
            mine = readers.first_byte(ours.address, nar_url(ours, key))
            extra_ms.append(1000 * (mine - theirs))
    worst = max(extra_ms)
    middle = statistics.median(extra_ms)
    yield Row("first-byte", "first byte of a missed NAR", "the upstream's own", "+ 20 ms", middle,
              f"+ {middle:.1f} ms (worst {worst:.1f})", 20.0,
              raw={"extra_ms": rounded(extra_ms), "worst_ms": worst, "nars": len(sample)})


def stored(bench):
    """Everything is held, byte for byte as the zstd upstream has it: nginx serves the same files."""
    big = bench.fixtures["big"]
    with bench.upstream("zst") as theirs, bench.snowberry(LOCAL_UPSTREAM) as ours:
        fill(ours, [*bench.fixtures["closure"], big])
        ours.await_quiet()
        url, their_url = nar_url(ours, big), nar_url(theirs, big)
        same = narinfo_field(ours, big, "FileHash") == narinfo_field(theirs, big, "FileHash")
        yield from big_nar(bench, ours, url, theirs, their_url, same)
        yield from narinfo_rate(bench, ours, theirs)
        yield from narinfo_beside_readers(bench, ours, url, theirs, their_url)
        yield page(bench, ours)


def page(bench, ours):
    """The page, one connection each: what a browser that reloads costs. Reading it writes nothing."""
    count = bench.seconds(400, 50)
    length = len(servers.get(ours.address, "/")[2])
    before_s, before = ours.cpu_s(), ours.written_bytes()
    started = time.monotonic()
    for _ in range(count):
        status, _, body = servers.get(ours.address, "/")
        if status != 200 or not body.endswith(b"</html>"):
            raise Failed(f"the page answered {status}")
    wall_s = time.monotonic() - started
    cpu_ms = 1000 * (ours.cpu_s() - before_s) / count
    return Row("page", "CPU for one view of the page", "", "-", cpu_ms, f"{cpu_ms:.2f} ms",
               raw={"pages_a_second": round(count / wall_s), "page_bytes": length,
                    "written": ours.written_bytes() - before})


def big_nar(bench, ours, url, theirs, their_url, same):
    # One pass each for the page cache.
    readers.read(theirs.address, their_url)
    readers.read(ours.address, url)
    mine, nginx = turns(bench.pairs * 3, lambda: readers.speed(ours.address, url) / 1e6,
                        lambda: readers.speed(theirs.address, their_url) / 1e6)
    yield ratio_row("big", "one big stored NAR, bytes/s, loopback", "nginx, sendfile", ">= 0.9 x",
                    0.9, mine, nginx, least=True, raw={"unit": "MB/s", "same_file": same})


def wrk(bench, server, connections, seconds, one=False):
    """Requests a second and the median latency in ms of the closure's narinfos (or of one)."""
    paths = f"{bench.run}/narinfo-paths"
    with open(paths, "w", encoding="ascii") as out:
        out.writelines(f"/{key}.narinfo\n" for key in bench.fixtures["closure"])
    host, port = server.address
    script = os.path.join(os.path.dirname(__file__), "paths.lua")
    key = next(iter(bench.fixtures["closure"]))
    target = [f"http://{host}:{port}/{key}.narinfo"] if one else \
        ["-s", script, f"http://{host}:{port}"]
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *target],
        capture_output=True, text=True, env=dict(os.environ, BENCH_PATHS=paths),
        timeout=seconds + 30, check=True)
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    median = re.search(r"\s50%\s+([0-9.]+)(us|ms|s)\b", done.stdout)
    bad = re.search(r"(Non-2xx or 3xx responses: .*|Socket errors: .*)", done.stdout)
    if not rate or not median or bad:
        raise Failed(f"wrk on {server.name}: {bad[1] if bad else done.stdout}")
    return float(rate[1]), float(median[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[median[2]]


def narinfo_rate(bench, ours, theirs):
    seconds = bench.seconds(5, 1)
    wrk(bench, ours, 16, 1)
    wrk(bench, theirs, 16, 1)
    mine, nginx = turns(bench.pairs, lambda: wrk(bench, ours, 16, seconds)[0],
                        lambda: wrk(bench, theirs, 16, seconds)[0])
    yield ratio_row("narinfo", "narinfo hits/s, 16 connections", "nginx, the same files",
                    ">= 1.2 x", 1.2, mine, nginx, least=True,
                    # Without the script that picks the paths: shows whether wrk is the limit.
                    raw={"unit": "requests/s", "one_path":
                         rounded([wrk(bench, server, 16, seconds, one=True)[0]
                                  for server in (ours, theirs)])})


def narinfo_beside_readers(bench, ours, url, theirs, their_url):
    """Four connections ask for narinfos while four readers take the big NAR as fast as they can."""
    seconds = bench.seconds(5, 1)
    speeds = {ours: [], theirs: []}

    def beside(server, path):
        started = time.monotonic()
        with readers.Crowd(server.address, path, 4) as crowd:
            time.sleep(bench.seconds(1, 0.2))
            rate, p50_ms = wrk(bench, server, 4, seconds)
        took = time.monotonic() - started
        if crowd.broken.value:
            raise Failed(f"{server.name}: {crowd.broken.value} NARs were cut")
        speeds[server].append((crowd.bytes.value / took / 1e6, rate))
        return p50_ms

    mine, nginx = turns(bench.pairs, lambda: beside(ours, url), lambda: beside(theirs, their_url))
    raw = {"unit": "p50 ms"}
    for name, server in (("ours", ours), ("rival", theirs)):
        raw[f"{name}_readers_mb_s"] = rounded([one[0] for one in speeds[server]])
        raw[f"{name}_narinfos_s"] = rounded([one[1] for one in speeds[server]])
    yield ratio_row("latency", "narinfo p50 beside four NAR readers", "nginx, likewise", "<= 2 x",
                    2.0, mine, nginx, raw=raw)


# --- memory


def check_same(found, what):
    """All readers got a whole body of one length."""
    if len(set(found)) != 1 or not isinstance(found[0], int):
        raise Failed(f"{what}: not all readers got the same: {sorted(set(map(str, found)))[:4]}")


READERS = 25
# As slow as a client that unpacks to an SD card, begun one after the other, so that each reads
# another place.
SLOW_BYTES_S = 20e6
SLOW_STAGGER_S = 0.2


def peak(bench):
    """25 clients, one NAR of 1 GiB: missed, held, and held with clients at differing places."""
    big, little = bench.fixtures["big"], bench.fixtures["many"][0]
    peaks = {}
    with bench.upstream("xz"):
        for name, key in (("cold_little", little), ("cold", big)):
            with bench.snowberry(LOCAL_UPSTREAM) as ours:
                url = nar_url(ours, key)
                check_same(readers.together(ours.address, [url] * READERS), name)
                peaks[name] = ours.peak_bytes()
        with bench.snowberry(LOCAL_UPSTREAM, fresh=False) as ours:
            check_same(readers.together(ours.address, [url] * READERS), "warm")
            peaks["warm"] = ours.peak_bytes()
        with bench.snowberry(LOCAL_UPSTREAM, fresh=False) as ours:
            check_same(readers.together(ours.address, [url] * READERS, SLOW_BYTES_S,
                                        SLOW_STAGGER_S), "warm, slow")
            peaks["warm_slow"] = ours.peak_bytes()
    raw = {f"{name}_mib": round(value / MIB, 1) for name, value in peaks.items()}
    worst = max(peaks.values()) / MIB
    yield Row("peak", f"peak memory, 25 clients on one {gib(bench, big)} NAR, cold and warm", "",
              "<= 48 MiB", worst, f"{worst:.1f} MiB", 48.0, raw=raw)


def gib(bench, key):
    with open(bench.cache("xz") + f"/{key}.narinfo", encoding="ascii") as text:
        size = int(re.search(r"(?m)^NarSize: (\d+)", text.read())[1])
    return f"{size / GIB:.2g} GiB"


def peak_many(bench):
    """25 clients miss 25 different xz NARs at once."""
    with bench.upstream("xz"), bench.snowberry(LOCAL_UPSTREAM) as ours:
        urls = [nar_url(ours, key) for key in bench.fixtures["many"]]
        started = time.monotonic()
        found = readers.together(ours.address, urls)
        took = time.monotonic() - started
        bad = [one for one in found if not isinstance(one, int)]
        value = ours.peak_bytes() / MIB
    if bad:
        raise Failed(f"{len(bad)} of {len(urls)} NARs were not had: {bad[0]}")
    yield Row("peak-many", "peak memory, 25 different xz NARs missed at once", "", "<= 96 MiB",
              value, f"{value:.1f} MiB", 96.0, raw={"wall_s": round(took, 2)})


# --- what a closure costs


def cost(bench):
    """One life: a closure missed, then served some times, then a long silence."""
    nar_bytes = bench.fixtures["totals"]["nar_bytes"]
    with bench.upstream("xz"), bench.snowberry(LOCAL_UPSTREAM) as ours:
        started_cpu_s, started_bytes = ours.cpu_s(), ours.written_bytes()
        missed = bench.copy(ours.address)
        cpu = (ours.cpu_s() - started_cpu_s) / (nar_bytes / GIB)
        # Longer than any group of commits waits when all is quiet.
        ours.await_quiet(seconds=bench.seconds(20, 2))
        written = ours.written_bytes() - started_bytes
        cached = sum(int(narinfo_field(ours, key, "FileSize"))
                     for key in bench.fixtures["closure"])
        yield Row("cpu", "CPU-seconds for a GiB of NAR missed (xz)", "", "-", cpu, f"{cpu:.1f} s",
                  raw={"nar_mib": round(nar_bytes / MIB), "wall_s": round(missed["wall_s"], 2)})
        value = written / cached
        yield Row("disk-cached", "bytes written a byte cached", "", "<= 1.1", value,
                  f"{value:.3f}", 1.1, raw={"written": written, "cached": cached})
        before = ours.written_bytes()
        for _ in range(bench.pairs):
            bench.copy(ours.address)
        silence = bench.seconds(90, 5)
        time.sleep(silence)
        memory = ours.resident_bytes() / MIB
        detail = {name: round(ours.figure("status", name) / 1024, 1)
                  for name in ("RssAnon", "RssFile", "VmHWM")}
        value = (ours.written_bytes() - before) / (bench.pairs * cached)
        yield Row("disk-served", "bytes written a byte served", "", "0", value, f"{value:.4f}",
                  # A batch of last uses is not written on account of a hit, but it is written.
                  0.0005, raw={"written": ours.written_bytes() - before,
                               "served": bench.pairs * cached})
        yield Row("idle", f"memory {silence} s after the last request", "", "<= 20 MiB", memory,
                  f"{memory:.1f} MiB", 20.0, raw={f"{k}_mib": v for k, v in detail.items()})
        before = ours.written_bytes()
        seconds = bench.seconds(60, 3)
        time.sleep(seconds)
        value = (ours.written_bytes() - before) * 86400 / seconds
        yield Row("at-rest", "bytes written a day at rest", "", "0", value, f"{value:.0f}", 0.0,
                  raw={"sample_s": seconds})


# --- after a crash


def crash(bench):
    """`kill -9` while a NAR is being fetched, then a start without any upstream: from the start of
    the process to the first narinfo that only the store can have answered."""
    key = next(iter(bench.fixtures["closure"]))
    big = bench.fixtures["big"]
    opened, torn = [], []
    with bench.upstream("xz"):
        with bench.snowberry(LOCAL_UPSTREAM) as ours:
            fill(ours, [*bench.fixtures["closure"], big])
            ours.await_quiet(seconds=bench.seconds(20, 2))
            held = {one: nar_url(ours, one) for one in [*bench.fixtures["closure"], big]}
        used = folder_bytes(f"{bench.run}/snowberry")
        for number in range(bench.pairs):
            kill_in_a_fill(bench, bench.fixtures["many"][number % len(bench.fixtures["many"])])
            server = servers.start_snowberry(bench.binary, bench.run,
                                             f"127.0.0.1:{servers.DEAD}", bench.key)
            try:
                opened.append(server.await_answer(f"/{key}.narinfo"))
                if number == bench.pairs - 1:
                    torn = [one for one, url in held.items() if not is_whole(server, url)]
            finally:
                server.stop()
    value = statistics.median(opened)
    size = f"{used / GIB:.2f} GiB"
    if torn:
        raise Failed(f"{len(torn)} of {len(held)} NARs held before the crash are not had after it")
    yield Row("crash", f"open after kill -9, {size} on disk", "", "< 1 s", value,
              f"{1000 * value:.0f} ms", 1.0,
              raw={"opened_ms": rounded([1000 * one for one in opened]),
                   "nars_whole": len(held)})


def kill_in_a_fill(bench, key):
    server = servers.start_snowberry(bench.binary, bench.run, LOCAL_UPSTREAM, bench.key)
    try:
        server.await_answer("/nix-cache-info")
        link, _, _ = readers.ask(server.address, nar_url(server, key))
        time.sleep(0.1)
        server.kill()
        link.close()
    finally:
        server.stop()


def is_whole(server, url):
    try:
        readers.read(server.address, url)
        return True
    except (OSError, readers.Broken):
        return False


def folder_bytes(folder):
    return sum(os.lstat(f"{place}/{name}").st_blocks * 512
               for place, _, files in os.walk(folder) for name in files)


# --- the store alone, in a process of its own


# Loading 200 GiB takes minutes; a store that is so slow that it takes this long has failed.
STORE_SECONDS_MAX = 1500


def store_bench(bench, name, *arguments):
    """Runs one of the store's own benches and returns what its last line says."""
    program = f"{bench.store}/{name}"
    if not os.path.exists(program):
        raise Failed(f"benches/{name} was not built")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True,
                          timeout=STORE_SECONDS_MAX)
    if done.returncode != 0:
        raise Failed(f"{name} {arguments}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.strip().split("\n")[-1])


def held(bench):
    """Stores with 1, 64 and 200 GiB, crashed and opened again, on a disk in memory."""
    sizes = (1, 2) if bench.small else (1, 64, 200)
    found = {size: store_bench(bench, "held", size) for size in sizes}
    worst = max(one["first_ms"] for one in found.values())
    shown = " and ".join(f"{found[size]['first_ms']:.0f} ms" for size in sizes)
    at = "the store alone, " + ", ".join(map(str, sizes)) + " GiB"
    raw = {f"{size}_gib": found[size] for size in sizes}
    yield Row("crash-200", f"open after a crash, {at}", "", "< 1 s", worst / 1000, shown, 1.0,
              raw=raw)
    for name, what, bound in (("small-push", "bytes of one small path acknowledged", 0.3),
                              ("evict", "bytes of one eviction of 8 MiB", None)):
        key = "push_bytes" if name == "small-push" else "evict_bytes"
        mib = [found[size][key] / 2**20 for size in sizes]
        shown = " / ".join(f"{one:.2f}" for one in mib) + " MiB"
        yield Row(name, f"{what}, {at}", "", "<= 0.3 MiB" if bound else "", max(mib), shown, bound)
    small, *_, large = (found[size]["push_ms"] for size in sizes)
    yield Row("acknowledge", f"one small path acknowledged, {at}", "the smallest", "", large / small,
              " / ".join(f"{found[size]['push_ms']:.1f}" for size in sizes) + " ms")


def million(bench):
    """The store's own lookup: no HTTP and no cache of ready answers."""
    many = 20_000 if bench.small else 1_000_000
    counts = (1000, many)
    found = {count: [] for count in counts}
    for number in range(bench.pairs):
        for count in counts if number % 2 == 0 else reversed(counts):
            # The folder of the first run serves the others.
            found[count].append(store_bench(bench, "narinfos", f"{bench.run}/narinfos-{count}",
                                            count))
    mine, few = ([one["p50_ns"] / 1000 for one in found[count]] for count in (many, 1000))
    yield ratio_row("million", f"narinfo lookup with {many} narinfos", "the same with 1000",
                    "<= 2 x", 2.0, mine, few,
                    raw={"unit": "us, median", "many": found[many][0], "few": found[1000][0]})


# In the order of design 13. A group is chosen by the name of any of its rows.
GROUPS = {
    warm: ("warm", "warm-proxy"),
    line: ("line",),
    cold: ("cold", "house"),
    first_byte: ("first-byte",),
    stored: ("big", "narinfo", "latency", "page"),
    peak: ("peak",),
    peak_many: ("peak-many",),
    cost: ("cpu", "disk-cached", "disk-served", "idle", "at-rest"),
    crash: ("crash",),
    held: ("crash-200", "small-push", "evict", "acknowledge"),
    million: ("million",),
}

# Rows of design 13 that no run of this script can show, and where they are shown.
ELSEWHERE = [
    ("plug pulled during fills, torn NARs", "shown by tests, not here"),
    ("upstream faults, 28 kinds", "shown by tests, not here"),
    ("binary, aarch64", "not shown: no aarch64 build here"),
]
