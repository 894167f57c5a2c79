# SPDX-License-Identifier: GPL-2.0-or-later
"""Who calls an engine that does not get on."""

from tests.lib.native import run_scenario


def test_nobody_waits_longer_than_its_patience() -> None:
    run = run_scenario("tests.engine.busy")
    assert run.returncode == 0, run.stderr
