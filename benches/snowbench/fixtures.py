"""What is measured with: a closure of real files, one big NAR, many middling ones.

Two caches in files come of it, as `nix copy --to file://...` writes them: `xz` (Nix's default, what
cache.nixos.org serves) and `zst`. They are made once and kept, for xz takes minutes."""

import hashlib
import json
import math
import os
import random
import re
import shutil
import stat
import subprocess
import time

import chroot

MIB = 1 << 20

# Changes when what is made changes: an older folder is then made anew.
RECIPE = "4"

SIZES = {
    # The closure's paths and bytes follow the one that design 13's right column was measured with.
    "full": {"paths": 210, "bytes": 690 * MIB, "path_max": 110 * MIB,
             "big": 1024 * MIB, "many": 25, "many_each": 24 * MIB},
    "small": {"paths": 24, "bytes": 16 * MIB, "path_max": 5 * MIB,
              "big": 32 * MIB, "many": 25, "many_each": 1 * MIB},
}

# A small preset, for a gigabyte is to be made in a minute, but the dictionary of Nix's own default:
# the memory that a decoder takes is what the rows with these NARs look at.
XZ = ["xz", "--threads=1", "--check=crc64", "--lzma2=preset=0,dict=8MiB"]


def obtain(cache, root, size, say):
    """The fixtures of this size, made unless they are there. Returns what `meta.json` says."""
    folder = f"{cache}/fixtures-{size}-{RECIPE}"
    meta = f"{folder}/meta.json"
    if not os.path.exists(meta):
        making = folder + ".making"
        shutil.rmtree(making, ignore_errors=True)
        os.makedirs(making)
        started = time.monotonic()
        made = make(making, root, SIZES[size], say)
        with open(f"{making}/meta.json", "w", encoding="ascii") as out:
            json.dump(made, out, indent=1)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(making, folder)
        say(f"fixtures made in {time.monotonic() - started:.0f} s")
    with open(meta, encoding="ascii") as text:
        return json.load(text) | {"folder": folder}


def make(folder, root, size, say):
    say("fixtures: choosing some hundred folders and files below /usr")
    parts = choose(size)
    os.makedirs(f"{folder}/src")
    with open(f"{folder}/src/closure.nix", "w", encoding="ascii") as out:
        out.write(expression(parts))
    write_mixed(f"{folder}/src/big", size["big"], 0)
    for number in range(size["many"]):
        write_mixed(f"{folder}/src/many-{number}", size["many_each"], number + 1)
    say("fixtures: building the closure, compressing it twice (minutes, at nice 19)")
    made = chroot.run(root, BUILD, nice=19,
                      binds=[("/usr", "/world", "ro"), (folder, "/mnt", "rw")])
    top, big, *many = [line for line in made["printed"] if line.startswith("/nix/store/")]
    say("fixtures: compressing the big NARs")
    for path in (big, *many):
        compress(folder, hash_part(path))
    shutil.rmtree(f"{folder}/src")
    shutil.rmtree(f"{folder}/none")
    with open(f"{folder}/public-key", encoding="ascii") as text:
        key = text.read().strip()
    os.remove(f"{folder}/secret-key")
    return {"public_key": key, "top": top, "big": hash_part(big),
            "many": [hash_part(path) for path in many], **weigh(folder, top)}


def hash_part(path):
    return os.path.basename(path)[:32]


# Everything in the root folder in one go, since its store is gone afterwards. The closure's NARs
# are compressed by Nix itself; the others are only signed by it, and compressed by us.
BUILD = """
cd /mnt
nix-store --generate-binary-cache-key bench-1 secret-key public-key
top=$(nix-build --no-out-link --quiet src/closure.nix 2>/mnt/build.log)
echo $top
nix copy --to "file:///mnt/xz?compression=xz&secret-key=/mnt/secret-key" $top
nix copy --to "file:///mnt/zst?compression=zstd&secret-key=/mnt/secret-key" $top
for file in src/big $(ls src/many-* | sort -V); do
  path=$(nix-store --add $file)
  echo $path
  nix copy --to "file:///mnt/none?compression=none&secret-key=/mnt/secret-key" $path
done
"""


def choose(size):
    """Folders and files of /usr whose sizes are spread as those of a NixOS closure are: most small,
    a few very big. Log-normal, with a standard deviation of 2 (in natural logarithms)."""
    candidates = list(gather())
    raw = [math.exp(2.0 * normal_quantile((n + 0.5) / size["paths"])) for n in range(size["paths"])]
    raw.sort(reverse=True)
    scale = size["bytes"] / sum(raw)
    # What the cap takes from the biggest, the others get.
    for _ in range(20):
        capped = [min(size["path_max"], one * scale) for one in raw]
        scale *= size["bytes"] / sum(capped)
    chosen = []
    for target in capped:
        free = [c for c in candidates if not any(overlap(c[1], other) for _, other in chosen)]
        if not free:
            break
        chosen.append(min(free, key=lambda c: abs(math.log(c[0] / target))))
    return [path for _, path in chosen]


def normal_quantile(p):
    """The inverse of the normal distribution, by bisection over math.erf."""
    low, high = -6.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < p:
            low = middle
        else:
            high = middle
    return low


def overlap(a, b):
    return a == b or a.startswith(b + "/") or b.startswith(a + "/")


def gather():
    """Everything two and three levels below /usr, with its bytes; sorted, so that the same machine
    chooses the same."""
    for first in sorted(os.listdir("/usr")):
        for path in sorted(entries(f"/usr/{first}")):
            yield from weighed(path)
            for inner in sorted(entries(path)):
                yield from weighed(inner)


def entries(folder):
    if os.path.islink(folder) or not os.path.isdir(folder):
        return []
    return [f"{folder}/{name}" for name in os.listdir(folder)]


