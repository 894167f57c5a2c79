# SPDX-License-Identifier: GPL-2.0-or-later
"""Merging backs off when its windows are late."""

from tests.engine.straining import LATE_NS, PAGES
from tests.lib.native import run_scenario


def test_I8_late_windows_are_far_between() -> None:
    """They take a small part of the time, where windows in time may take half of it."""
    run = run_scenario("tests.engine.straining")
    assert run.returncode == 0, run.stderr
    windows, elapsed_ns, zero_pages = (int(word) for word in run.stdout.split())
    assert windows > 5
    assert zero_pages < PAGES // 2, "nothing was left to merge"
    assert windows * LATE_NS * 5 <= elapsed_ns
