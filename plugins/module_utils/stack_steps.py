"""What has to be done so that a host runs the services that were planned for it: compared, ordered, explained.

Pure functions; they run on the host, under its own Python, 3.9 or newer. A definition is a Compose file as a
dictionary, anchors resolved; a container is what GET /containers/<id>/json of the Docker engine answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SPEC_LABEL = "blackwell.serving.spec"
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
ONE_OFF_LABEL = "com.docker.compose.oneoff"
# What only says in which order services start is no reason to make one of them anew.
ORDER_KEYS = frozenset({"depends_on"})
SECRET = re.compile(r"(token|secret|password|passwd|api_?key|credential)", re.IGNORECASE)
MASK = "********"


class Container(NamedTuple):
    """A container of the project. `spec`: the digest that it was made from; empty where something else made it."""

    id: str
    service: str
    name: str
    spec: str
    image_id: str
    status: str
    health: str


class Step(NamedTuple):
    """What happens to a service: create, recreate, start, restart, wait (it is starting by itself) or remove."""

    service: str
    action: str
    reason: str

    @property
    def changes(self) -> bool:
        return self.action != "wait"

    @property
    def clears(self) -> bool:
        """Whether containers of the service go before anything starts."""
        return self.action in ("recreate", "remove")


def canonical(service: Mapping[str, Any]) -> str:
    """A service of the definition as one text that is the same whenever the same container results."""
    content = {key: value for key, value in service.items() if key not in ORDER_KEYS}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def spec_digest(service: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(service).encode()).hexdigest()


def containers_of(project: str, inspected: Iterable[Mapping[str, Any] | None]) -> list[Container]:
    """The project's containers; those of `docker compose run` are left out."""
    found = []
    for container in inspected:
        labels = ((container or {}).get("Config") or {}).get("Labels") or {}
        if labels.get(PROJECT_LABEL) != project or labels.get(ONE_OFF_LABEL) == "True":
            continue
        state = container.get("State") or {}
        found.append(
            Container(
                id=container["Id"],
                service=labels.get(SERVICE_LABEL, ""),
                name=(container.get("Name") or "").lstrip("/"),
                spec=labels.get(SPEC_LABEL, ""),
                image_id=container.get("Image") or "",
                status=state.get("Status") or "",
                health=(state.get("Health") or {}).get("Status") or "",
            )
        )
    return sorted(found, key=lambda container: container.name)


def steps_to(
    definition: Mapping[str, Any],
    order: Sequence[str],
    restarts: Mapping[str, Sequence[str]],
    containers: Sequence[Container],
    images: Mapping[str, str | None],
    before: Mapping[str, Any] | None = None,
) -> list[Step]:
    """The steps, removals first and then in start order; empty where the host runs what the definition says.

    `restarts`: services that have to start again after a service started, because its share of the memory has no cap.
    `images`: id on the host by reference, None where it is missing. `before`: the definition that is deployed, with
    which a reason names the keys that differ.
    """
    services = definition["services"]
    present: dict[str, list[Container]] = {}
    for container in containers:
        present.setdefault(container.service, []).append(container)
    steps = [
        Step(name, "remove", "it is not in the plan any more" if name else "it belongs to no service")
        for name in sorted(present)
        if name not in services
    ]
    moved: dict[str, str] = {}
    for name in order:
        step = _step(name, services[name], present.get(name, []), images, (before or {}).get("services", {}).get(name))
        if step is None and name in moved:
            step = Step(name, "restart", f"{moved[name]} starts anew, and takes its memory before this one")
        if step is None:
            continue
        steps.append(step)
        if step.changes:
            for later in restarts.get(name, ()):
                moved.setdefault(later, name)
    return steps


def _step(
    name: str,
    service: Mapping[str, Any],
    containers: Sequence[Container],
    images: Mapping[str, str | None],
    before: Mapping[str, Any] | None,
) -> Step | None:
    if not containers:
        return Step(name, "create", "it has no container")
    if len(containers) > 1:
        return Step(name, "recreate", f"it has {len(containers)} containers")
    (container,) = containers
    if container.spec != spec_digest(service):
        return Step(name, "recreate", _difference(service, before) if container.spec else "it was not made from a plan")
    image_id = images.get(service["image"])
    if image_id is not None and image_id != container.image_id:
        return Step(name, "recreate", f"{service['image']} is another image now ({_short(image_id)})")
    if container.status == "running":
        if container.health == "starting":
            return Step(name, "wait", "it is starting")
        if container.health == "unhealthy":
            return Step(name, "restart", "it is unhealthy")
        return None
    if container.status in ("restarting", "paused"):
        return Step(name, "restart", f"it is {container.status}")
    return Step(name, "start", "it is not running" if container.status == "created" else f"it has {container.status}")


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12] or digest[:12]