def weighed(path):
    total = 0
    for place, folders, files in os.walk(path):
        for name in folders + files:
            at = os.lstat(f"{place}/{name}")
            if stat.S_ISREG(at.st_mode):
                total += at.st_size
    here = os.lstat(path)
    if stat.S_ISREG(here.st_mode):
        total = here.st_size
    if total >= 1024:
        yield total, path


def expression(parts):
    """The closure as derivations that copy their part. Each refers to a few earlier ones, most to
    the first, as a libc is referred to; the top refers to whatever nobody else does."""
    dice = random.Random(1)
    order = list(parts)
    dice.shuffle(order)
    lines = ["let", f"  part = name: source: refs: derivation {{ inherit name; {FIXED}",
             "    inherit source; refs = map (r: \"${r}\") refs; };"]
    unused = set()
    for number, source in enumerate(order):
        refs = {dice.randrange(max(0, number - 40), number) for _ in range(dice.randrange(5))} \
            if number else set()
        if number and dice.random() < 0.7:
            refs.add(0)
        unused -= refs
        unused.add(number)
        name = re.sub(r"[^0-9A-Za-z+._-]", "-", os.path.basename(source)).lstrip(".")[:60]
        shown = " ".join(f"p{ref}" for ref in sorted(refs))
        place = json.dumps(source.replace("/usr/", "/world/", 1)).replace("${", "\\${")
        lines.append(f"  p{number} = part {json.dumps(name + '-1')} {place} [ {shown} ];")
    top = " ".join(f"p{number}" for number in sorted(unused))
    lines.append(f"in part \"bench-top\" \"\" [ {top} ]")
    return "\n".join(lines) + "\n"


FIXED = ("system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-ec\" "
         "\"/bin/mkdir $out; echo $refs > $out/refs; "
         "[ -z \\\"$source\\\" ] || /bin/cp -a \\\"$source\\\" $out/\" ];")


def write_mixed(path, length, seed):
    """A file of which zstd leaves about two thirds: text and machine code of this system, between
    them what does not compress. Nothing repeats within a window, for each piece is cut differently."""
    dice = random.Random(seed)
    sources = [open(source, "rb") for source in real_files()]
    with open(path, "wb") as out:
        left = length
        while left > 0:
            source = dice.choice(sources)
            source.seek(dice.randrange(max(1, os.fstat(source.fileno()).st_size - 65536)))
            piece = (source.read(65536) + dice.randbytes(65536))[:left]
            out.write(piece)
            left -= len(piece)
    for source in sources:
        source.close()


def real_files():
    """The biggest plain files two levels below /usr, at most a hundred."""
    found = [(os.path.getsize(path), path)
             for folder in ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
             for path in entries(folder) if os.path.isfile(path) and not os.path.islink(path)]
    return [path for _, path in sorted(found, reverse=True)[:100]]


def compress(folder, key):
    """Puts an uncompressed path of the cache `none` into `xz` and `zst`, signature and all: a
    signature covers the NAR, not the file."""
    with open(f"{folder}/none/{key}.narinfo", encoding="ascii") as text:
        narinfo = text.read()
    nar = f"{folder}/none/" + field(narinfo, "URL")
    for cache, suffix, command in (("xz", "xz", XZ), ("zst", "zst", ["zstd", "-3", "-q"])):
        making = f"{folder}/{cache}/nar/making"
        with open(nar, "rb") as raw, open(making, "wb") as out:
            subprocess.run(["nice", "-n", "19", *command, "-c"], stdin=raw, stdout=out, check=True)
        with open(making, "rb") as made:
            digest = nix32(hashlib.file_digest(made, "sha256").digest())
        values = {"URL": f"nar/{digest}.nar.{suffix}", "FileHash": f"sha256:{digest}",
                  "Compression": {"xz": "xz", "zst": "zstd"}[suffix],
                  "FileSize": str(os.path.getsize(making))}
        changed = re.sub(r"(?m)^(URL|Compression|FileHash|FileSize): .*$",
                         lambda m: f"{m[1]}: {values[m[1]]}", narinfo)
        os.rename(making, f"{folder}/{cache}/nar/{digest}.nar.{suffix}")
        with open(f"{folder}/{cache}/{key}.narinfo", "w", encoding="ascii") as out:
            out.write(changed)


def nix32(digest):
    """Nix's base 32: bits from the end, an alphabet without e, o, u, t."""
    number = int.from_bytes(digest, "little")
    count = (len(digest) * 8 + 4) // 5
    return "".join("0123456789abcdfghijklmnpqrsvwxyz"[(number >> (5 * n)) & 31]
                   for n in reversed(range(count)))


def field(narinfo, name):
    return re.search(rf"(?m)^{name}: (.*)$", narinfo)[1]


def weigh(folder, top):
    """The closure as the narinfos tell it: walks it from the top."""
    closure, waiting = {}, [hash_part(top)]
    while waiting:
        key = waiting.pop()
        if key in closure:
            continue
        with open(f"{folder}/xz/{key}.narinfo", encoding="ascii") as text:
            xz = text.read()
        with open(f"{folder}/zst/{key}.narinfo", encoding="ascii") as text:
            zst = text.read()
        closure[key] = {"nar_bytes": int(field(xz, "NarSize")),
                        "xz_bytes": int(field(xz, "FileSize")),
                        "zst_bytes": int(field(zst, "FileSize"))}
        waiting += [ref[:32] for ref in field(xz, "References").split()]
    totals = {name: sum(one[name] for one in closure.values())
              for name in ("nar_bytes", "xz_bytes", "zst_bytes")}
    return {"closure": closure, "totals": totals}
