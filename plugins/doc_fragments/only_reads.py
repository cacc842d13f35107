"""What the documentation of modules that only read says in the same words."""

from __future__ import annotations


class ModuleDocFragment:
    """Check mode and diff mode of a module that changes nothing."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Reads the same.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
"""
