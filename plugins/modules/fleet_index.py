#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_index
short_description: Write one page of all hosts, with what fits and what does not
version_added: 0.3.0
description:
  - Reads the C(plan.json) of each host on the control node and writes C(index.html) beside their directories. It has
    totals by kind of GPU and by group of the inventory, the hosts that were refused and why, and links to their pages.
  - A host without a plan is listed as not planned. The hosts are never contacted.
options:
  output_dir:
    description: Directory on the control node in which each host has a directory of its name.
    type: path
    required: true
  hosts:
    description: Names of the hosts, in the order in which the page lists them.
    type: list
    elements: str
    required: true
  planned:
    description: Plans by host that count in place of the C(plan.json) on disk, as in check mode, which writes none.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Says whether the page would change, and writes nothing.
  diff_mode:
    support: none
    description: The page says again what the hosts' plans say.
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Write one page of all hosts
  blackwell.serving.fleet_index:
    output_dir: build
    hosts: "{{ groups['all'] }}"
  run_once: true
"""

RETURN = r"""
page:
  description: The file.
  returned: always
  type: str
text:
  description: The totals, and the hosts that were refused, in a few lines.
  returned: always
  type: str
total:
  description: The totals over all hosts.
  returned: always
  type: dict
  sample:
    {name: all hosts, hosts: 3, fits: 2, does_not_fit: 1, invalid: 0, unplanned: 0, services: 6, gpus: 2,
     planned: "60.80", visible: "62.72", share: "97"}
"""
