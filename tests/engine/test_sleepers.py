# SPDX-License-Identifier: GPL-2.0-or-later
"""Who touches a page inside an open window sleeps, and wakes, whatever becomes of the page."""

import pytest
from tests.engine.sleeping import KINDS, KINDS_OF_REBUILD
from tests.lib.native import run_scenario

NEVER_WOKE = 3


@pytest.mark.parametrize("touch", ["read", "99"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_I8_a_sleeper_wakes(kind: str, touch: str) -> None:
    """Replaced by a hole or a slot, moved back, rolled back, rebuilt: its byte is right."""
    if kind in KINDS_OF_REBUILD and touch == "read":
        touch = "98"
    run = run_scenario("tests.engine.sleeping", kind, touch)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("touch", ["read", "99"])
def test_I8_without_wake_a_sleeper_on_a_shared_page_stays_asleep(touch: str) -> None:
    """The test above would notice."""
    run = run_scenario("tests.engine.sleeping", "shared", touch, "NO_WAKE")
    assert run.returncode == NEVER_WOKE, run.stderr
