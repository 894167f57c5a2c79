# SPDX-License-Identifier: GPL-2.0-or-later
"""Two real Debian guests share the files they keep in RAM, while they read them and after others die. Root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tests.lib.broker import build_directory
from tests.lib.guests import FILE_PAGES, PAGE_BYTES, SHARED_RATIO_BAR, Pair, boot_pair
from tests.lib.vm import until

from memshare.bench.fleet import ANSWER_SECONDS, RAM_BYTES, ask_all, open_fleet, read_stats, tell

pytestmark = [pytest.mark.full_hash, pytest.mark.asyncio(loop_scope="module")]

MEMORY_RATIO_BAR = 0.02


@asynccontextmanager
async def open_pair(image: Path) -> AsyncIterator[Pair]:
    """Boot two guests and have them write their files, sharing off."""
    async with open_fleet(build_directory(), image) as fleet:
        await fleet.start_broker()
        for name in ("a", "b"):
            await fleet.start_guest(name, RAM_BYTES, "mode=off,scan-rate=0")
        yield await boot_pair(fleet)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def booted(image: Path) -> AsyncIterator[Pair]:
    """Two guests for all tests here but the last, in their order: the one before it kills a guest."""
    async with open_pair(image) as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="module")
async def pair(booted: Pair) -> Pair:
    """The two guests, with equal files and nothing shared."""
    await tell(booted.guests, mode="off")
    for stats in await booted.all_are("off"):
        assert (stats.shared_pages, stats.broken_pages) == (0, 0)
    booted.expected[:] = await ask_all(booted.guests, "fill common")
    booted.find_files()
    return booted


async def test_I1_guests_read_what_they_wrote_while_they_share_write_and_stop_sharing(
    pair: Pair,
) -> None:
    before, touched_before_bytes = await pair.memory(), pair.touched_bytes()
    await pair.share()
    shared = await pair.memory()
    assert before.used_bytes - shared.used_bytes >= SHARED_RATIO_BAR * FILE_PAGES * PAGE_BYTES

    breaks = (await read_stats(pair.guests))[0].breaks
    pair.expected[0] = await pair.guests[0].ask("overwrite other", ANSWER_SECONDS)
    assert pair.expected[0] != pair.expected[1]
    await pair.verify()
    written, kept = np.split(pair.shared_files(), 2)
    assert written.mean() < 0.01
    assert kept.mean() >= SHARED_RATIO_BAR

    async def broken() -> int:
        return (await read_stats(pair.guests))[0].breaks - breaks

    # Blocks that were calm for long are looked at now and then only.
    await until(broken, lambda count: count >= SHARED_RATIO_BAR * FILE_PAGES / 2, ANSWER_SECONDS)

    async with pair.verifying(*pair.guests):
        await tell(pair.guests, mode="off")
        for stats in await pair.all_are("off"):
            assert (stats.shared_pages, stats.broken_pages) == (0, 0)
    assert not pair.shared_files().any()
    after = await pair.memory()
    # As much as before, and what guests have touched since: they go on living.
    touched_bytes = pair.touched_bytes() - touched_before_bytes
    expected_bytes = before.used_bytes + touched_bytes
    assert abs(after.held_bytes - expected_bytes) <= MEMORY_RATIO_BAR * before.used_bytes
    await until(pair.group, lambda group: group["grants"] == group["store_bytes"] == 0)


async def test_I7_a_broker_that_dies_costs_no_guest_a_byte(pair: Pair) -> None:
    await pair.share()
    async with pair.verifying(*pair.guests):
        await pair.fleet.kill_broker()
        await pair.all_are("waiting-for-broker")
    assert pair.shared_files().mean() >= SHARED_RATIO_BAR

    async with pair.verifying(*pair.guests):
        await pair.fleet.start_broker()
        await pair.all_are("running")
        assert (await pair.group())["members"] == 2


async def test_I6_a_guest_that_dies_returns_its_slots(pair: Pair) -> None:
    await pair.share()
    first, second = pair.guests

    async def is_alone() -> bool:
        group = await pair.group()
        (grants,) = {s["grants"] for s in group["sessions"] if s["pid"] == first.pid}
        return bool(group["members"] == 1 and group["grants"] == grants)

    async with pair.verifying(first):
        assert not await is_alone()
        await second.kill()
        await until(is_alone, bool)
    await pair.all_are("running", [first])


async def test_I6_I7_a_guest_that_dies_after_the_broker_costs_the_other_nothing(
    image: Path,
) -> None:
    async with open_pair(image) as pair:
        await pair.share()
        first, second = pair.guests
        await pair.fleet.kill_broker()
        await pair.all_are("waiting-for-broker")
        async with pair.verifying(first):
            await second.kill()
        await pair.all_are("waiting-for-broker", [first])
