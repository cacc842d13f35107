"""A fleet at a glance: what hosts said of themselves, compared with their plans, as figures and as text.

Pure functions, on the control node.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .stack_steps import Container, steps_to

# States of a host, the worst first.
FAILING, UNKNOWN, DIFFERS, EMPTY, AS_PLANNED = "failing", "unknown", "differs", "empty", "as planned"
STATES = (FAILING, UNKNOWN, DIFFERS, EMPTY, AS_PLANNED)
SHOWN_SERVICES_OF = 20
LOW_DISK = 0.05


def host_view(
    host: str, seen: Mapping[str, Any] | None, plan: Mapping[str, Any] | None, problem: str = ""
) -> dict[str, Any]:
    """One host. `seen`: `status` of the module host_status, None where it could not be had, as `problem` says.

    `plan`: {plan, definition} that is declared now; a plan that cannot be made has its `problem` instead.
    """
    if seen is None:
        view = dict.fromkeys(("release", "uptime_seconds"))
        return view | _empty(host) | {"state": UNKNOWN, "problems": [_one_line(problem).removeprefix("Task failed: ")]}
    facts, release = seen["facts"], seen["release"]
    deployed = release["plan"] if release else None
    services = [_service(service, seen) for service in deployed["services"]] if deployed else []
    problems = _host_problems(facts) + _service_problems(services, seen)
    changes = _changes(seen, plan or {})
    if (plan or {}).get("problem"):
        problems.append(f"cannot be planned: {_one_line(plan['problem'])}")
    state = FAILING if problems else DIFFERS if changes else AS_PLANNED if release else EMPTY
    driver = facts["driver"]
    return _empty(host) | {
        "state": state,
        "problems": problems,
        "changes": changes,
        "release": release["name"] if release else None,
        "uptime_seconds": seen["uptime_seconds"],
        "os": facts["os"]["name"],
        "kernel": facts["kernel"]["release"],
        "driver": {name: (driver[name] or {}).get("version") for name in ("loaded", "installed")},
        "versions": {
            "docker": facts["docker"]["version"],
            "compose": facts["docker"]["compose_version"],
            "container_toolkit": facts["toolkit"]["version"],
        },
        "gpus": _gpus(facts["gpus"], deployed),
        "services": services,
        "services_up": sum(is_up(service) for service in services),
        "projects": _projects(seen["containers"], {service["container"] for service in services}),
        "disk": [
            {
                "path": mount["mount"],
                "available_gib": _gib(mount["available_bytes"]),
                "size_gib": _gib(mount["size_bytes"]),
            }
            for mount in {mount["mount"]: mount for mount in facts["mounts"]}.values()
        ],
        "reboot": facts["reboot_reasons"],
    }


def _empty(host: str) -> dict[str, Any]:
    lists = {name: [] for name in ("problems", "changes", "gpus", "services", "projects", "disk", "reboot")}
    return {"host": host, "os": None, "kernel": None, "driver": {}, "versions": {}, "services_up": 0, **lists}


def _gib(size: float) -> float:
    return round(size / 2**30, 2)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _service(planned: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """A deployed service: what was planned, what its container is, what its engine reports."""
    container = next(
        (one for one in seen["containers"] if one["name"] == planned.get("container_name", planned["name"])), {}
    )
    figures = ((seen["memory"] or {}).get("services") or {}).get(planned["name"], {})
    used = seen["gpu_memory"].get(container.get("name"), {})
    image = container.get("image") or ""
    memory = planned["memory"]
    return {
        "name": planned["name"],
        "container": planned.get("container_name", planned["name"]),
        "engine": planned["engine"],
        "engine_version": planned["engine_version"],
        "model": planned["model"],
        "port": planned["port"],
        "gpus": planned["gpus"],
        "image": planned["image"],
        "digest": image.partition("@")[2],
        "image_as_planned": not image or image == planned["image"],
        "state": container.get("status") or "missing",
        "health": container.get("health") or "",
        "exit_code": container.get("exit_code", 0),
        "restarts": container.get("restarts", 0),
        "started": container.get("started") if container.get("status") == "running" else None,
        "planned_kv_tokens": planned["kv_tokens"],
        "kv_tokens": figures.get("kv_tokens"),
        "planned_gib": round(memory["peak"] * len(planned["gpus"]), 2),
        "resident_gib": round(memory["resident"] * len(planned["gpus"]), 2),
        "used_gib": round(sum(used.values()) / 1024, 2) if used else None,
    }


def _host_problems(facts: Mapping[str, Any]) -> list[str]:
    driver, found = facts["driver"], []
    if not facts["pci"]:
        found.append("no NVIDIA GPU is on its PCI bus")
    elif not driver["loaded"]:
        found.append("no driver is loaded")
    if facts["nvidia_smi_error"]:
        found.append(f"nvidia-smi: {_one_line(facts['nvidia_smi_error'])}")
    loaded, installed = ((driver[name] or {}).get("version") for name in ("loaded", "installed"))
    if loaded and installed and loaded != installed:
        found.append(f"driver {loaded} is loaded, {installed} is installed: reboot")
    if not facts["docker"]["running"]:
        found.append("no Docker engine answers")
    for mount in {mount["mount"]: mount for mount in facts["mounts"]}.values():
        if mount["available_bytes"] < LOW_DISK * mount["size_bytes"]:
            free = f"{_gib(mount['available_bytes']):.1f} of {_gib(mount['size_bytes']):.1f} GiB"
            found.append(f"{mount['mount']}: {free} available")
    return found


def _service_problems(services: Sequence[Mapping[str, Any]], seen: Mapping[str, Any]) -> list[str]:
    found = []
    for service in services:
        if service["state"] != "running" or service["health"] not in ("", "healthy"):
            state = f"{service['state']} {service['health']}".strip()
            status = f", status {service['exit_code']}" if service["state"] in ("exited", "dead") else ""
            found.append(f"{service['name']} is {state}{status}")
        if not service["image_as_planned"]:
            found.append(f"{service['name']} runs another image than was planned")
    memory = seen["memory"]
    if memory and memory["status"] == "failed":
        found.append(f"memory: {_one_line(memory['message'])}")
    return found


def _changes(seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What deploy.yml would do, as compose_stack says it."""
    if not wanted.get("definition"):
        return []
    order = sorted(wanted["plan"]["services"], key=lambda service: service["start_order"])
    release = seen["release"] or {}
    names = Container._fields
    project = wanted["plan"]["project_name"]
    containers = [
        Container(**{name: one[name] for name in names}) for one in seen["containers"] if one["project"] == project
    ]
    steps = steps_to(
        wanted["definition"],
        [service["name"] for service in order],
        {service["name"]: service.get("restarts", []) for service in order},
        containers,
        seen.get("images") or {},
        release.get("definition"),
    )
    lines = [f"{step.service}: {step.action}, {step.reason}" for step in steps if step.changes]
    if not lines and release and release["plan"] != wanted["plan"]:
        lines = ["the plan is written anew; no container changes"]
    return lines


