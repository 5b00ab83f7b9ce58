#!/bin/sh
# Runs a program of Debian's Avahi, unpacked below ROOT, on a machine of the tests' house: with /run
# and /etc from SCRATCH, where D-Bus and Avahi have their sockets and their configuration. `ip netns
# exec` has made the mount namespace, so nothing of this is seen outside.
# usage: avahi.sh ROOT SCRATCH bus | daemon | COMMAND...
set -eu
root=$1 scratch=$2; shift 2
lib=$(echo "$root"/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH="$lib:$root/lib/${lib##*/}:$lib/avahi"
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/dbus/system_bus_socket
mount --bind "$scratch/run" /run
mount --bind "$scratch/etc" /etc
case $1 in
  bus) exec "$root/usr/bin/dbus-daemon" --config-file=/etc/bus.conf --nofork --nopidfile ;;
  daemon) exec "$root/usr/sbin/avahi-daemon" --no-drop-root --no-chroot --no-proc-title --no-rlimits \
    -f /etc/avahi/avahi-daemon.conf ;;
  avahi-*) program=$1; shift; exec "$root/usr/bin/$program" "$@" ;;
  *) exec "$@" ;;
esac
