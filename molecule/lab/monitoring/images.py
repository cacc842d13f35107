#!/usr/bin/env python3
"""Put the images of monitoring into the lab's registry, under the names of catalog/monitoring.yml; print their digests.

Prometheus, Alertmanager and node_exporter are Debian's. The GPU exporter and Grafana are stand-ins: no package
repository has either of them.
"""

import json
import shutil
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import lab  # noqa: E402

# Debian's Alertmanager reads its default templates from files.
TEMPLATES = [f"/usr/share/prometheus/alertmanager/{name}.tmpl" for name in ("default", "email")]
DEBIAN = {
    "prometheus": {
        "packages": ["prometheus", "promtool"],
        "programs": {"/usr/bin/prometheus": "/usr/bin/prometheus", "/usr/bin/promtool": "/usr/bin/promtool"},
        "data": "/prometheus",
    },
    "alertmanager": {
        "packages": ["prometheus-alertmanager"],
        "programs": {"/usr/bin/prometheus-alertmanager": "/usr/bin/alertmanager", "/usr/bin/amtool": "/usr/bin/amtool"}
        | {path: path for path in TEMPLATES},
        "data": "/alertmanager",
    },
    "node_exporter": {
        "packages": ["prometheus-node-exporter"],
        "programs": {"/usr/bin/prometheus-node-exporter": "/usr/bin/node_exporter"},
        "data": "/unused",
    },
}
STAND_INS = {
    "nvidia_gpu_exporter": {"program": "gpu_exporter", "user": "0", "data": "/unused"},
    "grafana": {"program": "grafana", "user": "472", "data": "/var/lib/grafana"},
}


def packages() -> dict[str, Path]:
    """Debian's packages, fetched once."""
    folder = lab.CACHE / "monitoring-packages"
    names = [name for entry in DEBIAN.values() for name in entry["packages"]]
    if not all(list(folder.glob(f"{name}_*.deb")) for name in names):
        lab.note(f"Fetching Debian's packages {', '.join(names)}")
        folder.mkdir(parents=True, exist_ok=True)
        fetch = f"apt-get update -qq && cd /out && apt-get -o APT::Sandbox::User=root download -qq {' '.join(names)}"
        lab.docker("run", "--rm", "--volume", f"{folder}:/out", lab.BASE, "sh", "-c", fetch)
    return {name: next(folder.glob(f"{name}_*.deb")) for name in names}


def build(key: str, packages: list[Path]) -> str:
    """Build the image of a key of the catalogue; returns its id."""
    image, base = f"{lab.NETWORK}-monitoring:{key}", identity("blackwell-lab-python:trixie")
    if packages:
        entry, recipe = DEBIAN[key], "monitoring/program.Dockerfile"
        words = " ".join(f"{source}={target}" for source, target in entry["programs"].items())
        arguments = {"PROGRAMS": words, "DATA": entry["data"], "ENTRY": next(iter(entry["programs"].values()))}
        content = [*[package.name for package in packages], (HERE / "pick").read_bytes()]

        def fill(context: Path) -> None:
            (context / "packages").mkdir()
            for package in packages:
                shutil.copy(package, context / "packages")
            shutil.copy(HERE / "pick", context)
    else:
        entry, recipe = STAND_INS[key], "monitoring/stand_in.Dockerfile"
        arguments = {"USER": entry["user"], "DATA": entry["data"]}
        content = [(HERE / entry["program"]).read_bytes()]

        def fill(context: Path) -> None:
            shutil.copy(HERE / entry["program"], context / "program")

    inputs = lab.digest(base, json.dumps(arguments), (HERE.parent / recipe).read_bytes(), *content)
    lab.build_if_new(image, inputs, fill, recipe, *[f"--build-arg={name}={value}" for name, value in arguments.items()])
    return identity(image)


def identity(image: str) -> str:
    return lab.docker("image", "inspect", "--format", "{{.Id}}", image).strip()


def main() -> None:
    entries = yaml.safe_load((HERE.parents[2] / "catalog/monitoring.yml").read_text())["images"]
    with lab.one_at_a_time():
        lab.ensure_network()
        lab.ensure_registry()
        debs = packages()
        images = {key: build(key, [debs[name] for name in entry["packages"]]) for key, entry in DEBIAN.items()}
        images |= {key: build(key, []) for key in STAND_INS}
        print(json.dumps({key: lab.push(entries[key]["reference"], image) for key, image in images.items()}, indent=2))


if __name__ == "__main__":
    main()
