# SPDX-License-Identifier: GPL-2.0-or-later
"""A window begins nothing when its time is up, and compares every byte of a page."""

import pytest
from tests.lib.broker import build_directory
from tests.lib.native import run_scenario
from tests.lib.wire import build_has_weak_hash

WEAK = build_has_weak_hash(build_directory())


@pytest.mark.skipif(WEAK, reason="pages that collide leave no long runs to count windows by")
def test_I8_no_run_begins_when_the_time_is_up() -> None:
    """With slow calls each window does one run and leaves the others to the next."""
    run = run_scenario("tests.engine.bounded", "slow")
    assert run.returncode == 0, run.stderr


def test_I8_one_call_moves_no_more_than_there_is_time_for() -> None:
    """Pages that follow each other are moved together, but not as many as a window may take."""
    run = run_scenario("tests.engine.bounded", "hauls")
    assert run.returncode == 0, run.stderr


def test_I2_every_byte_is_compared() -> None:
    """Pages that differ in one byte, wherever it is, do not become one."""
    run = run_scenario("tests.engine.bounded", "bytes")
    assert run.returncode == 0, run.stderr
