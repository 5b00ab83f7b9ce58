"""python-zeroconf on a machine of the tests' house, one JSON object a line.

usage: house.py follow               what comes and goes, until it is ended
       house.py hold HOST ADDRESS... has HOST.local with these addresses, until it is ended
"""
import json
import socket
import sys
import threading

from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

KIND = "_nix-cache._tcp.local."


SAYING = threading.Lock()


def say(**what):
    # print() writes the end of the line on its own: two threads would share one.
    with SAYING:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


def changed(zeroconf, service_type, name, state_change):
    if state_change is ServiceStateChange.Removed:
        say(left=name)
    else:
        # Asking blocks, which the thread of the events must not.
        threading.Thread(target=tell, args=(zeroconf, name), daemon=True).start()


def tell(zeroconf, name):
    info = zeroconf.get_service_info(KIND, name, timeout=5000)
    if info is not None:
        txt = {key.decode(): value.decode() for key, value in info.properties.items()}
        say(came=name, host=info.server, port=info.port, txt=txt,
            addresses=sorted(info.parsed_addresses(IPVersion.All)))


def packed(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


zeroconf = Zeroconf(ip_version=IPVersion.All)
if sys.argv[1] == "follow":
    ServiceBrowser(zeroconf, KIND, handlers=[changed])
else:
    host, addresses = sys.argv[2], sys.argv[3:]
    kind = "_held._tcp.local."
    zeroconf.register_service(ServiceInfo(
        kind, f"{host}.{kind}", port=9, server=f"{host}.local.",
        addresses=[packed(address) for address in addresses]))
say(ready=True)
threading.Event().wait()
