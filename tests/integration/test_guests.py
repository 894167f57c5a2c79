# SPDX-License-Identifier: GPL-2.0-or-later
"""Two real Debian guests share the files they keep in RAM, while they read them and after others die.

The files are equal in both guests, 64 MiB; a guest's agent compares them with what was written to
them, and what it says is compared with a digest kept here. How much is shared is counted in page
tables: a file's page counts when the same frame of the store lies behind it in both guests. Root.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from tests.lib.broker import build_directory
from tests.lib.vm import until

from memshare.bench import oracle
from memshare.bench.cost import memory_used_bytes, read_cost
from memshare.bench.demo import (
    ANSWER_SECONDS,
    BOOT_SECONDS,
    RAM_BYTES,
    SCAN_RATE_PAGES,
    SOURCE,
    ask_all,
    read_stats,
    tell,
    verify,
)
from memshare.bench.fleet import Fleet, Guest, build_image, open_fleet
from memshare.clients import broker as broker_client
from memshare.model import PageStats

PAGE_BYTES = oracle.PAGE_BYTES
FILE_PAGES = (64 << 20) // PAGE_BYTES
SHARED_RATIO_BAR = 0.8
MEMORY_RATIO_BAR = 0.02


class Memory(NamedTuple):
    """Memory behind both guests' RAM at one moment."""

    used_bytes: int  # by PSS, with the store
    absent_bytes: int  # given back as zero, and not touched since

    @property
    def held_bytes(self) -> int:
        """What the guests would use if nothing were shared."""
        return self.used_bytes + self.absent_bytes


def find_files(memory: oracle.GuestMemory) -> npt.NDArray[np.intp]:
    """Return where in the guest's RAM each page of its files lies: each begins with its number.

    A few may be copies that a pipe has left behind.
    """
    where = np.full(FILE_PAGES, -1, dtype=np.intp)
    (table,) = oracle.look([memory])
    with open(f"/proc/{memory.pid}/mem", "rb", buffering=0) as file:
        for first, last in oracle.runs(table.anonymous):
            start = memory.start + first * PAGE_BYTES
            data = os.pread(file.fileno(), (last - first) * PAGE_BYTES, start)
            words = np.frombuffer(data, dtype=np.uint64).reshape(last - first, -1)
            numbered = np.flatnonzero(words[:, 0] < FILE_PAGES)
            # The rest of such a page looks random: next to no other page is without a zero word.
            found = numbered[(words[numbered, 1:] != 0).all(axis=1)]
            where[words[found, 0].astype(np.intp)] = first + found
    assert (where >= 0).all(), f"{(where < 0).sum()} pages of files are not in the guest's RAM"
    return where


