# SPDX-License-Identifier: GPL-2.0-or-later
"""What sharing frees and could free at most, by page tables (see bench.oracle): the one place that asks for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from memshare.bench import oracle
from memshare.bench.cost import Cost, memory_used_bytes, overhead_bytes, read_cost
from memshare.errors import MeasurementError
from memshare.experiment.guest import Guest

PAGE_BYTES = oracle.PAGE_BYTES


class Count(NamedTuple):
    """See record.OracleReading."""

    held_bytes: int
    held_zero_bytes: int
    frames_bytes: int
    freed_bytes: int
    oracle_bytes: int
    pss_bytes: int | None
    overhead_bytes: int | None


@contextmanager
def of_the_living() -> Iterator[None]:
    """A process that was just killed has no memory to read, though nobody has heard of its end yet: an error of ours."""
    try:
        yield
    except (OSError, KeyError) as error:
        raise MeasurementError(f"a guest's memory cannot be read: {error}") from error


class Reckoner:
    """Follows the RAM of all guests of a run."""

    def __init__(self) -> None:
        """Follow nobody yet."""
        self._memories: dict[str, tuple[Guest, oracle.GuestMemory]] = {}
        self._before: Cost | None = None
        self._tables_bytes = 0

    @of_the_living()
    def add(self, guest: Guest) -> None:
        """Follow a guest from now on; before anything of it is shared, which would split its RAM."""
        memory = oracle.GuestMemory(guest.pid, guest.ram_bytes)
        self._memories[guest.name] = (guest, memory)

    @of_the_living()
    def look(self) -> None:
        """See what guests hold, so that nothing is missed that is given back until the next count."""
        if memories := self._running():
            oracle.look(memories)

    @of_the_living()
    def begin(self, broker_pid: int, tables_bytes: int) -> None:
        """Note what guests cost just before sharing begins; tables_bytes of that are the engines', by their own count."""
        nothing = oracle.Store(allocated_bytes=0, mapped_bytes=0)
        self._before = read_cost(self._running(), broker_pid, nothing)
        self._tables_bytes = tables_bytes

    @of_the_living()
    def count(self, broker_pid: int | None, *, with_cost: bool) -> Count:
        """Count now: guests stopped, engine held. The cost can be had where `begin` noted it before."""
        memories = self._running()
        reckoning, store = oracle.reckon_now(memories, broker_pid)
        pss = overhead = None
        if with_cost and broker_pid is not None and self._before is not None:
            now = read_cost(memories, broker_pid, store)
            pss = memory_used_bytes(now, store)
            overhead = overhead_bytes(self._before, now, self._tables_bytes, len(memories))
        return Count(
            held_bytes=reckoning.held * PAGE_BYTES,
            held_zero_bytes=reckoning.held_zero * PAGE_BYTES,
            frames_bytes=reckoning.frames * PAGE_BYTES,
            freed_bytes=reckoning.freed * PAGE_BYTES,
            oracle_bytes=reckoning.oracle * PAGE_BYTES,
            pss_bytes=pss,
            overhead_bytes=overhead,
        )

    def _running(self) -> list[oracle.GuestMemory]:
        return [memory for guest, memory in self._memories.values() if guest.is_running]
