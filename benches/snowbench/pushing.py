"""The rows of pushing: uploads by a real client, and the queue's way up to a real MinIO.

The rival of an upload is the same client writing the same files into a folder on the same disk;
that of the way up is MinIO's own `mc cp -r` of the same files."""

import contextlib
import json
import os
import shutil
import subprocess
import time

import chroot
import servers
from rows import MIB, Failed, Row, ratio_row, rounded, turns

# A queue that takes longer than this does not drain.
DRAIN_SECONDS_MAX = 600

MINIO_PORT, MINIO_USER, MINIO_SECRET = 9100, "bench-admin", "bench-admin-secret"
BUCKET = "nix-cache"

# The store is filled from the files of a cache first; only the upload between the two dates counts.
UPLOAD = """
nix copy --no-check-sigs --from file:///mnt/zst {paths}
begin=$(date +%s.%N)
nix copy --no-check-sigs --to '{to}' {paths}
end=$(date +%s.%N)
echo "$begin $end"
"""


def upload(bench, to, paths, binds=()):
    """Seconds that a real client takes to upload these paths with their closures."""
    cache = os.path.dirname(bench.cache("zst"))
    script = UPLOAD.format(to=to, paths=" ".join(paths))
    done = chroot.run(bench.root, script, binds=[(cache, "/mnt", "ro"), *binds])
    *_, dates = filter(None, done["printed"])
    begin, end = map(float, dates.split())
    return end - begin


def store_path(bench, key):
    """The full path of a narinfo's key."""
    with open(f"{bench.cache('zst')}/{key}.narinfo", encoding="ascii") as text:
        for line in text:
            if line.startswith("StorePath: "):
                return line.split()[1]
    raise Failed(f"no StorePath in the narinfo of {key}")


@contextlib.contextmanager
def snowberry(bench, targets=(), fresh=True):
    """`snowberry serve` that takes uploads. Yields the server and the URL to push to."""
    state = f"{bench.run}/snowberry"
    if fresh:
        shutil.rmtree(state, ignore_errors=True)
    os.makedirs(state, exist_ok=True)
    config = f"{bench.run}/snowberry.toml"
    with open(config, "w", encoding="ascii") as out:
        out.write(f'listen = ["127.0.0.1:{servers.SNOWBERRY}"]\nstate-dir = "{state}"\n')
        if not targets:
            out.write("upstream = []\n")
        for target in targets:
            out.write(f'[[upstream]]\nurl = "{target}"\nunsigned = true\npush = true\n'
                      f'credentials-file = "{credentials(bench)}"\n')
    token = f"{state}/bench-token"
    if fresh:
        added = subprocess.run([bench.binary, "token", "add", "bench", "--config", config],
                               capture_output=True, text=True, check=True)
        with open(token, "w", encoding="ascii") as out:
            out.write(added.stdout.strip())
    with open(token, encoding="ascii") as text:
        secret = text.read()
    env = dict(os.environ, SNOWBERRY_LOG=os.environ.get("SNOWBERRY_LOG", "warn"))
    server = servers.Server("snowberry", [bench.binary, "serve", "--config", config], bench.run,
                            ("127.0.0.1", servers.SNOWBERRY), env)
    try:
        server.await_answer("/nix-cache-info")
        host, port = server.address
        yield server, f"http://bench:{secret}@{host}:{port}/push"
    finally:
        server.stop()


def credentials(bench):
    path = f"{bench.run}/credentials"
    with open(path, "w", encoding="ascii") as out:
        out.write(f"[default]\naws_access_key_id = {MINIO_USER}\n"
                  f"aws_secret_access_key = {MINIO_SECRET}\n")
    return path


def minio_program(name):
    program = f"{os.environ.get('CACHE', '')}/minio/{name}"
    if not os.path.exists(program):
        raise Failed(f"{name} is not there: tests/parts/minio makes it")
    return program


def mc(bench, *arguments):
    home = f"{bench.run}/mc"
    url = f"http://{MINIO_USER}:{MINIO_SECRET}@127.0.0.1:{MINIO_PORT}"
    subprocess.run([minio_program("mc"), "--config-dir", home, "--quiet", *arguments],
                   env=dict(os.environ, MC_HOST_bench=url), check=True, capture_output=True,
                   timeout=DRAIN_SECONDS_MAX)


