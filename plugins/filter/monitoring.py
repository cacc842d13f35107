"""Filters that make the files of monitoring; what the collection ships of them stays on the control node."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from ansible_collections.blackwell.serving.plugins.module_utils import monitoring_files
from ansible_collections.blackwell.serving.plugins.module_utils.stack_metrics import host_metrics
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import COLLECTION_ROOT

SHIPPED = COLLECTION_ROOT / "roles/monitoring/files"
NOBODY = {"owner": 65534, "group": 65534, "mode": "0400"}  # the user of Prometheus' and Alertmanager's images
GRAFANA = {"owner": 472, "group": 0, "mode": "0400"}


def monitoring_project(
    hostvars: Mapping[str, Mapping[str, Any]],
    gpu_hosts: Sequence[str],
    monitor: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """``files`` and ``secrets`` of the module compose_project for the monitor; ``refused``: why they cannot be made."""
    try:
        found = monitoring_files.targets(_hosts(hostvars, gpu_hosts), monitor)
        rules = _rules(settings)
    except monitoring_files.MonitoringError as problem:
        return {"files": [], "secrets": [], "refused": str(problem)}
    prometheus = {"path": "prometheus/prometheus.yml", "content": settings["prometheus"]}
    alertmanager = _yaml(settings["alertmanager"])
    files = [{"path": f"prometheus/rules/{name}", "content": text} for name, text in rules.items()]
    files += [
        {"path": f"prometheus/targets/{job}.json", "content": json.dumps(targets, indent=2) + "\n"}
        for job, targets in found.items()
    ]
    secrets = [{"path": "alertmanager/alertmanager.yml", "content": alertmanager, **NOBODY}]
    if settings["prometheus_secret"]:
        secrets.append({**prometheus, **NOBODY})
    else:
        files.append(prometheus)
    if settings["grafana"]:
        files += [{"path": f"grafana/{name}", "content": text} for name, text in _grafana(settings).items()]
        password = settings["grafana_admin_password"]
        secrets.append({"path": "secrets/grafana_admin_password", "content": password, **GRAFANA})
    return {"files": files, "secrets": secrets, "refused": ""}


def _hosts(hostvars: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is known of each GPU host: what it serves, or, where it was not reached, what it was declared to serve."""
    found = {}
    for name in names:
        known = hostvars[name].get("__monitoring_known") or {}
        found[name] = {
            "address": known.get("address", hostvars[name].get("serving_fleet_address") or ""),
            "ports": known.get("ports", monitoring_files.DEFAULT_PORTS),
            "services": known.get("services", hostvars[name].get("serving_services") or []),
        }
    return found


def _rules(settings: Mapping[str, Any]) -> dict[str, str]:
    """As they are in the collection, with their comments, where nothing was changed."""
    text = {name: (SHIPPED / "rules" / name).read_text("utf-8") for name in ("recording.yml", "alerts.yml")}
    if settings["alerts"]:
        text["alerts.yml"] = _yaml(monitoring_files.alert_rules(yaml.safe_load(text["alerts.yml"]), settings["alerts"]))
    if settings["extra_rules"]:
        text["extra.yml"] = _yaml({"groups": settings["extra_rules"]})
    return text


def _grafana(settings: Mapping[str, Any]) -> dict[str, str]:
    files = {
        "provisioning/datasources/prometheus.yml": settings["datasource"],
        "provisioning/dashboards/blackwell.yml": (SHIPPED / "dashboards.yml").read_text("utf-8"),
    }
    for path in sorted((SHIPPED / "dashboards").glob("*.yml")):
        files[f"dashboards/{path.stem}.json"] = monitoring_files.dashboard(yaml.safe_load(path.read_text("utf-8")))
    return files


def _yaml(content: Any) -> str:
    return yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False, allow_unicode=True, width=1000)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "monitoring_project": monitoring_project,
            "gpu_exporter": monitoring_files.gpu_exporter,
            "host_metrics": host_metrics,
        }
