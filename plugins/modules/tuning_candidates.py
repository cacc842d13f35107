#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tuning_candidates
short_description: Plan the other options of an engine that are worth trying for a service
version_added: 0.4.0
description:
  - Takes the candidates of C(catalog/tuning.yml) one by one, and plans the host with each. What the engine version does
    not have, what the service decides itself, what it has already and what does not fit is left out, with the reason.
  - The host is never contacted. The options are those of M(blackwell.serving.serving_plan), O(service) apart.
options:
  service:
    description: Name of the service.
    type: str
    required: true
  mode:
    description: Whether the plan is a preview or will be applied.
    type: str
    choices: [preview, apply]
    default: preview
  gpus:
    description: List of GPUs in the order of their index.
    type: raw
    required: true
  services:
    description: List of services.
    type: raw
    required: true
  bind_address:
    description: Address of the host on which the services' ports are published.
    type: str
    default: 127.0.0.1
  gpu_request:
    description: How the Compose file asks for GPUs.
    type: str
    choices: [cdi, deploy]
    default: cdi
  project_name:
    description: Name of the Compose project.
    type: str
    default: serving
  image_locks:
    description: The content that each image's tag stands for.
    type: dict
    default: {}
  models_offline:
    description: Whether the models are in the host's cache before the engines start.
    type: bool
    default: false
  tuned:
    description: Options that were found by measuring, by the name of the service.
    type: raw
    default: {}
attributes:
  check_mode:
    support: full
    description: Changes nothing in any mode.
extends_documentation_fragment: blackwell.serving.only_reads
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: See what could be tried for a service
  blackwell.serving.tuning_candidates:
    service: qwen
    gpus: "{{ serving_gpus }}"
    services: "{{ serving_services }}"
  register: candidates
"""

RETURN = r"""
candidates:
  description:
    - The candidates in the order of the catalogue, each with C(name), C(tuned) (what C(serving_tuned) would become),
      C(plan), C(compose) and C(skipped) (why it is not tried, else empty).
  returned: always
  type: list
  elements: dict
plan:
  description: The plan as it is, without any of them.
  returned: always
  type: dict
compose:
  description: Its C(compose.yaml).
  returned: always
  type: str
text:
  description: A line on each for people.
  returned: always
  type: str
  sample: "triton attention: to be tried"
"""
