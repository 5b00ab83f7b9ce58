"""Chooses rows, measures them, prints the table and writes the JSON. Called by `benches/run`, which
sets up packages, binaries and namespaces; see there for the environment."""

import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import chroot
import fixtures
import forwarding
import pushing
import readers
import rows
import servers

# In the order of the table. A group is chosen by the name of any of its rows.
GROUPS = rows.GROUPS | pushing.GROUPS | forwarding.GROUPS

# Above this the figures are noise: two cores that others use as well.
LOAD_MAX = 0.7


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def chosen(names):
    known = [name for group in GROUPS.values() for name in group]
    wrong = [name for name in names if name not in known]
    if wrong:
        sys.exit(f"benches/run: no row {wrong[0]}; there are: {' '.join(known)}")
    return [group for group, held in GROUPS.items()
            if not names or any(name in names for name in held)]


def measure(bench, groups):
    found = []
    for group in groups:
        say(f"{' '.join(GROUPS[group])} ...")
        started = time.monotonic()
        try:
            for row in group(bench):
                say(f"  {row.name}: {row.shown} {row.verdict()}")
                found.append(row)
        except (rows.Failed, servers.Failed, chroot.Failed, readers.Broken, OSError,
                subprocess.SubprocessError) as error:
            say(f"  failed: {error}")
            missing = set(GROUPS[group]) - {row.name for row in found}
            for name in GROUPS[group]:
                if name in missing:
                    found.append(rows.Row(name, "", "", "", None, str(error)[:160],
                                          raw={"error": str(error)}))
        say(f"  {time.monotonic() - started:.0f} s")
    return found


def table(found):
    head = ("row", "what", "rival", "goal", "measured", "verdict")
    lines = [head] + [(row.name, row.what, row.rival, row.goal, row.shown, row.verdict())
                      for row in found]
    widths = [max(len(line[n]) for line in lines if line is head or line[5] != "not shown")
              for n in range(6)]
    for number, line in enumerate(lines):
        if line[5] == "not shown":
            print(f"{line[0]:<{widths[0]}}  not shown: {line[4]}")
        else:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    for what, why in rows.ELSEWHERE:
        print(f"{what}: {why}")
    print("\nraw figures")
    for row in found:
        print(f"  {row.name}: {json.dumps(row.raw)}")


def machine(binary):
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as text:
        for line in text:
            if line.startswith(("model name", "Model")):
                model = line.partition(":")[2].strip()
                break
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(),
            "arch": platform.machine(), "binary_bytes": os.path.getsize(binary),
            "load_before": os.getloadavg()[0]}


def main():
    cache, root = os.environ["BENCH_CACHE"], os.environ["BENCH_ROOT"]
    small = bool(os.environ.get("BENCH_SMALL"))
    groups = chosen(sys.argv[1:])
    # A run that is told to end cleans up as one that ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made = fixtures.obtain(cache, root, "small" if small else "full", say)
    if os.environ.get("BENCH_PREPARE"):
        return say("prepared")
    facts = machine(os.environ["BENCH_BINARY"])
    facts["nix"] = chroot.run(root, "nix --version")["printed"][0]
    facts["closure"] = made["totals"] | {"paths": len(made["closure"])}
    if facts["load_before"] > LOAD_MAX:
        say(f"the machine is busy (load {facts['load_before']:.1f}): only ratios mean anything")
    run = f"{cache}/run"
    shutil.rmtree(run, ignore_errors=True)
    os.makedirs(run)
    bench = rows.Bench(binary=os.environ["BENCH_BINARY"], root=root, run=run, fixtures=made,
                       pairs=int(os.environ.get("BENCH_PAIRS", "1" if small else "3")),
                       small=small, store=os.environ["BENCH_STORE"],
                       rtt_ms=int(os.environ.get("BENCH_RTT_MS", "0")))
    started = time.monotonic()
    try:
        found = measure(bench, groups)
    finally:
        shutil.rmtree(run, ignore_errors=True)
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['arch']}; {facts['nix']}; "
          f"{facts['closure']['paths']} paths, {facts['closure']['nar_bytes'] / 1e6:.0f} MB of NARs, "
          f"{facts['closure']['xz_bytes'] / 1e6:.0f} MB of xz; median of {bench.pairs} pairs; "
          f"{time.monotonic() - started:.0f} s")
    table(found)
    out = os.environ.get("BENCH_JSON") or f"{cache}/results.json"
    with open(out, "w", encoding="ascii") as text:
        json.dump({"at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                   "small": small, "pairs": bench.pairs, "machine": facts,
                   "rows": [vars(row) | {"verdict": row.verdict()} for row in found]},
                  text, indent=1)
    say(f"written to {out}")
    return 1 if any(row.value is None for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
