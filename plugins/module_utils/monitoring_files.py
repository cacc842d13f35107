"""The files of monitoring: targets for Prometheus, alert rules as a fleet wants them, dashboards for Grafana.

Pure functions, on the control node.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

DATA_SOURCE = {"type": "prometheus", "uid": "blackwell-prometheus"}
ROW_HEIGHT = {"stat": 4}
PANEL_HEIGHT, DASHBOARD_WIDTH = 8, 24
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_PORTS = {"node": 9100, "gpu": 9835}


class MonitoringError(Exception):
    """What a declaration asks for and cannot have; the message says what to do."""


def gpu_exporter(facts: Mapping[str, Any]) -> str:
    """The exporter for this host's GPUs: DCGM supports data centre cards in full, other cards in part."""
    names = [gpu["name"] for gpu in facts["gpus"]]
    if not names:
        return "none" if not facts["pci"] else "nvidia_gpu_exporter"
    return "nvidia_gpu_exporter" if any(re.search(r"GeForce|RTX|GB10", name) for name in names) else "dcgm"


def targets(hosts: Mapping[str, Mapping[str, Any]], monitor: str) -> dict[str, list[dict[str, Any]]]:
    """Targets of Prometheus on `monitor`, by job.

    `hosts`: by name {address, services: [{name, engine, port, bind_address}], ports: {job: port} of its exporters}.
    Raises MonitoringError for a host that listens on its own loopback address alone.
    """
    found: dict[str, list[dict[str, Any]]] = {"engines": [], "node": [], "gpu": []}
    unreachable = []
    for host, known in sorted(hosts.items()):
        address = known["address"] or "127.0.0.1"
        if address in LOOPBACK and host != monitor:
            unreachable.append(host)
            continue
        for job, port in known["ports"].items():
            found[job].append({"targets": [_joined(address, port)], "labels": {"host": host}})
        for service in known["services"]:
            labels = {"host": host, "service": service["name"], "engine": service["engine"]}
            listens = service.get("bind_address") or address
            reached = address if listens in ("0.0.0.0", "::") else listens
            found["engines"].append({"targets": [_joined(reached, service["port"])], "labels": labels})
    if unreachable:
        raise MonitoringError(
            f"{monitor} cannot reach {', '.join(unreachable)}: they listen on their loopback address alone. Set "
            "serving_fleet_address of each to its private address"
        )
    return found


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def alert_rules(rules: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The rules with the keys of single alerts replaced, or, with a false value, without them.

    Raises MonitoringError for an alert that there is not, so that a typo is no silent alert.
    """
    result = copy.deepcopy(dict(rules))
    known = {rule["alert"] for group in result["groups"] for rule in group["rules"] if "alert" in rule}
    wrong = sorted(set(changes) - known)
    if wrong:
        raise MonitoringError(
            f"monitoring_alerts: there is no alert {', '.join(wrong)}; there are {', '.join(sorted(known))}"
        )
    for group in result["groups"]:
        kept = [rule for rule in group["rules"] if changes.get(rule.get("alert"), True) is not False]
        for rule in kept:
            for key, value in (changes.get(rule.get("alert")) or {}).items():
                if key not in ("expr", "for", "labels", "annotations", "keep_firing_for"):
                    raise MonitoringError(
                        f"monitoring_alerts: {rule['alert']}: unknown key {key}; allowed: expr, for, keep_firing_for, "
                        "labels, annotations"
                    )
                rule[key] = {**rule.get(key, {}), **value} if isinstance(value, Mapping) else value
        group["rules"] = kept
    result["groups"] = [group for group in result["groups"] if group["rules"]]
    return result


def dashboard(description: Mapping[str, Any]) -> str:
    """A dashboard as Grafana takes it, from {title, uid, variables, panels}."""
    panels, x, y, tallest = [], 0, 0, 0
    for number, panel in enumerate(description["panels"], 1):
        kind = panel.get("type", "timeseries")
        width, height = panel["width"], ROW_HEIGHT.get(kind, PANEL_HEIGHT)
        if x + width > DASHBOARD_WIDTH:
            x, y, tallest = 0, y + tallest, 0
        panels.append(_panel(number, kind, panel, {"x": x, "y": y, "w": width, "h": height}))
        x, tallest = x + width, max(tallest, height)
    content = {
        "uid": description["uid"],
        "title": description["title"],
        "tags": ["blackwell.serving"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_variable(variable) for variable in description["variables"]]},
        "panels": panels,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _panel(number: int, kind: str, panel: Mapping[str, Any], place: Mapping[str, int]) -> dict[str, Any]:
    instant = kind in ("stat", "table")
    defaults: dict[str, Any] = {"unit": panel.get("unit", "short"), "min": 0}
    if kind == "stacked":
        defaults["custom"] = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 30}
    if "alarm" in panel:
        steps: Sequence[dict[str, Any]] = [{"color": "green", "value": None}, {"color": "red", "value": panel["alarm"]}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "id": number,
        "type": "timeseries" if kind == "stacked" else kind,
        "title": panel["title"],
        "datasource": DATA_SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {} if instant else {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": DATA_SOURCE,
                "expr": query["expr"],
                "legendFormat": query.get("legend", ""),
                "instant": instant,
                "range": not instant,
                **({"format": "table"} if kind == "table" else {}),
            }
            for position, query in enumerate(panel["queries"])
        ],
    }


def _variable(variable: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": variable["name"],
        "type": "query",
        "datasource": DATA_SOURCE,
        "definition": variable["query"],
        "query": {"query": variable["query"], "refId": variable["name"]},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }
