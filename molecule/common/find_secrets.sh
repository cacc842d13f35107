#!/bin/bash
# Prints where this host holds one of the secrets on standard input (one a line), a place a line: files with their owner and
# mode, command lines and environments of processes, what Docker knows, and logs.
# The secrets get to grep through a pipe, so that this search finds nothing of itself.
secrets=$(cat)
[ -n "$secrets" ] || { echo "find_secrets.sh: no secrets on standard input" >&2; exit 1; }

holding() {
    grep --text --fixed-strings --file=<(printf '%s\n' "$secrets") "$@"
}

holding --recursive --devices=skip --files-with-matches \
    /boot /etc /home /opt /root /run /srv /tmp /usr/local /var 2>/dev/null | sort | while read -r path; do
    stat --format '%n %U %a' "$path"
done
for process in /proc/[0-9]*; do
    for what in cmdline environ; do
        if holding --quiet "$process/$what" 2>/dev/null; then
            echo "$what of process $(cat "$process/comm")"
        fi
    done
done
journalctl --no-pager --output verbose | holding --quiet && echo journal
if command -v docker >/dev/null; then
    for list in 'container ls --all' 'image ls' 'volume ls' 'network ls'; do
        kind=${list%% *}
        # shellcheck disable=SC2086 # the words of the list
        docker $list --quiet | xargs --no-run-if-empty docker "$kind" inspect | holding --quiet && echo "docker $kind inspect"
    done
    docker container ls --all --format '{{.Names}}' | while read -r name; do
        docker logs "$name" 2>&1 | holding --quiet && echo "log of container $name"
    done
fi
true
