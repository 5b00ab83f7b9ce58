"""Readers of NARs: plain HTTP over a socket, a process each, so that they cost the machine little
and do not wait for each other."""

import multiprocessing
import os
import socket
import time

# Big enough that the calls do not count, small enough to stay in the cache of a core.
READ_LEN = 256 * 1024

# A reader that gets nothing for so long has failed: above every wait that the design allows.
SILENCE_SECONDS_MAX = 60

# `fork`, for a hundred readers begin at once only where none has to load Python first.
FORK = multiprocessing.get_context("fork")


class Broken(Exception):
    """An answer that is not a whole 200."""


def ask(address, path):
    """Sends one GET and returns the socket, what came after the headers, and the headers."""
    link = socket.create_connection(address, SILENCE_SECONDS_MAX)
    link.sendall(f"GET {path} HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        more = link.recv(65536)
        if not more:
            raise Broken(f"{path}: closed before an answer")
        head += more
    head, _, rest = head.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if lines[0].split()[1] != "200":
        link.close()
        raise Broken(f"{path}: {lines[0]}")
    headers = {name.lower(): value.strip() for name, _, value in
               (line.partition(":") for line in lines[1:])}
    return link, rest, headers


def first_byte(address, path):
    """Seconds from the question to the first byte of the body; the rest is read too."""
    started = time.perf_counter()
    link, rest, headers = ask(address, path)
    chunked = headers.get("transfer-encoding") == "chunked"
    # A chunk begins with a line that says its length.
    while not (rest.partition(b"\r\n")[2] if chunked else rest):
        more = link.recv(65536)
        if not more:
            raise Broken(f"{path}: no body")
        rest += more
    took = time.perf_counter() - started
    drain(link, rest, headers, path)
    return took


class Chunks:
    """Counts what a chunked body says between its lines, without copying it."""

    def __init__(self):
        self.count, self.left, self.line, self.ended = 0, 0, b"", False

    def feed(self, buffer, length):
        at = 0
        while at < length:
            if self.left:
                step = min(self.left, length - at)
                self.left -= step
                at += step
                continue
            end = buffer.find(b"\n", at, length)
            if end < 0:
                self.line += buffer[at:length]
                return
            size = int((self.line + buffer[at:end]).split(b";")[0], 16)
            self.line, self.ended = b"", size == 0
            self.count += size
            # The line end after the chunk.
            self.left = size + 2
            at = end + 1


def drain(link, rest, headers, path, bytes_s=None):
    """Reads to the end and returns the bytes of the body, which must be whole."""
    buffer = bytearray(READ_LEN)
    count, started = len(rest), time.monotonic()
    chunks = Chunks() if headers.get("transfer-encoding") == "chunked" else None
    if chunks:
        chunks.feed(rest, len(rest))
    with link:
        while True:
            read = link.recv_into(buffer)
            if not read:
                break
            count += read
            if chunks:
                chunks.feed(buffer, read)
            if bytes_s:
                time.sleep(max(0.0, started + count / bytes_s - time.monotonic()))
    if chunks:
        whole, count = chunks.ended and chunks.left == 0, chunks.count
    else:
        whole = count == int(headers.get("content-length", -1))
    if not whole:
        raise Broken(f"{path}: cut after {count} bytes")
    return count


def read(address, path, bytes_s=None):
    link, rest, headers = ask(address, path)
    return drain(link, rest, headers, path, bytes_s)


def speed(address, path):
    """Bytes a second of one reader."""
    started = time.perf_counter()
    count = read(address, path)
    return count / (time.perf_counter() - started)


def together(address, paths, bytes_s=None, stagger_s=0.0):
    """One reader for each path, all at once (or each a little later than the one before). Returns
    the bytes of each; an answer that is not whole is an error's text in its place."""
    gate = FORK.Barrier(len(paths))
    results = FORK.SimpleQueue()

    def one(number, path):
        gate.wait()
        time.sleep(stagger_s * number)
        try:
            results.put((number, read(address, path, bytes_s)))
        except (OSError, Broken) as error:
            results.put((number, str(error)))

    children = [FORK.Process(target=one, args=each, daemon=True) for each in enumerate(paths)]
    for child in children:
        child.start()
    found = dict(results.get() for _ in children)
    for child in children:
        child.join()
    return [found[number] for number in range(len(paths))]


class Crowd:
    """Readers that read one path again and again until they are told to stop."""

    def __init__(self, address, path, count):
        self.stop = FORK.Event()
        self.bytes = FORK.Value("Q", 0)
        self.broken = FORK.Value("Q", 0)
        self.children = [FORK.Process(target=self.one, args=(address, path), daemon=True)
                         for _ in range(count)]

    def one(self, address, path):
        while not self.stop.is_set():
            try:
                count = read(address, path)
            except (OSError, Broken):
                with self.broken.get_lock():
                    self.broken.value += 1
                time.sleep(0.1)
                continue
            with self.bytes.get_lock():
                self.bytes.value += count

    def __enter__(self):
        for child in self.children:
            child.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for child in self.children:
            child.join(SILENCE_SECONDS_MAX)
            if child.is_alive():
                os.kill(child.pid, 9)
