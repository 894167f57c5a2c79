# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever kernel call fails, and however: every byte is right, nobody sleeps on, the engine works."""

import pytest
from tests.lib.native import Hung, run_scenario

POINTS = [
    "OPEN_WINDOW",
    "MOVE_OUT",
    "MOVE_IN",
    "COPY_IN",
    "COPY_OUT",
    "CLOSE_WINDOW",
    "PROTECT",
    "MAP_OVER",
    "MAP_AWAY",
    "MAP_FIXED_OVER",
    "ADVISE",
    "REGISTER_OWN",
    "UNREGISTER_OWN",
    "GROW_OWN",
    "MAP_OWN",
    "ADVISE_OWN",
]


@pytest.mark.parametrize("point", POINTS)
def test_I1_a_failing_call_costs_no_byte(point: str) -> None:
    """Each point, each error, once and often, while merging and while rebuilding."""
    try:
        run = run_scenario("tests.engine.failing", point, timeout_seconds=120)
    except Hung as hung:
        pytest.fail(f"hung: {hung}")
    assert run.returncode == 0, "\n".join(run.stderr.splitlines()[-20:])


def test_I8_a_rebuild_that_failed_cannot_be_ended() -> None:
    """Nobody may wait for ever for what stays protected."""
    test_I1_a_failing_call_costs_no_byte("COPY_OUT+CLOSE_WINDOW")


def test_I1_both_ways_back_fail() -> None:
    """A page that can for a while neither be moved nor copied to its address gets there all the same."""
    test_I1_a_failing_call_costs_no_byte("MOVE_IN+COPY_IN")
