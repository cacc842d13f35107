"""Ansible's default output without the headings of plays that have nothing to do."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback.default import CallbackModule as DefaultCallback

DOCUMENTATION = r"""
name: quiet_plays
type: stdout
short_description: Ansible's default output without the headings of plays that have nothing to do
version_added: 0.4.0
description:
  - As P(ansible.builtin.default#callback), but the heading of a play waits for its first task to begin on a host. A
    play without hosts, or one whose hosts all end it at once, says nothing. With C(-v) all headings are there.
  - This collection's C(ansible.cfg) chooses it, because most plays of C(site.yml) have nothing to do in a preview.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
author:
  - The blackwell.serving maintainers
"""


class CallbackModule(DefaultCallback):
    CALLBACK_NAME = "blackwell.serving.quiet_plays"

    def __init__(self) -> None:
        super().__init__()
        self._waiting: Any = None

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play, self._waiting = play, play
        if self._display.verbosity:
            self._print_heading()

    def v2_playbook_on_no_hosts_matched(self) -> None:
        if self._display.verbosity:
            super().v2_playbook_on_no_hosts_matched()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._print_heading()
        super().v2_runner_on_start(host, task)

    def _print_task_banner(self, task: Any) -> None:
        self._print_heading()
        super()._print_task_banner(task)

    def _print_heading(self) -> None:
        if self._waiting:
            play, self._waiting = self._waiting, None
            super().v2_playbook_on_play_start(play)
