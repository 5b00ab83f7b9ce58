"""The processes that are measured: nginx in its three roles, snowberry, and a shaped line.

All of them live in the namespaces that `benches/run` made, so fixed ports are free and nothing
outlives the run. Each still has an owner that ends it by its process id."""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import time

# A server that is not there after this long will not come.
START_SECONDS_MAX = 20
# Design 5: a drain has a deadline of its own, well below this.
STOP_SECONDS_MAX = 40

UPSTREAM, STATIC, PROXY, GENERATED, SNOWBERRY, DEAD = 9001, 9002, 9003, 9004, 8500, 9999

# Of the block that RFC 2544 sets aside for benchmarks: in nobody's network.
FAR, NEAR = "198.18.7.2", "198.18.7.1"


class Failed(Exception):
    """A server did not start, or did not answer as it should."""


class Server:
    """One process with its log, ended by its id."""

    def __init__(self, name, command, folder, address, env=None):
        os.makedirs(folder, exist_ok=True)
        self.name, self.address, self.log = name, address, f"{folder}/{name}.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=env, start_new_session=True)
        self.pid = self.process.pid

    def await_answer(self, path, status=200):
        """Waits until it answers this path, and returns how long that took."""
        started = time.monotonic()
        while time.monotonic() - started < START_SECONDS_MAX:
            if self.process.poll() is not None:
                break
            try:
                found, _, _ = get(self.address, path)
                if found == status:
                    return time.monotonic() - started
            except OSError:
                pass
            time.sleep(0.001)
        raise Failed(f"{self.name} does not answer {path}: {self.last_words()}")

    def last_words(self):
        with open(self.log, "rb") as log:
            log.seek(max(0, os.path.getsize(self.log) - 600))
            return log.read().decode(errors="replace").strip()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def kill(self):
        """As a pulled plug ends it, as far as one process goes."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    # What the kernel counts for the process, all its threads together.

    def cpu_s(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as text:
            fields = text.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def written_bytes(self):
        """Bytes sent towards a block device: none are counted where the store lies in memory."""
        return self.figure("io", "write_bytes")

    def resident_bytes(self):
        return self.figure("status", "VmRSS") * 1024

    def peak_bytes(self):
        return self.figure("status", "VmHWM") * 1024

    def figure(self, file, name):
        with open(f"/proc/{self.pid}/{file}", encoding="ascii") as text:
            for line in text:
                if line.startswith(name + ":"):
                    return int(line.split()[1])
        raise Failed(f"no {name} for {self.name}")

    def await_quiet(self, seconds=3.0, seconds_max=120.0):
        """Until it wrote nothing for a while: group commits and evictions are over."""
        started = quiet_since = time.monotonic()
        last = self.written_bytes()
        while time.monotonic() - quiet_since < seconds:
            if time.monotonic() - started > seconds_max:
                raise Failed(f"{self.name} still writes after {seconds_max:.0f} s")
            time.sleep(0.25)
            now = self.written_bytes()
            if now != last:
                last, quiet_since = now, time.monotonic()


def get(address, path, timeout=10):
    """One small answer: status, headers, body."""
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


# nginx at its best for this: a worker a core, no log, sendfile, files kept open.
NGINX = """
daemon off; worker_processes {workers}; pid {folder}/pid; error_log stderr error;
{user}
worker_rlimit_nofile 8192;
events {{ worker_connections 2048; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; default_type application/octet-stream;
  keepalive_timeout 120; keepalive_requests 100000000;
  open_file_cache max=4000 inactive=300s; open_file_cache_valid 300s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy-temp;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {server}
}}
"""

STATIC_SERVER = "server {{ listen {listen}; root {root}; }}"

# Narinfos are cached as NARs are, misses for a minute, and one fetch at a time for a key, as the
# guides for such a cache say.
PROXY_SERVER = """
  proxy_cache_path {folder}/cache levels=1:2 keys_zone=nix:16m max_size=20g inactive=30d
    use_temp_path=off;
  upstream far {{ server {upstream}; keepalive 32; }}
  server {{
    listen {listen};
    location / {{
      proxy_pass http://far; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache nix; proxy_cache_lock on; proxy_cache_valid 200 30d; proxy_cache_valid 404 1m;
    }}
  }}
