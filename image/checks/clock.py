"""The clock where no time comes from the network: a machine whose clock is years back, and an https cache."""

import ssl
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from harness.card import Card, run
from harness.machine import Machine, wait_for

from .kit import CARD_BYTES, Image, Report, expect

# What the machine's own clock says when it is switched on.
YEARS_BACK = "2024-01-01T00:00:00"
# Where the machine sees the cache. It reaches nothing else: no NTP either.
PLACE = "10.0.2.100"
# Two turns of the timer, for the certificate's beginning and for the date, which is asked for by the way.
SET_WAIT_S = 1200.0
# Whole seconds of Date and clock, and what a question takes here.
OFF_MAX_S = 15
# From the last setting to the end of the machine.
ORDER_S = 120
SETTINGS = f"""
[[upstream]]
url = "https://{PLACE}"
ca-file = "ca.pem"
trusted-public-keys = ["a-1:m0J/oDlLEuG6ezc6MzmpLCN2MYjssO3NMIlr9JdxkTs="]
"""
CERTIFICATE = f"""
[req]
distinguished_name = name
x509_extensions = server
prompt = no
[name]
CN = {PLACE}
[server]
subjectAltName = IP:{PLACE}
"""


class Empty(BaseHTTPRequestHandler):
    """A cache that has nothing. Every answer has the time now as its Date; some say an Age beside it, as Fastly does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers."""
        info = self.path == "/nix-cache-info"
        body = b"StoreDir: /nix/store\n" if info else b""
        self.send_response(200 if info else 404)
        self.send_header("Content-Length", str(len(body)))
        if not info:
            self.send_header("Age", "70000")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Which is refused at first, by a machine that finds its certificate not valid yet."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing."""


class Cache:
    """That cache over TLS, on this host's loopback, with a certificate that begins now."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "ca.pem"
        (folder / "openssl.cnf").write_text(CERTIFICATE)
        run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "30", "-config", str(folder / "openssl.cnf"), "-keyout", str(folder / "key.pem"),
            "-out", str(self.certificate),
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, folder / "key.pem")
        self._server = Server(("127.0.0.1", 0), Empty)
        # The handshake is the connection's own matter, and keeps no other waiting.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def forward(self) -> str:
        """For QEMU's network: each connection to the place is one to this cache."""
        port = self._server.server_address[1]
        relay = f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; cat <&3 & cat >&3; kill %1'"
        return f"guestfwd=tcp:{PLACE}:443-cmd:{relay}"

    def end(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()


def check_all(image: Image, report: Report) -> None:
    """Every check of this module, on one card."""
    with tempfile.TemporaryDirectory(prefix="snowberry-clock.") as name:
        folder = Path(name)
        cache = Cache(folder)
        try:
            card = Card.flash(image.path, folder / "card.img", CARD_BYTES)
            card.write("snowberry.toml", SETTINGS.encode())
            card.write("ca.pem", cache.certificate.read_bytes())
            if report.check("clock set by an upstream's date", lambda: forwards(card, cache)):
                report.check("clock kept over a start", lambda: kept(card))
        finally:
            cache.end()


def _behind_s(machine: Machine) -> float:
    """By how much the clock in there is behind this host's."""
    return time.time() - int(machine.shell("date +%s"))


def forwards(card: Card, cache: Cache) -> str:
    """By the certificate's beginning first, which is not valid yet, and by the date then."""
    with Machine(card, rtc=YEARS_BACK, forward=cache.forward) as machine:
        machine.first_answer()
        at_first = _behind_s(machine)
        image_s = int(machine.shell("stat -c %Y /usr/lib/clock-epoch"))
        expect(int(machine.shell("date +%s")) >= image_s, "the clock begins before the image")

        def look() -> float | None:
            # As a house asks: each time for something new.
            machine.get(f"/{time.time_ns():032d}.narinfo")
            return machine.age_s() if abs(_behind_s(machine)) <= OFF_MAX_S else None

        after = wait_for("the right time", SET_WAIT_S, look)
        told = machine.shell("journalctl -b -o cat -u snowberry-clock")
        expect("set forwards by" in told, f"somebody else set it: {told[-400:]}")
        steps = [line.split(" by ")[1].split(",")[0] for line in told.splitlines() if "set forwards" in line]
        machine.shell("systemctl --no-block poweroff")
        machine.ended()
    return f"{at_first:.0f} s behind at first, set by {' and '.join(steps)}, right {after:.0f} s after power-on"


def kept(card: Card) -> str:
    """The next start begins where it was left, though the machine's own clock is years back again."""
    left = time.time()
    with Machine(card, rtc=YEARS_BACK) as machine:
        machine.first_answer()
        behind = _behind_s(machine)
        away = time.time() - left
        machine.pull_the_plug()
    expect(-OFF_MAX_S <= behind <= away + ORDER_S, f"{behind:.0f} s behind after {away:.0f} s")
    return f"{behind:.0f} s behind, {away:.0f} s after it was switched off"
