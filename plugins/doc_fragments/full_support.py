"""What the documentation of several modules says in the same words."""

from __future__ import annotations


class ModuleDocFragment:
    """Check mode and diff mode as they should be."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Foretells what would change, and changes nothing.
    support: full
  diff_mode:
    description: Shows what changed, or would change.
    support: full
"""
