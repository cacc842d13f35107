#!/bin/sh
# What may not change: files of the collection and of the system's configuration, and when containers were started.
set -eu
find /opt/blackwell-serving /etc/docker /etc/systemd/system -printf '%p %T@ %m\n' | sort
docker ps --all --quiet --no-trunc | sort | xargs docker inspect --format '{{.Id}} {{.State.StartedAt}}'
