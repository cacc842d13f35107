#!/usr/bin/python
"""Measure the speed of services that run, with the load generator of an engine's image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_benchmark
short_description: Measure tokens per second and latencies of services that run
version_added: 0.4.0
description:
  - Runs a load generator in a container of its own beside each service. It shares the network and, for reading, the
    volumes of the service's container, so that it needs no port and finds the tokenizer in the model cache. It sees no
    GPU and no network beyond that, and is removed in the end.
  - The generator runs once for each command of an item of O(runs), one after another. The items run at the same time.
  - Fails where a service does not run, stops under the load, or answers none of its requests, with the cause that its
    log tells.
options:
  runs:
    description:
      - The loads, as the filter C(blackwell.serving.benchmark_runs) makes them, with C(service), C(engine),
        C(container), C(image) (that has the generator), C(commands) (each with its program first), C(seeds) (the name
        of the file that a command writes into C(/results) is its seed with C(.json)), C(load) and C(figures) (their
        names here, and in that file).
    type: list
    elements: dict
    required: true
  signatures:
    description: The entries of C(catalog/failures.yml), with which a failure is explained.
    type: list
    elements: dict
    default: []
  timeout:
    description: Seconds that one command may run.
    type: int
    default: 3600
  docker_socket:
    description: Socket of the Docker engine.
    type: path
    default: /var/run/docker.sock
attributes:
  check_mode:
    support: full
    description: Measures nothing.
  diff_mode:
    support: none
    description: Figures are no state of a host.
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Measure a service
  blackwell.serving.service_benchmark:
    runs: "{{ [(plan | blackwell.serving.benchmark_runs([], [1, 16], 4, 3, 7, 512, 128)).runs | first] }}"
"""

RETURN = r"""
results:
  description:
    - For each item of O(runs) its C(service), C(load) and C(seeds), the figures of each of its C(rounds), their
      C(medians), and the C(problem) where it failed.
  returned: always, except in check mode
  type: list
  elements: dict
lines:
  description: A line for people on each item.
  returned: always, except in check mode
  type: list
  elements: str
  sample: ["qwen, 16 at once: 1,204.3 tokens/s, first token 89.9 ms, then 3.57 ms each"]
failure:
  description: Of the first item that failed, C(service), C(problem), C(findings) and the last lines of its C(log).
  returned: when one failed
  type: dict
"""

import concurrent.futures
import os
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.diagnosis import diagnose, signatures
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.load_generator import (
    GeneratorProblem,
    medians,
    parse,
    summary_line,
)

LOG_LINES = 40
# No GPU, and no question to the Hub: the tokenizer is in the cache, which is read-only here.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "NVIDIA_VISIBLE_DEVICES": "void",
    "HF_HUB_OFFLINE": "1",
    "HF_MODULES_CACHE": "/tmp/modules",
}


class Failed(Exception):
    """The service, or the generator, did not do its part."""


class Measurement:
    """One item of `runs` on this host."""

    def __init__(self, module: AnsibleModule, host: Host, run: dict) -> None:
        self.host, self.run = host, run
        self.socket, self.timeout = module.params["docker_socket"], module.params["timeout"]
        self.name = f"{run['container']}-benchmark"
        self.rounds: list = []

    def state(self) -> tuple:
        """What differs once the service has stopped: container, start, restarts. Fails where it does not run."""
        (found,) = self.host.docker_api(self.socket, [f"/containers/{self.run['container']}/json"])
        if found is None:
            raise Failed("it has no container: deploy it first")
        state = found["State"]
        health = (state.get("Health") or {}).get("Status", "healthy")
        if state["Status"] != "running" or health == "starting":
            raise Failed(f"it does not serve: its container is {state['Status']}, {health}")
        return found["Id"], state["StartedAt"], found["RestartCount"]

    def measure(self) -> None:
        """All rounds. Raises Failed."""
        before = self.state()
        for command, seed in zip(self.run["commands"], self.run["seeds"]):
            problem = ""
            try:
                self.rounds.append(parse(self.generate(command, seed), self.run["figures"], self.run["load"]))
            except (GeneratorProblem, Failed) as found:
                problem = str(found)
            if self.state() != before:
                raise Failed("it stopped under this load")
            if problem:
                raise Failed(problem)
            if not self.rounds[-1]["completed"]:
                raise Failed(f"it answered none of {self.run['load']['requests']} requests")

    def generate(self, command: list, seed: int) -> str:
        """What the generator wrote."""
        results = tempfile.mkdtemp(prefix="benchmark-")
        run = self.run
        options = ["--rm", "--name", self.name, "--pull", "never", "--network", f"container:{run['container']}"]
        options += ["--volumes-from", f"{run['container']}:ro", "--volume", f"{results}:/results"]
        options += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--entrypoint", command[0]]
        for name, value in ENVIRONMENT.items():
            options += ["--env", f"{name}={value}"]
        try:
            self.remove()
            done = self.host.run(["docker", "run", *options, run["image"], *command[1:]], self.timeout)
            text = self.host.read(os.path.join(results, f"{seed}.json"))
        finally:
            self.remove()
            shutil.rmtree(results, ignore_errors=True)
        if done.status != 0 or text is None:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
            raise Failed(f"the load generator ended with status {done.status}: {' / '.join(last) or 'it said nothing'}")
        return text

    def remove(self) -> None:
        """Of an interrupted run: as long as its container is there, it sends requests."""
        self.host.run(["docker", "rm", "--force", self.name])

    def log(self) -> list:
        output = self.host.run(["docker", "logs", "--tail", "2000", self.run["container"]])
        return [*output.stdout.splitlines(), *output.stderr.splitlines()]


def measured(measurement: Measurement) -> dict:
    run = measurement.run
    result = {key: run[key] for key in ("service", "load", "seeds")}
    try:
        measurement.measure()
    except Failed as problem:
        return {**result, "rounds": measurement.rounds, "problem": str(problem)}
    return {**result, "rounds": measurement.rounds, "medians": medians(measurement.rounds)}


def line_of(result: dict) -> str:
    if "medians" in result:
        return summary_line(result["service"], result["load"], result["medians"])
    return f"{result['service']}, {result['load']['concurrency']} at once: {result['problem']}"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "runs": {"type": "list", "elements": "dict", "required": True},
            "signatures": {"type": "list", "elements": "dict", "default": []},
            "timeout": {"type": "int", "default": 3600},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False)
    host = Host()
    measurements = [Measurement(module, host, run) for run in module.params["runs"]]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(measurements))) as pool:
        results = list(pool.map(measured, measurements))
    lines = [line_of(result) for result in results]
    failed = next((index for index, result in enumerate(results) if "problem" in result), None)
    if failed is None:
        module.exit_json(changed=False, results=results, lines=lines)
    log = measurements[failed].log()
    run, known = measurements[failed].run, signatures(module.params["signatures"])
    findings = diagnose(log, known, run["engine"])
    failure = {"service": run["service"], "problem": results[failed]["problem"], "findings": findings}
    causes = [f"  cause   {finding['cause']}\n  remedy  {finding['remedy']}" for finding in findings[:3]]
    module.fail_json(
        msg="\n".join([lines[failed], *causes]),
        results=results,
        lines=lines,
        failure={**failure, "log": log[-LOG_LINES:]},
    )


if __name__ == "__main__":
    main()
