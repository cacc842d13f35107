"""The lock file of an inventory: read, compared, written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.image_decisions import ImageRefused, checked_locks

KEY = "serving_image_locks"
HEADER = """---
# Written by blackwell.serving: the content that each image's tag stands for. Keep this file with the inventory. To look
# for newer images of the same tags: ansible-playbook playbooks/image.yml -e engine_image_refresh_locks=true
"""
SHADOWING = ("all", "all.yml", "all.yaml", "all.json")


def text_of(locks: Mapping[str, Any]) -> str:
    return HEADER + yaml.safe_dump({KEY: {name: dict(lock) for name, lock in locks.items()}}, sort_keys=True, width=200)


def read_locks(path: Path) -> tuple[str, dict[str, Any]]:
    """Text and locks of the file, empty where there is none; ImageRefused where it is something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "", {}
    except OSError as problem:
        raise ImageRefused(f"{path} cannot be read: {problem.strerror}") from problem
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as problem:
        raise ImageRefused(f"{path} is no YAML: {str(problem).splitlines()[0]}. Repair it, or delete it.") from problem
    if not isinstance(content, dict) or set(content) - {KEY}:
        raise ImageRefused(f"{path} holds something else than {KEY}. It is written by this collection alone.")
    return text, checked_locks(content.get(KEY) or {})


def why_not_writable(path: Path) -> str:
    """Why the file cannot be written where Ansible would read it; empty where it can."""
    folder = path.parent
    for name in SHADOWING:
        beside = folder.parent / name
        if folder.name == "all" and beside.is_file():
            # ansible/parsing/dataloader.py, find_vars_files: the directory is read instead of the file
            return (
                f"beside {beside} Ansible would read the directory {folder} alone, without your variables. "
                f"Move them in first: mkdir {folder}.d && mv {beside} {folder}.d/main.yml && mv {folder}.d {folder}"
            )
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return f"{existing} is not writable"
    return ""
