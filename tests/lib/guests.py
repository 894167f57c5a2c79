# SPDX-License-Identifier: GPL-2.0-or-later
"""Two real Debian guests with equal files in RAM, 64 MiB each, and their broker.

A guest's agent compares its files with what was written to them, and what it says is compared with a
digest kept here. How much is shared is counted in page tables: a file's page counts when the same frame of
the store lies behind it in both guests. Root.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tests.lib.vm import until

from memshare.bench import oracle
from memshare.bench.cost import memory_used_bytes, read_cost
from memshare.bench.fleet import (
    ANSWER_SECONDS,
    BOOT_SECONDS,
    RAM_BYTES,
    SCAN_RATE_PAGES,
    Fleet,
    Guest,
    ask_all,
    read_stats,
    tell,
    verify,
)
from memshare.clients import broker as broker_client
from memshare.model import PageStats

PAGE_BYTES = oracle.PAGE_BYTES
FILE_PAGES = (64 << 20) // PAGE_BYTES
SHARED_RATIO_BAR = 0.8


class Memory(NamedTuple):
    """Memory behind both guests' RAM at one moment."""

    used_bytes: int  # by PSS, with the store
    absent_bytes: int  # given back as zero, and not touched since

    @property
    def held_bytes(self) -> int:
        """What the guests would use if nothing were shared."""
        return self.used_bytes + self.absent_bytes


def runs(flags: oracle.Flags, longest: int = 4096) -> list[tuple[int, int]]:
    """Return the ranges of set flags, cut to at most longest. Pure."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [
        (at, min(at + longest, int(last)))
        for first, last in zip(edges[::2], edges[1::2], strict=True)
        for at in range(int(first), int(last), longest)
    ]


def find_files(memory: oracle.GuestMemory) -> npt.NDArray[np.intp]:
    """Return where in the guest's RAM each page of its files lies: each begins with its number.

    A few may be copies that a pipe has left behind.
    """
    where = np.full(FILE_PAGES, -1, dtype=np.intp)
    (table,) = oracle.look([memory])
    with open(f"/proc/{memory.pid}/mem", "rb", buffering=0) as file:
        for first, last in runs(table.anonymous):
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
        self.find_files()

    def find_files(self) -> None:
        """See where the files are, which must not be shared now; after they were written anew, too."""
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

    async def start_sharing(self) -> None:
        """Switch sharing on and wait until enough of the files is shared."""

        async def shared_ratio() -> float:
            oracle.look(self.memories)  # notes what the guests hold, before it is given back
            return float(self.shared_files().mean())

        await tell(self.guests, mode="content", scan_rate=SCAN_RATE_PAGES)
        await until(shared_ratio, lambda ratio: ratio >= SHARED_RATIO_BAR, ANSWER_SECONDS)

    async def share(self) -> None:
        """Do so while the guests verify."""
        async with self.verifying(*self.guests):
            await self.start_sharing()
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

    def touched_bytes(self) -> int:
        """RAM that the guests had touched, by each look so far: that of `memory` is one."""
        return sum(int(memory.held.sum()) for memory in self.memories) * PAGE_BYTES

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


async def boot_pair(fleet: Fleet) -> Pair:
    """Wait for a fleet's two guests, started with sharing off, and have them write their files."""
    async with asyncio.TaskGroup() as group:
        for guest in fleet.guests:
            group.create_task(guest.boot(BOOT_SECONDS))
    expected = await ask_all(fleet.guests, "fill common")
    assert expected[0] == expected[1]
    return Pair(fleet, expected)
