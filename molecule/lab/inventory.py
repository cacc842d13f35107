#!/usr/bin/env python3
"""The lab's running hosts as an Ansible inventory; LAB_SCENARIO or molecule's scenario name limits it to a scenario."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import lab  # noqa: E402

if __name__ == "__main__":
    print(json.dumps(lab.inventory(os.environ.get("LAB_SCENARIO") or os.environ.get("MOLECULE_SCENARIO_NAME"))))
