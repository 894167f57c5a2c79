# SPDX-License-Identifier: GPL-2.0-or-later
"""Who calls an engine that does not get on."""

import pytest
from tests.lib.native import run_scenario


@pytest.mark.parametrize("what", ["stuck", "leaving"])
def test_nobody_waits_longer_than_its_patience(what: str) -> None:
    run = run_scenario("tests.engine.busy", what)
    assert run.returncode == 0, run.stderr