def _difference(service: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """Which keys of the service changed; arguments of its command by name."""
    if before is None or canonical(before) == canonical(service):
        return "its container was made from another plan"
    keys = [key for key in sorted({*service, *before} - ORDER_KEYS) if service.get(key) != before.get(key)]
    words = []
    for key in keys:
        if key == "command":
            words += changed_arguments(before.get("command") or [], service.get("command") or [])
        else:
            words.append(key)
    return f"changed: {', '.join(words)}"


def changed_arguments(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """`--flag old -> new`, `--flag (new)` or `--flag (gone)` for each argument that differs."""
    old, new = (dict(argument.partition("=")[::2] for argument in command) for command in (before, after))
    words = []
    for flag in [*new, *(flag for flag in old if flag not in new)]:
        if flag not in old:
            words.append(f"{flag} (new)")
        elif flag not in new:
            words.append(f"{flag} (gone)")
        elif old[flag] != new[flag]:
            words.append(f"{flag} {old[flag]} -> {new[flag]}")
    return words or ["order of arguments"]


def masked(service: Mapping[str, Any]) -> dict[str, Any]:
    """The service with the values of environment variables hidden that look like secrets."""
    environment = service.get("environment")
    if not isinstance(environment, Mapping):
        return dict(service)
    hidden = {key: MASK if SECRET.search(key) else value for key, value in environment.items()}
    return {**service, "environment": hidden}


def diff_of(before: Mapping[str, Any] | None, after: Mapping[str, Any], steps: Sequence[Step]) -> dict[str, str]:
    """Before and after of the services that change, as `--diff` shows them, with the steps above."""
    texts = []
    for definition in (before or {"services": {}}, after):
        lines = []
        for step in steps:
            service = definition["services"].get(step.service)
            if service is not None and step.action in ("create", "recreate", "remove"):
                lines.append(f"{step.service}:")
                lines += [f"  {line}" for line in json.dumps(masked(service), indent=2, sort_keys=True).splitlines()]
        texts.append(lines)
    texts[1] = [f"{step.service}: {step.action}, {step.reason}" for step in steps] + texts[1]
    return {
        "before_header": "services that are deployed",
        "after_header": "services of the plan",
        "before": "".join(f"{line}\n" for line in texts[0]),
        "after": "".join(f"{line}\n" for line in texts[1]),
    }


def labels_file(definition: Mapping[str, Any], images: Mapping[str, str] | None = None) -> str:
    """compose.override.yaml: on each container the digest of what it is made from, and by service what runs in place of
    the Compose file's image.
    """
    lines = ["# Written by blackwell.serving. Each container is labelled with what it was made from.", "services:"]
    for name, service in definition["services"].items():
        image = [f"    image: {images[name]}"] if images and name in images else []
        lines += [f"  {name}:", *image, "    labels:", f"      {SPEC_LABEL}: {spec_digest(service)}"]
    return "\n".join(lines) + "\n"


def name_conflicts(
    definition: Mapping[str, Any], project: str, everything: Iterable[Mapping[str, Any] | None]
) -> list[str]:
    """Containers of others that have the name of one of ours, each as a sentence."""
    wanted = {service.get("container_name"): name for name, service in definition["services"].items()}
    found = []
    for container in everything:
        name = ((container or {}).get("Name") or "").lstrip("/")
        labels = ((container or {}).get("Config") or {}).get("Labels") or {}
        if name in wanted and labels.get(PROJECT_LABEL) != project:
            owner = f"project {labels[PROJECT_LABEL]}" if labels.get(PROJECT_LABEL) else "no Compose project"
            found.append(f"service {wanted[name]} wants the container name {name}, which a container of {owner} has")
    return sorted(found)


def port_conflicts(
    services: Iterable[Mapping[str, Any]], project: str, everything: Iterable[Mapping[str, Any] | None]
) -> list[str]:
    """Running containers of others that publish a port of one of the planned services, each as a sentence."""
    wanted = {service["port"]: service for service in services}
    found = set()
    for container in everything:
        if (((container or {}).get("Config") or {}).get("Labels") or {}).get(PROJECT_LABEL) == project:
            continue
        published = ((container or {}).get("NetworkSettings") or {}).get("Ports") or {}
        for binding in (binding for bindings in published.values() for binding in bindings or ()):
            service = wanted.get(int(binding["HostPort"]))
            if service and _same_address(service["bind_address"], binding.get("HostIp") or ""):
                name = container["Name"].lstrip("/")
                found.add(f"service {service['name']} wants port {service['port']}, which container {name} has")
    return sorted(found)


def _same_address(one: str, other: str) -> bool:
    """Whether one port cannot be had at both; 0.0.0.0 and :: are every address."""
    return one == other or bool({one, other} & {"", "0.0.0.0", "::"})
