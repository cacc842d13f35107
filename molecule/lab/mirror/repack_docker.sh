#!/bin/sh
# Lays Debian 13's build of Docker's programs out as Docker's packages have them: repack_docker.sh OUT, in a Debian 13 container.
# What Debian 12 cannot run (runc, tini) comes from Debian 12.
set -eu
out=$1 work=$(mktemp -d)
cd "$work"
sed 's/trixie/bookworm/' /etc/apt/sources.list >/etc/apt/sources.list.d/bookworm.list
apt-get update -qq
for suite in trixie bookworm; do
    mkdir -p "$suite"
    (cd "$suite" && apt-get -o APT::Sandbox::User=root download -qq "runc/$suite" "tini/$suite")
done
(cd trixie && apt-get -o APT::Sandbox::User=root download -qq docker.io docker-cli docker-compose docker-buildx containerd)
for suite in trixie bookworm; do
    for package in trixie/docker*.deb trixie/containerd*.deb "$suite"/runc*.deb "$suite"/tini*.deb; do
        dpkg-deb -x "$package" "$suite/root"
    done
    root=$work/$suite/root tree=$out/$suite
    rm -rf "$tree"
    install -D -t "$tree/docker-ce/usr/bin" "$root/usr/sbin/dockerd" "$root/usr/sbin/docker-proxy"
    install -D "$root/usr/bin/tini-static" "$tree/docker-ce/usr/bin/docker-init"
    for unit in docker.service docker.socket; do
        mkdir -p "$tree/docker-ce/usr/lib/systemd/system"
        sed 's#/usr/sbin/dockerd#/usr/bin/dockerd#' "$root/usr/lib/systemd/system/$unit" >"$tree/docker-ce/usr/lib/systemd/system/$unit"
    done
    install -D -t "$tree/docker-ce-cli/usr/bin" "$root/usr/bin/docker"
    install -D -t "$tree/containerd.io/usr/bin" "$root/usr/bin/containerd" "$root/usr/bin/containerd-shim-runc-v2" "$root/usr/bin/ctr"
    install -D -t "$tree/containerd.io/usr/bin" "$root/usr/sbin/runc"
    install -D -m 0644 -t "$tree/containerd.io/usr/lib/systemd/system" "$root/usr/lib/systemd/system/containerd.service"
    for plugin in buildx compose; do
        install -D -t "$tree/docker-$plugin-plugin/usr/libexec/docker/cli-plugins" "$root/usr/libexec/docker/cli-plugins/docker-$plugin"
    done
done
version() { dpkg-deb -f trixie/"$1"_*.deb Version | sed 's/[+~-].*//'; }
printf '{"docker": "%s", "containerd": "%s", "buildx": "%s", "compose": "%s"}\n' \
    "$(version docker.io)" "$(version containerd)" "$(version docker-buildx)" "$(version docker-compose)" >"$out/versions.json"
