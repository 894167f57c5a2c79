# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes that race with merging are never lost; and a broken engine is found out."""

import json
from typing import Any

import pytest
from tests.lib.native import Hung, run_scenario

SLEPT = 10_000
COMPARE_FAILURES = 100_000


def race(*arguments: object, timeout_seconds: float = 200) -> dict[str, Any]:
    """Run tests/engine/racing.py; fails when it crashes."""
    words = [str(argument) for argument in arguments]
    run = run_scenario("tests.engine.racing", *words, timeout_seconds=timeout_seconds)
    assert run.returncode == 0, run.stderr
    numbers = json.loads(run.stdout)
    assert isinstance(numbers, dict)
    return numbers


@pytest.mark.timeout(260)
def test_I1_no_racing_write_is_lost() -> None:
    """Over 10,000 writes sleep in open windows, over 100,000 pages change after their hash."""
    numbers = race("rebuild", SLEPT, COMPARE_FAILURES, 180)
    assert numbers["lost"] == 0, numbers
    assert numbers["wrong_bytes"] == 0, numbers
    assert numbers["slept_faults"] >= SLEPT, numbers
    assert numbers["compare_failures"] >= COMPARE_FAILURES, numbers
    assert numbers["merged_pages"] > 1000, numbers
    assert numbers["zeroed_pages"] > 1000, numbers
    assert numbers["breaks"] > 1000, numbers
    assert numbers["rebuilt_pages"] > 1000, numbers


@pytest.mark.parametrize("kind", ["pinned", "swapped"])
def test_I1_no_write_is_lost_while_the_kernel_uses_the_page(kind: str) -> None:
    """It pins pages for its own writes; it takes pages away and brings them back.

    Both change page table entries under the hands of UFFDIO_MOVE, which on some kernels then moves a page
    and denies it.
    """
    numbers = race(kind, SLEPT // 10, COMPARE_FAILURES // 50, 60)
    assert numbers["lost"] == 0, numbers
    assert numbers["wrong_bytes"] == 0, numbers
    assert numbers["slept_faults"] >= SLEPT // 10, numbers
    assert numbers["compare_failures"] >= COMPARE_FAILURES // 50, numbers
    assert numbers["zeroed_pages"] > 100, numbers


def test_compare_then_map_loses_writes_and_is_noticed() -> None:
    """Without moving pages away first, a write falls between comparison and mapping."""
    numbers = race("rebuild", 1 << 60, 1 << 60, 60, "COMPARE_THEN_MAP")
    assert numbers["lost"] > 0, numbers


def test_without_wake_writers_sleep_for_ever_and_it_is_noticed() -> None:
    """UNREGISTER alone does not wake who sleeps on a page that a store mapping has replaced."""
    with pytest.raises(Hung):
        race("rebuild", SLEPT, COMPARE_FAILURES, 8, "NO_WAKE", timeout_seconds=20)


def test_I1_no_write_is_lost_to_a_break() -> None:
    """Pages made private inside their store mappings while a guest writes to the same byte."""
    run = run_scenario("tests.engine.breaking", faults=False)
    assert run.returncode == 0, run.stderr
