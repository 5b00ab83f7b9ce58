"""A network with one other host, at a second network card of the machine: it gives the machine an
address by DHCP and asks for names by multicast DNS, which QEMU's own network does not carry.

One UDP datagram on loopback is one Ethernet frame (QEMU's `-netdev dgram`).
"""

import socket
import struct
import threading
import time
from dataclasses import dataclass

OUR_MAC = bytes.fromhex("525400aabb01")
GUEST_MAC = "52:54:00:aa:bb:02"
OUR_ADDRESS = "192.168.77.1"
LEASED = "192.168.77.10"
BROADCAST_MAC = b"\xff" * 6
MDNS_MAC = bytes.fromhex("01005e0000fb")
MDNS_ADDRESS = "224.0.0.251"
MDNS_PORT = 5353
ETHERNET_BYTES = 14
# Between two questions of ours.
ASK_EVERY_S = 2.0
# DNS record types.
A, PTR, TXT, SRV = 1, 12, 16, 33
# A name with more pointers than this goes in circles.
POINTERS_MAX = 20


@dataclass(frozen=True)
class Record:
    """One record of an answer that was heard."""

    name: str
    kind: int
    value: bytes


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _datagram(target: tuple[bytes, str], ports: tuple[int, int], payload: bytes) -> bytes:
    """An Ethernet frame with a UDP datagram from us."""
    mac, address = target
    udp = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    ends = socket.inet_aton(OUR_ADDRESS) + socket.inet_aton(address)
    # RFC 6762 wants a TTL of 255.
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 255, socket.IPPROTO_UDP, 0) + ends
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    return mac + OUR_MAC + b"\x08\x00" + header + udp


def _question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 0, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A name and where what follows it begins."""
    labels: list[str] = []
    end = None
    for _ in range(POINTERS_MAX + 128):
        length = message[at]
        if length == 0:
            return ".".join(labels), end or at + 1
        if length & 0xC0:
            end = end or at + 2
            at = struct.unpack("!H", message[at : at + 2])[0] & 0x3FFF
        else:
            labels.append(message[at + 1 : at + 1 + length].decode(errors="replace"))
            at += 1 + length
    raise ValueError("a name without end")


def records(message: bytes) -> list[Record]:
    """The records of a DNS message."""
    questions, *counts = struct.unpack("!4H", message[4:12])
    at = 12
    for _ in range(questions):
        at = _name(message, at)[1] + 4
    found = []
    for _ in range(sum(counts)):
        name, at = _name(message, at)
        kind, _class, _ttl, length = struct.unpack("!HHIH", message[at : at + 10])
        at += 10
        value = message[at : at + length]
        if kind == PTR:
            value = _name(message, at)[0].encode()
        found.append(Record(name, kind, value))
        at += length
    return found


class Lan(threading.Thread):
    """The other host. `heard` grows while it runs."""

    def __init__(self, *asked: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._asked = asked
        self._ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ours.bind(("127.0.0.1", 0))
        self._ours.settimeout(0.5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
            guest.bind(("127.0.0.1", 0))
            self._guest = guest.getsockname()
        self._ended = threading.Event()
        self.leased = False
        self.heard: set[Record] = set()

    def options(self) -> tuple[str, ...]:
        """QEMU's options for the machine's end."""
        ours = f"remote.type=inet,remote.host=127.0.0.1,remote.port={self._ours.getsockname()[1]}"
        theirs = f"local.type=inet,local.host=127.0.0.1,local.port={self._guest[1]}"
        return (
            "-netdev", f"dgram,id=lan,{theirs},{ours}",
            "-device", f"virtio-net-pci,netdev=lan,mac={GUEST_MAC},romfile=",
        )  # fmt: skip

    def end(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self.join()
        self._ours.close()

    def run(self) -> None:
        """The thread."""
        asked_at = 0.0
        while not self._ended.is_set():
            if self.leased and time.monotonic() - asked_at > ASK_EVERY_S:
                asked_at = time.monotonic()
                for name, kind in self._asked:
                    target = (MDNS_MAC, MDNS_ADDRESS)
                    self._send(_datagram(target, (MDNS_PORT, MDNS_PORT), _question(name, kind)))
            try:
                self._take(self._ours.recv(65536))
            except (TimeoutError, ValueError, IndexError, struct.error):
                continue

    def _send(self, frame: bytes) -> None:
        self._ours.sendto(frame, self._guest)

    def _take(self, frame: bytes) -> None:
        kind = frame[12:14]
        who_has_us = frame[20:22] == b"\0\1" and frame[38:42] == socket.inet_aton(OUR_ADDRESS)
        if kind == b"\x08\x06" and who_has_us:
            reply = b"\0\1\x08\0\6\4\0\2" + OUR_MAC + socket.inet_aton(OUR_ADDRESS) + frame[22:32]
            self._send(frame[6:12] + OUR_MAC + b"\x08\x06" + reply)
        if kind != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP:
            return
        at = ETHERNET_BYTES + (frame[ETHERNET_BYTES] & 15) * 4
        to_port = struct.unpack("!H", frame[at + 2 : at + 4])[0]
        payload = frame[at + 8 :]
        if to_port == 67:
            self._lease(payload)
        elif to_port == MDNS_PORT and payload[2] & 0x80:
            self.heard.update(records(payload))

    def _lease(self, request: bytes) -> None:
        """DHCP: an offer for a discovery, an acknowledgement for a request."""
        options: dict[int, bytes] = {}
        at = 240
        while at < len(request) and request[at] != 255:
            if request[at] == 0:
                at += 1
                continue
            options[request[at]] = request[at + 2 : at + 2 + request[at + 1]]
            at += 2 + request[at + 1]
        answer = {1: 2, 3: 5}.get(options.get(53, b"\0")[0])
        if answer is None:
            return
        our = socket.inet_aton(OUR_ADDRESS)
        reply = struct.pack("!4B", 2, 1, 6, 0) + request[4:8] + struct.pack("!HH", 0, 0x8000)
        reply += bytes(4) + socket.inet_aton(LEASED) + our + bytes(4) + request[28:44] + bytes(192)
        reply += b"\x63\x82\x53\x63" + bytes([53, 1, answer, 54, 4]) + our
        reply += bytes([51, 4]) + struct.pack("!I", 3600) + bytes([1, 4, 255, 255, 255, 0, 255])
        self.leased |= answer == 5
        self._send(_datagram((BROADCAST_MAC, "255.255.255.255"), (67, 68), reply))
