#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: benchmark_report
short_description: Keep what a benchmark measured, and compare it with the last time
version_added: 0.4.0
description:
  - Writes a record below O(results_dir), in a directory named as the host, compares it with the host's last record, and
    renders C(report.html) of O(output_dir) again with a table and a drawing.
  - The host is never contacted.
options:
  date:
    description: When the benchmark began, as V(2026-11-25T01:02:03Z).
    type: str
    required: true
  facts:
    description: The facts of the host, as in C(ansible_facts['gpu_host']).
    type: dict
    required: true
  plan:
    description: The plan that serves on the host.
    type: dict
    required: true
  generator:
    description: The load generator, with C(name), C(version) and C(image).
    type: dict
    required: true
  runs:
    description: What the module C(blackwell.serving.service_benchmark) returned as C(results), of all loads.
    type: list
    elements: dict
    required: true
  results_dir:
    description: Directory on the control node for records.
    type: path
    required: true
  output_dir:
    description: Directory on the control node with the hosts' plans and reports.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Compares and writes nothing.
  diff_mode:
    support: none
    description: Figures are no state of a host.
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Keep the figures
  blackwell.serving.benchmark_report:
    date: "{{ began }}"
    facts: "{{ ansible_facts['gpu_host'] }}"
    plan: "{{ plan }}"
    generator: "{{ runs.generator }}"
    runs: "{{ measured }}"
    results_dir: results
    output_dir: build
"""

RETURN = r"""
path:
  description: The record.
  returned: always
  type: str
report:
  description: The page that shows it.
  returned: always
  type: str
text:
  description: The table for people, with the difference to the last record.
  returned: always
  type: str
unlike:
  description: Why the two records cannot be compared as like with like.
  returned: always
  type: list
  elements: str
compared_with:
  description: Date of the last record, empty where there is none.
  returned: always
  type: str
"""
