# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody else's userfaultfd."""

from tests.lib.native import run_scenario


def test_I1_what_another_userfaultfd_watches_is_left_to_it() -> None:
    run = run_scenario("tests.engine.foreign")
    assert run.returncode == 0, run.stderr