class Pair:
    """Two guests with equal files in RAM, sharing off, and their broker."""

    def __init__(self, fleet: Fleet, expected: list[str]) -> None:
        self.fleet = fleet
        self.guests: Sequence[Guest] = fleet.guests
        self.expected = expected  # what each guest's files hold, as it was when they were written
        self.memories = [oracle.GuestMemory(guest.pid, RAM_BYTES) for guest in fleet.guests]
        self.files = [find_files(memory) for memory in self.memories]

    async def verify(self, guests: Sequence[Guest] | None = None) -> None:
        """Have the guests read all of their files; each byte must be as it was written."""
        guests = self.guests if guests is None else guests
        expected = [self.expected[self.guests.index(guest)] for guest in guests]
        assert await verify(guests, expected) == []

    @asynccontextmanager
    async def verifying(self, *guests: Guest) -> AsyncIterator[None]:
        """Have the guests verify again and again, from before the block until after it."""
        done = asyncio.Event()
        rounds = 0

        async def keep_verifying() -> None:
            nonlocal rounds
            while not done.is_set():
                await self.verify(guests)
                rounds += 1

        async with asyncio.TaskGroup() as group:
            group.create_task(keep_verifying())
            while not rounds:
                await asyncio.sleep(0.01)
            yield
            done.set()
        await self.verify(guests)

    def shared_files(self) -> oracle.Flags:
        """Tell for each page of the files whether one frame of the store is behind it in both guests."""
        frames = []
        for memory, where in zip(self.memories, self.files, strict=True):
            words = oracle.read_pagemap(memory.pid, memory.start, memory.end)[where]
            of_store = (words & oracle.PAGEMAP_PRESENT != 0) & (words & oracle.PAGEMAP_FILE != 0)
            frames.append(np.where(of_store, words & oracle.PAGEMAP_FRAME, np.uint64(0)))
        shared: oracle.Flags = (frames[0] != 0) & (frames[0] == frames[1])
        return shared

    async def share(self) -> None:
        """Switch sharing on and wait until enough of the files is shared; the guests verify meanwhile."""

        async def shared_ratio() -> float:
            oracle.look(self.memories)  # notes what the guests hold, before it is given back
            return float(self.shared_files().mean())

        async with self.verifying(*self.guests):
            await tell(self.guests, mode="content", scan_rate=SCAN_RATE_PAGES)
            await until(shared_ratio, lambda ratio: ratio >= SHARED_RATIO_BAR, ANSWER_SECONDS)
        assert not any(stats.refusal for stats in await read_stats(self.guests))

    async def all_are(self, state: str, guests: Sequence[Guest] | None = None) -> list[PageStats]:
        """Wait until the engines say that they are in that state."""
        guests = self.guests if guests is None else guests
        return await until(
            lambda: read_stats(guests), lambda all_: all(stats.state == state for stats in all_)
        )

    async def group(self) -> dict[str, Any]:
        """Ask the broker about the group."""
        status = await broker_client.ask(self.fleet.control_socket, "status")
        (group,) = status["groups"]
        return dict(group)

    async def memory(self) -> Memory:
        """Read what is behind the guests' RAM now, guests stopped."""
        await tell(self.guests, "stop")
        tables = oracle.look(self.memories)
        store = oracle.read_store(self.memories, tables, self.fleet.broker_pid)
        used_bytes = memory_used_bytes(
            read_cost(self.memories, self.fleet.broker_pid, store), store
        )
        absent = sum(
            int((memory.held & ~table.anonymous & ~table.store).sum())
            for memory, table in zip(self.memories, tables, strict=True)
        )
        await tell(self.guests, "cont")
        return Memory(used_bytes, absent * PAGE_BYTES)


@pytest.fixture(scope="session")
def image() -> Path:
    """The guests' image; built when it is not there."""
    return build_image([str(SOURCE / "guests" / "linux" / "build.sh")])


@pytest.fixture
async def pair(image: Path) -> AsyncIterator[Pair]:
    """Boot two guests and have them write their files, sharing off."""
    async with open_fleet(build_directory(), image) as fleet:
        await fleet.start_broker()
        for name in ("a", "b"):
            await fleet.start_guest(name, RAM_BYTES, "mode=off,scan-rate=0")
        async with asyncio.TaskGroup() as group:
            for guest in fleet.guests:
                group.create_task(guest.boot(BOOT_SECONDS))
        expected = await ask_all(fleet.guests, "fill common")
        assert expected[0] == expected[1]
        yield Pair(fleet, expected)


async def test_I1_guests_read_what_they_wrote_while_they_share_write_and_stop_sharing(
    pair: Pair,
) -> None:
    before = await pair.memory()
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
    broken = (await read_stats(pair.guests))[0].breaks - breaks
    assert broken >= SHARED_RATIO_BAR * FILE_PAGES / 2

    async with pair.verifying(*pair.guests):
        await tell(pair.guests, mode="off")
        for stats in await pair.all_are("off"):
            assert (stats.shared_pages, stats.broken_pages) == (0, 0)
    assert not pair.shared_files().any()
    after = await pair.memory()
    assert abs(after.held_bytes - before.used_bytes) <= MEMORY_RATIO_BAR * before.used_bytes
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


async def test_I6_I7_a_guest_that_dies_after_the_broker_costs_the_other_nothing(
    pair: Pair,
) -> None:
    await pair.share()
    first, second = pair.guests
    await pair.fleet.kill_broker()
    await pair.all_are("waiting-for-broker")
    async with pair.verifying(first):
        await second.kill()
    await pair.all_are("waiting-for-broker", [first])


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