def _gpus(gpus: Sequence[Mapping[str, Any]], deployed: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    planned = {gpu["index"]: gpu for gpu in deployed["gpus"]} if deployed else {}
    return [
        {
            "index": gpu["index"],
            "name": gpu["name"],
            "total_gib": None if gpu["memory_total_mib"] is None else round(gpu["memory_total_mib"] / 1024, 2),
            "used_gib": None if gpu["memory_used_mib"] is None else round(gpu["memory_used_mib"] / 1024, 2),
            "planned_gib": planned.get(gpu["index"], {}).get("planned_gib"),
        }
        for gpu in gpus
    ]


def _projects(containers: Sequence[Mapping[str, Any]], engines: set[str]) -> list[dict[str, Any]]:
    """The collection's other projects on the host: gateway, exporters, monitoring."""
    found: dict[str, list[bool]] = {}
    for container in containers:
        if container["name"] not in engines and container["project"].startswith("blackwell-"):
            well = container["status"] == "running" and container["health"] in ("", "healthy")
            found.setdefault(container["project"], []).append(well)
    return [{"name": name, "up": sum(up), "of": len(up)} for name, up in sorted(found.items())]


# ---- the fleet -----------------------------------------------------------------------------------------


def fleet_view(views: Sequence[Mapping[str, Any]], now: str) -> dict[str, Any]:
    """All hosts, the worst first, with sums and the exit status of tools/status."""
    views = sorted(views, key=lambda view: (STATES.index(view["state"]), view["host"]))
    count = {state: sum(view["state"] == state for view in views) for state in STATES}
    services = [service for view in views for service in view["services"]]
    code = 1 if count[FAILING] or count[DIFFERS] else 2 if count[UNKNOWN] else 0
    return {
        "schema": 1,
        "time": now,
        "exit_code": code,
        "hosts_by_state": {state: number for state, number in count.items() if number},
        "services_up": sum(view["services_up"] for view in views),
        "services": len(services),
        "versions": {
            "driver": _census(view["driver"].get("loaded") for view in views),
            "docker": _census(view["versions"].get("docker") for view in views),
            "engines": _census(f"{service['engine']} {service['engine_version']}" for service in services),
        },
        "hosts": views,
    }


def is_up(service: Mapping[str, Any]) -> bool:
    return service["state"] == "running" and service["health"] in ("", "healthy")


def _census(values: Iterable[str | None]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        if value:
            found[value] = found.get(value, 0) + 1
    return dict(sorted(found.items()))


def duration(seconds: float | None) -> str:
    """In its largest unit: 12 d, 3 h, 5 min, 10 s."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{math.floor(seconds / size)} {unit}"
    return f"{max(0, math.floor(seconds))} s"


def since(started: str | None, now: str) -> str:
    """The time from one RFC 3339 moment to another."""
    try:
        begin, end = (datetime.datetime.fromisoformat(text[:19]) for text in (started or "", now))
    except ValueError:
        return ""
    return duration((end - begin).total_seconds())


def fleet_text(fleet: Mapping[str, Any]) -> str:
    """The terminal's page."""
    hosts = fleet["hosts"]
    states = ", ".join(f"{number} {state}" for state, number in fleet["hosts_by_state"].items())
    lines = [
        f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}: {states or 'none'}; "
        f"{fleet['services_up']} of {fleet['services']} services up",
        "",
        *_table(
            ("host", "state", "driver", "gpus", "used / planned GiB", "services", "release", "up"),
            [_host_row(view) for view in hosts],
        ),
    ]
    shown = hosts if len(hosts) <= SHOWN_SERVICES_OF else []
    rows = [(view["host"], *_service_row(service, fleet["time"])) for view in shown for service in view["services"]]
    if rows:
        header = ("host", "service", "engine", "state", "up", "restarts", "tokens / planned", "GiB / planned", "image")
        lines += ["", *_table(header, rows)]
    for title, key in (("What is wrong", "problems"), ("What deploy.yml would change", "changes")):
        found = [f"  {view['host']}: {text}" for view in hosts for text in view[key]]
        if found:
            lines += ["", title, *found]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _host_row(view: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        view["host"],
        view["state"],
        view["driver"].get("loaded") or "-",
        gpu_names(view["gpus"]) or "-",
        "  ".join(f"{_size(gpu['used_gib'])} / {_size(gpu['planned_gib'])}" for gpu in view["gpus"]) or "-",
        f"{view['services_up']} of {len(view['services'])}" if view["services"] else "-",
        view["release"] or "-",
        duration(view["uptime_seconds"]) or "-",
    )


def gpu_names(gpus: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{number} x {name}" for name, number in _census(gpu["name"] for gpu in gpus).items())


def _service_row(service: Mapping[str, Any], now: str) -> tuple[str, ...]:
    tokens = "-" if service["kv_tokens"] is None else f"{service['kv_tokens']:,}"
    return (
        service["name"],
        f"{service['engine']} {service['engine_version']}",
        f"{service['state']} {service['health']}".strip(),
        since(service["started"], now) or "-",
        str(service["restarts"]),
        f"{tokens} / {service['planned_kv_tokens']:,}",
        f"{_size(service['used_gib'])} / {_size(service['planned_gib'])}",
        short_image(service),
    )


def short_image(service: Mapping[str, Any]) -> str:
    """The image's name with twelve digits of the digest that runs, or that it has none."""
    name = service["image"].partition("@")[0]
    digest = service["digest"].partition(":")[2][:12]
    return f"{name}@{digest}" if digest else f"{name} (by tag)"


def _size(gib: float | None) -> str:
    return "-" if gib is None else f"{gib:.2f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
