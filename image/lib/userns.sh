# shellcheck shell=bash
# in_userns COMMAND...: runs it as root of a user namespace of its own, in which programs for arm64 run
# through qemu-user. Neither root nor a changed binfmt of this machine is needed: since Linux 6.7
# binfmt_misc can be mounted in a user namespace. Wants what userns_ids asks for.

in_userns() {
    # shellcheck disable=SC2016
    unshare --user --map-root-user --map-auto --mount --pid --fork --kill-child --mount-proc \
        bash -euc '
            if [ "$(uname -m)" != aarch64 ]; then
                mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
                # The ELF header of an arm64 program. P keeps argv[0]; F opens the interpreter now, so
                # that it need not lie inside a root that is entered later.
                magic="\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00"
                mask="\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff"
                printf "%s" ":qemu-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64-static:PF" \
                    > /proc/sys/fs/binfmt_misc/register
            fi
            exec "$@"' -- "$@"
}

# userns_ids: whether this user has the ranges of ids from which in_userns takes its users and groups; if
# not, says how to get them.
userns_ids() {
    local user ranges
    user=$(id -un)
    for ranges in /etc/subuid /etc/subgid; do
        grep -qsE "^($user|$(id -u)):" "$ranges" && continue
        echo "$ranges gives $user no range of ids; as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $user" >&2
        return 1
    done
}
