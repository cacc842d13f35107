#!/bin/sh
# What services, gateway and monitoring would leave behind, a line each.
exec 2>/dev/null # what is not there says so
docker info >/dev/null || echo 'Docker does not answer'
for name in gateway monitoring exporters stack; do
    ls -d "/opt/blackwell-serving/$name"
done
ls -d /etc/blackwell-serving /etc/systemd/system/blackwell-serving.service /etc/systemd/system/blackwell-firewall.service
nft list table inet blackwell_serving
docker ps --all --format 'container {{.Names}}'
docker volume ls --format 'volume {{.Name}}'
docker image ls --format 'image {{.Repository}}:{{.Tag}}'
exit 0
