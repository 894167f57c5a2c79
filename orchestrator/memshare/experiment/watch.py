# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of guests while a run goes on: their reports, what they hold, the oracle, and whether they live."""

import asyncio
import time
from collections.abc import Sequence

from memshare.errors import MemshareError
from memshare.experiment.engine import Engine, Lab
from memshare.experiment.guest import Guest
from memshare.experiment.reckoning import Reckoner
from memshare.experiment.record import GuestReading, Lines, OracleReading, RunFolder
from memshare.experiment.stage import Stage

REPORT_SECONDS = 2.0  # between two reports of one guest: each costs it a process
REPORTS_A_SECOND = 2.0  # of all guests
LOOK_SECONDS = 2.0
VIGIL_SECONDS = 0.5
OK = "ok"


class OutOfMemoryError(MemshareError):
    """The kernel killed a guest that counts, because the cgroup's memory was used up."""


class Watch:
    """Observes the guests of one run."""

    def __init__(self, lab: Lab, engine: Engine, stage: Stage, folder: RunFolder) -> None:
        """Begin the files."""
        self._lab = lab
        self._engine = engine
        self._stage = stage
        self._readings = Lines(folder.guests)
        self._oracles = Lines(folder.oracles)
        self._reckoner = Reckoner()
        #: Held while guests are stopped, or let go for the first time.
        self._still = asyncio.Lock()
        self.integrity = OK
        self.longest_stop_seconds = 0.0

    def close(self) -> None:
        """End the files."""
        self._readings.close()
        self._oracles.close()

    async def begin(self, guest: Guest) -> None:
        """Follow a guest that has not run yet, and let it run."""
        async with self._still:
            self._reckoner.add(guest)
            await guest.begin()

    async def start(self, engine: Engine) -> None:
        """Let the engine begin, while nobody holds it, with guests that are up."""
        async with self._still:
            if (broker := engine.broker_pid) is not None:
                tables = (await engine.figures()).overhead_bytes or 0
                await asyncio.to_thread(self._reckoner.begin, broker, tables)
            await engine.start()

    async def report(self, guest: Guest) -> None:
        """Take one report."""
        told = await guest.report()
        if told.load_died:
            raise MemshareError(f"guest {guest.name}: its load {told.load} has died")
        self._readings.append(
            GuestReading(
                seconds=round(self._stage.now, 3),
                guest=guest.name,
                phase=self._stage.phase,
                load=told.load,
                interval_seconds=told.interval_seconds,
                operations=told.operations,
                latency_us=told.latency_us,
                longest_stall_us=told.longest_stall_us,
                integrity=told.integrity,
            )
        )
        self._judge(guest, told.integrity)

    async def verdict(self, guest: Guest) -> None:
        """Ask only whether its memory is as it should be."""
        self._judge(guest, (await guest.report()).integrity)

    def _judge(self, guest: Guest, integrity: str) -> None:
        if integrity != OK and self.integrity == OK:
            self.integrity = f"{guest.name}: {integrity}"

    async def reports(self) -> None:
        """Ask all guests that verify in turn, until cancelled."""
        turn = 0
        while True:
            began = time.monotonic()
            up = [guest for guest in self._lab.running if guest.is_verifying]
            if up:
                guest = up[turn % len(up)]
                turn += 1
                try:
                    await self.report(guest)
                except MemshareError:
                    if not await guest.has_ended():
                        raise
            pause = max(1 / REPORTS_A_SECOND, REPORT_SECONDS / max(1, len(up)))
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))

    async def looks(self) -> None:
        """See what guests hold, until cancelled; a look at one that ends meanwhile is left out."""
        while True:
            try:
                async with self._still:
                    guests = self._lab.running
                    await asyncio.to_thread(self._reckoner.look)
            except MemshareError:
                if not await _has_any_ended(guests):
                    raise
            await asyncio.sleep(LOOK_SECONDS)

    async def oracles(self) -> None:
        """Count again and again, until cancelled."""
        while True:
            await self.count()
            await asyncio.sleep(self._lab.plan.oracle_seconds)

    async def count(self, *, with_cost: bool = False) -> None:
        """Stop all guests, count, let them go on; nothing is counted where one ends meanwhile."""
        guests = self._lab.running
        try:
            await self._count(guests, with_cost)
        except MemshareError:
            if not await _has_any_ended(guests):
                raise

    async def _count(self, guests: Sequence[Guest], with_cost: bool) -> None:
        async with self._still:
            began = time.monotonic()
            try:
                await asyncio.gather(*(guest.control.execute("stop") for guest in guests))
                async with self._engine.held():
                    seconds = round(self._stage.now, 3)
                    figures = await self._engine.figures()
                    found = await asyncio.to_thread(
                        self._reckoner.count, self._engine.broker_pid, with_cost=with_cost
                    )
            finally:
                await asyncio.gather(*(_let_go(guest) for guest in guests))
            stopped = time.monotonic() - began
        self.longest_stop_seconds = max(self.longest_stop_seconds, stopped)
        self._oracles.append(
            OracleReading(
                seconds=seconds,
                phase=self._stage.phase,
                stopped_seconds=round(stopped, 3),
                saved_zero_bytes=figures.saved_zero_bytes,
                saved_content_bytes=figures.saved_content_bytes,
                **found._asdict(),
            )
        )

    async def vigil(self) -> None:
        """Raise when a guest that counts has ended, until cancelled."""
        while True:
            for guest in self._lab.guests:
                if guest.is_counted and not guest.is_running:
                    if self._lab.cgroup.oom_kills:
                        raise OutOfMemoryError(f"out of memory: {guest.name} was killed")
                    raise MemshareError(f"guest {guest.name} ended: {guest.last_words()}")
            await asyncio.sleep(VIGIL_SECONDS)


async def _has_any_ended(guests: Sequence[Guest]) -> bool:
    return any(await asyncio.gather(*(guest.has_ended() for guest in guests)))


async def _let_go(guest: Guest) -> None:
    try:
        await guest.control.execute("cont")
    except MemshareError:
        if not await guest.has_ended():
            raise
