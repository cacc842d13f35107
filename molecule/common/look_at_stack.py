"""What serves on this host, seen from outside, as one JSON object: releases, containers, an answer of each service.

current     name of the release that `current` leads to, "" where there is none
releases    status by name; "" where release.json is missing
containers  of the project, by service: id, started, status, health, restarts
answers     by service of the current plan: tokens of an answer to one request; "" and the reason where none came
granted     by service: tokens of KV cache that the engine says it has
"""

import json
import os
import re
import subprocess
import urllib.request

STACK = "/opt/blackwell-serving/stack"
PROJECT = "serving"


def read_json(path):
    try:
        with open(path) as stream:
            return json.load(stream)
    except OSError:
        return {}


def inspected():
    listed = ["docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"]
    ids = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    if not ids:
        return []
    return json.loads(subprocess.run(["docker", "inspect", *ids], capture_output=True, check=True).stdout)


def ask(url, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def answer_of(service, address):
    try:
        said = ask(f"{address}/v1/completions", {"model": service["served_name"], "prompt": "Hello", "max_tokens": 3})
        return json.loads(said)["usage"]["completion_tokens"]
    except (OSError, KeyError, ValueError) as problem:
        return f"none: {problem}"


def granted_to(service, address):
    try:
        if service["engine"] == "sglang":
            return json.loads(ask(f"{address}/server_info"))["max_total_num_tokens"]
        config = re.search(r'cache_config_info{.*block_size="(\d+)".*num_gpu_blocks="(\d+)"', ask(f"{address}/metrics"))
        return int(config[1]) * int(config[2])
    except (OSError, KeyError, ValueError, TypeError) as problem:
        return f"unknown: {problem}"


def look():
    current = os.path.basename(os.readlink(f"{STACK}/current")) if os.path.islink(f"{STACK}/current") else ""
    services = read_json(f"{STACK}/current/plan.json").get("services", [])
    addresses = {service["name"]: f"http://{service['bind_address']}:{service['port']}" for service in services}
    names = sorted(os.listdir(f"{STACK}/releases")) if os.path.isdir(f"{STACK}/releases") else []
    return {
        "current": current,
        "releases": {name: read_json(f"{STACK}/releases/{name}/release.json").get("status", "") for name in names},
        "containers": {
            container["Config"]["Labels"]["com.docker.compose.service"]: {
                "id": container["Id"][:12],
                "started": container["State"]["StartedAt"],
                "status": container["State"]["Status"],
                "health": container["State"].get("Health", {}).get("Status", ""),
                "restarts": container["RestartCount"],
            }
            for container in inspected()
        },
        "answers": {service["name"]: answer_of(service, addresses[service["name"]]) for service in services},
        "granted": {service["name"]: granted_to(service, addresses[service["name"]]) for service in services},
        "planned": {service["name"]: service["kv_tokens"] for service in services},
    }


print(json.dumps(look()))