@contextlib.contextmanager
def minio(bench):
    """A real MinIO on the same disk, with an empty bucket."""
    folder = f"{bench.run}/minio"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    env = dict(os.environ, MINIO_ROOT_USER=MINIO_USER, MINIO_ROOT_PASSWORD=MINIO_SECRET,
               MINIO_BROWSER="off")
    command = [minio_program("minio"), "server", "--quiet", "--address",
               f"127.0.0.1:{MINIO_PORT}", folder]
    server = servers.Server("minio", command, bench.run, ("127.0.0.1", MINIO_PORT), env)
    try:
        server.await_answer("/minio/health/live")
        mc(bench, "mb", f"bench/{BUCKET}")
        info = f"{bench.run}/nix-cache-info"
        with open(info, "w", encoding="ascii") as out:
            out.write("StoreDir: /nix/store\n")
        mc(bench, "cp", info, f"bench/{BUCKET}/nix-cache-info")
        yield server
    finally:
        server.stop()


def bucket_url():
    return f"s3://{BUCKET}?endpoint=http://127.0.0.1:{MINIO_PORT}&region=us-east-1"


def waiting(server):
    status, _, body = servers.get(server.address, "/api/status")
    if status != 200:
        raise Failed(f"status: {status}")
    return json.loads(body)["queue"]["waiting"]


def drained(server):
    """Seconds until nothing waits any more."""
    started = time.monotonic()
    while waiting(server):
        if time.monotonic() - started > DRAIN_SECONDS_MAX:
            raise Failed("the queue does not drain")
        time.sleep(0.01)
    return time.monotonic() - started


def uploads(bench):
    """The closure uploaded by a real client: to snowberry, and into a folder."""
    def ours():
        with snowberry(bench) as (_, url):
            return upload(bench, f"{url}?compression=zstd", [bench.top])

    def rival():
        folder = f"{bench.run}/folder"
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        try:
            return upload(bench, "file:///srv?compression=zstd", [bench.top],
                          binds=[(folder, "/srv", "rw")])
        finally:
            shutil.rmtree(folder)

    mine, theirs = turns(bench.pairs, ours, rival)
    yield ratio_row("upload", "closure uploaded as zstd by a real client", "into a folder",
                    "<= 1.5 x", 1.5, mine, theirs, raw={"unit": "s"})


def draining(bench):
    """The queue of the closure on its way up, and `mc cp -r` of the same files."""
    files = bench.cache("zst")
    names = closure_files(bench)

    def ours():
        with minio(bench) as bucket:
            # Queued while the bucket is away, carried when it is back.
            bucket.stop()
            with snowberry(bench, [bucket_url()]) as (_, url):
                upload(bench, f"{url}?compression=zstd", [bench.top])
        with minio(bench), snowberry(bench, [bucket_url()], fresh=False) as (server, _):
            return drained(server)

    def rival():
        folder = f"{bench.run}/closure"
        shutil.rmtree(folder, ignore_errors=True)
        for name in names:
            os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
            os.link(f"{files}/{name}", f"{folder}/{name}")
        with minio(bench):
            started = time.monotonic()
            mc(bench, "cp", "-r", f"{folder}/", f"bench/{BUCKET}/")
            return time.monotonic() - started

    mine, theirs = turns(bench.pairs, ours, rival)
    yield ratio_row("drain", "closure carried from the queue to MinIO", "mc cp -r", "<= 1.5 x",
                    1.5, mine, theirs, raw={"unit": "s"})


def closure_files(bench):
    """narinfos and NAR files of the closure, below the folder of the zstd cache."""
    names = []
    for key in bench.fixtures["closure"]:
        names.append(f"{key}.narinfo")
        with open(f"{bench.cache('zst')}/{key}.narinfo", encoding="ascii") as text:
            names += [line.split()[1] for line in text if line.startswith("URL: ")]
    return names


def push_peak(bench):
    """Peak memory of a big and of a middling NAR, uploaded raw and as zstd, and carried up."""
    found = {}
    keys = {"big": bench.fixtures["big"], "middling": bench.fixtures["many"][0]}
    for name, key in keys.items():
        for codec in ("zstd", "none"):
            with minio(bench), snowberry(bench, [bucket_url()]) as (server, url):
                upload(bench, f"{url}?compression={codec}", [store_path(bench, key)])
                drained(server)
                found[f"{name}-{codec}"] = server.peak_bytes()
    peak = max(found.values())
    flat = max(found[f"big-{codec}"] / found[f"middling-{codec}"] for codec in ("zstd", "none"))
    yield Row("push-peak", "peak memory of 1 GiB uploaded and carried up",
              "the same of 24 MiB", "<= 1.3 x", flat, f"{flat:.2f} x ({peak / MIB:.1f} MiB)", 1.3,
              raw={name: rounded([size / MIB])[0] for name, size in found.items()})


GROUPS = {
    uploads: ("upload",),
    draining: ("drain",),
    push_peak: ("push-peak",),
}