"""


def nginx(name, folder, server, address, prefix=()):
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/nginx.conf", "w", encoding="ascii") as out:
        user = "user root;" if os.geteuid() == 0 else ""
        out.write(NGINX.format(folder=folder, server=server, user=user, workers=os.cpu_count()))
    command = [*prefix, shutil.which("nginx") or "/usr/sbin/nginx", "-p", folder,
               "-e", "stderr", "-c", f"{folder}/nginx.conf"]
    return Server(name, command, folder, address)


@contextlib.contextmanager
def static(run, root, port, name="static"):
    """nginx over the files of a cache."""
    listen = f"127.0.0.1:{port}"
    server = nginx(f"nginx-{name}", f"{run}/nginx-{name}",
                   STATIC_SERVER.format(listen=listen, root=root), ("127.0.0.1", port))
    try:
        server.await_answer("/nix-cache-info")
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def proxy(run, upstream):
    """nginx with an empty `proxy_cache` in front of an upstream."""
    folder = f"{run}/nginx-proxy"
    shutil.rmtree(folder, ignore_errors=True)
    conf = PROXY_SERVER.format(folder=folder, upstream=upstream, listen=f"127.0.0.1:{PROXY}")
    server = nginx("nginx-proxy", folder, conf, ("127.0.0.1", PROXY))
    try:
        server.await_answer("/nix-cache-info")
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def line(run, root, mbit_s, rtt_ms):
    """The upstream at the far end of a line: nginx in a network namespace of its own, whose side of
    the cable lets only so many bits through. Yields its host and port."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    server = None
    try:
        mine = os.stat("/proc/self/ns/net").st_ino
        while os.stat(f"/proc/{holder.pid}/ns/net").st_ino == mine:
            time.sleep(0.01)
        far = ["nsenter", "--target", str(holder.pid), "--net"]
        for command in shape(holder.pid, far, mbit_s, rtt_ms):
            subprocess.run(command, check=True)
        server = nginx("nginx-far", f"{run}/nginx-far",
                       STATIC_SERVER.format(listen=f"{FAR}:{UPSTREAM}", root=root),
                       (FAR, UPSTREAM), prefix=far)
        server.await_answer("/nix-cache-info")
        yield f"{FAR}:{UPSTREAM}"
    finally:
        if server:
            server.stop()
        holder.terminate()
        holder.wait()


def shape(pid, far, mbit_s, rtt_ms):
    yield ["ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(pid)]
    yield ["ip", "address", "add", f"{NEAR}/30", "dev", "near"]
    yield ["ip", "link", "set", "near", "up"]
    yield [*far, "ip", "address", "add", f"{FAR}/30", "dev", "far"]
    yield [*far, "ip", "link", "set", "far", "up"]
    # A queue of 100 ms, as a home router has; a burst of two full segments of the kernel's.
    yield [*far, "tc", "qdisc", "add", "dev", "far", "root", "handle", "1:", "tbf",
           "rate", f"{mbit_s}mbit", "burst", "128kb", "latency", "100ms"]
    if rtt_ms:
        yield ["tc", "qdisc", "add", "dev", "near", "root", "netem", "delay", f"{rtt_ms}ms"]


@contextlib.contextmanager
def snowberry(binary, run, upstream, key, fresh=True, unsigned=False):
    """`snowberry serve` with one upstream, its state below `run`."""
    server = start_snowberry(binary, run, upstream, key, fresh, unsigned)
    try:
        server.await_answer("/nix-cache-info")
        yield server
    finally:
        server.stop()


def start_snowberry(binary, run, upstream, key, fresh=False, unsigned=False):
    state = f"{run}/snowberry"
    if fresh:
        shutil.rmtree(state, ignore_errors=True)
    os.makedirs(state, exist_ok=True)
    # The file that a machine may have must not take part.
    with open(f"{run}/snowberry.toml", "w", encoding="ascii"):
        pass
    trust = "unsigned=true" if unsigned else f'trusted-public-keys=["{key}"]'
    settings = [f'listen=["127.0.0.1:{SNOWBERRY}"]', f'state-dir="{state}"',
                f'upstream=[{{url="http://{upstream}",{trust}}}]']
    command = [binary, "serve", "--config", f"{run}/snowberry.toml"]
    for setting in settings:
        command += ["--set", setting]
    env = dict(os.environ, SNOWBERRY_LOG=os.environ.get("SNOWBERRY_LOG", "warn"))
    return Server("snowberry", command, run, ("127.0.0.1", SNOWBERRY), env)
