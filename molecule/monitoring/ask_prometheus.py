#!/usr/bin/env python3
"""What Prometheus on this host knows.

usage: ask_prometheus.py QUERY       the samples, as JSON: [{labels..., value}]
       ask_prometheus.py --panels    every query of the provisioned dashboards that has no data, one a line
"""

import json
import sys
import urllib.parse
import urllib.request
from pathlib import Path

ADDRESS = "http://127.0.0.1:9090/api/v1/query"
DASHBOARDS = Path("/opt/blackwell-serving/monitoring/grafana/dashboards")


def ask(query: str) -> list[dict]:
    address = f"{ADDRESS}?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    return [one["metric"] | {"value": one["value"][1]} for one in found]


def empty_panels() -> None:
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                query = target["expr"]
                for name, value in {"$host": ".*", "$service": ".*", "$__rate_interval": "1m"}.items():
                    query = query.replace(name, value)
                if not ask(query):
                    print(f"{path.stem}: {panel['title']}: {query}")


if sys.argv[1:] == ["--panels"]:
    empty_panels()
else:
    print(json.dumps(ask(sys.argv[1])))
