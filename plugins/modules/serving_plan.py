#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: serving_plan
short_description: Plan which LLM services share which GPU of a host
version_added: 0.1.0
description:
  - Computes, for the GPUs and services that are declared for a host, which service runs on which GPU, with which memory
    fraction and token cap, which options and in which order, and writes the result on the control node.
  - The host is never contacted.
  - A plan that does not fit, or a declaration that is wrong, fails with one message per problem. Then only
    C(plan.json) is written, with the verdict, and older files of that directory are removed.
options:
  mode:
    description: Whether the plan is a preview or will be applied.
    type: str
    choices: [preview, apply]
    default: preview
  gpus:
    description:
      - List of GPUs in the order of their index. An item is a key of C(catalog/gpus.yml), or a dictionary with C(gpu),
        C(measured_total_gib) and C(measured_free_gib).
    type: raw
    required: true
  services:
    description: List of services; see the role C(blackwell.serving.serving) for the keys of an item.
    type: raw
    required: true
  service_overrides:
    description:
      - What this host changes of O(services). For each variable that it comes from, by its name, a dictionary by the
        name of a service, with the keys to change, or with C(absent) true where the host does not run it.
      - They are laid over the services in the order in which they stand here.
    type: dict
    default: {}
  bind_address:
    description: Address of the host on which the services' ports are published.
    type: str
    default: 127.0.0.1
  gpu_request:
    description: How the Compose file asks for GPUs, as CDI devices or as devices of the NVIDIA container runtime.
    type: str
    choices: [cdi, deploy]
    default: cdi
  output_dir:
    description: Directory on the control node for this host's files.
    type: path
    required: true
  project_name:
    description: Name of the Compose project.
    type: str
    default: serving
  image_locks:
    description: The content that each image's tag stands for, a dictionary with C(digest) by reference.
    type: dict
    default: {}
  models_offline:
    description: Whether the models are in the host's cache before the engines start, which then do not ask the Hub.
    type: bool
    default: false
  fleet_interface:
    description:
      - Network interface of the host towards the hosts with which it runs a service together (C(nodes) of a service).
        Their addresses are their variables C(serving_fleet_address).
    type: str
    default: ""
  tuned:
    description: Options that were found by measuring, by the name of the service; see the role's C(serving_tuned).
    type: raw
    default: {}
attributes:
  check_mode:
    support: full
    description: Computes everything and writes nothing.
  diff_mode:
    support: full
    description: Shows what would change in C(compose.yaml) and C(plan.txt).
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Plan two services for one RTX 5090
  blackwell.serving.serving_plan:
    gpus: [rtx_5090]
    services:
      - {name: tinyllama, engine: sglang, model: TinyLlama/TinyLlama-1.1B-Chat-v1.0, port: 30001}
      - {name: yi, engine: vllm, model: 01-ai/Yi-6B, port: 30003, context_length: 4096}
    output_dir: build/{{ inventory_hostname }}
  register: planned
"""

RETURN = r"""
plan:
  description: The plan, as in C(plan.json).
  returned: always
  type: dict
text:
  description: The plan for people, as in C(plan.txt), or the list of problems.
  returned: always
  type: str
summary:
  description: One line with host, verdict and use of memory.
  returned: always
  type: str
output_dir:
  description: Where the files are.
  returned: always
  type: str
files:
  description: Names of the files in O(output_dir).
  returned: always
  type: list
  elements: str
compose:
  description: The text of C(compose.yaml), empty where the plan does not fit; also in check mode, which writes no file.
  returned: always
  type: str
"""
