# SPDX-License-Identifier: GPL-2.0-or-later
"""The run: guests of one group that churn their files, and what is done to each of them all the while.

The first thing that is wrong, whoever sees it, ends all of it with an exception.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.lib.broker import build_directory
from tests.lib.fleet import Machine, disks, has_no_slots, store_mappings
from tests.lib.judges import Command, judge_sharing_guests
from tests.lib.migration import CRAWL, UNLIMITED, migration_is, set_bandwidth
from tests.lib.vm import plugin_arguments, until
from tests.soak.member import SILENT_SECONDS, Counters, Member, read, stats_when

from memshare.bench import oracle
from memshare.bench.fleet import GROUP, SCAN_RATE_PAGES, Fleet, Guest, open_fleet, tell
from memshare.bench.progress import Progress
from memshare.clients import broker as broker_client
from memshare.errors import MemshareError
from memshare.model import PageStats

#: Enough for Debian and its files. No multiple of 64 pages: tests/lib/migration.py says why.
RAM_BYTES = (192 << 20) + (8 << 10)
#: For whatever takes seconds on an idle host: all of this runs on two cores.
DEADLINE_SECONDS = SILENT_SECONDS
#: QEMU's own stop and migration wait for the host's disk with the monitor, and a loaded one may take its time.
ANSWER_SECONDS = 180.0
LOOK_SECONDS = 5.0
DRAIN_EACH_SECONDS = 60.0
#: A guest shares so many pages before it is moved or drained again.
SHARED_PAGES_BAR = 8192

#: Guests that churn, and how each of their disks without a cache is read and written.
MIGRATING, DRAINED, DIRECT = "migrating", "drained", "direct"
WAYS = {DRAINED: ("threads",), DIRECT: ("native", "threads", "io_uring")}
#: With those, one where judges run and one to which nothing else is done.
LEAST_GUESTS = 5


class Soak:
    """Made by `open_soak`."""

    def __init__(self, fleet: Fleet, judges: Sequence[Command], progress: Progress) -> None:
        self.members: dict[str, Member] = {}
        self.drain_seconds: list[float] = []
        self.migrations = 0
        self.verdicts = 0
        self.judged = Counters()
        self._fleet = fleet
        self._judges = judges
        self._progress = progress
        self._is_over = asyncio.Event()

    @property
    def guests(self) -> list[Guest]:
        """Those that churn, in their QEMUs of now."""
        return [member.guest for member in self.members.values()]

    async def start(self, guests: int) -> None:
        """Boot that many guests less the judges', sharing off, and have them begin to churn."""
        names = [MIGRATING, DRAINED, DIRECT]
        names += [f"plain-{number + 1}" for number in range(guests - LEAST_GUESTS + 1)]
        self._progress.update(f"booting: {len(names)} guests")
        await self._fleet.start_broker()
        started = [
            await self._start_guest(
                name,
                "mode=off,scan-rate=0",
                arguments=disks(self._fleet.folder, name, WAYS.get(name, ())),
            )
            for name in names
        ]
        async with asyncio.TaskGroup() as group:
            for guest in started:
                group.create_task(guest.boot(DEADLINE_SECONDS))
        self._progress.update("writing: files in all guests")
        common = await self._ask_all(started, "fill common")
        other = await self._ask_all(started, "overwrite other")
        assert await self._ask_all(started, "churn") == common != other
        for name, guest in zip(names, started, strict=True):
            # After each change of its files it replies three times, and has done so once.
            self.members[name] = Member(name, guest, [*[common] * 2, *[other] * 3, common])
        drained = self.members[DRAINED].guest
        self._drained_memory = oracle.GuestMemory(drained.pid, RAM_BYTES)

    async def _start_guest(self, name: str, plugin_options: str, **more: Any) -> Guest:
        guest = await self._fleet.start_guest(name, RAM_BYTES, plugin_options, **more)
        guest.answer_seconds = ANSWER_SECONDS
        return guest

    async def _ask_all(self, guests: Sequence[Guest], request: str) -> str:
        """Have all guests do something at once that must come to the same."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(guest.ask(request, DEADLINE_SECONDS)) for guest in guests]
        (answer,) = {task.result() for task in tasks}
        return answer

    async def run(self, seconds: float) -> None:
        """Do everything for so long; then make all memory private, and look at all of it once more."""
        async with asyncio.TaskGroup() as around:
            steady = [around.create_task(member.listen()) for member in self.members.values()]
            steady.append(around.create_task(self._look()))
            await tell(self.guests, mode="content", scan_rate=SCAN_RATE_PAGES)
            async with asyncio.TaskGroup() as group:
                for harass in (self._migrate, self._drain, self._judge):
                    group.create_task(harass())
                await asyncio.sleep(seconds)
                self._is_over.set()
            await self._end()
            for task in steady:
                task.cancel()

    async def _end(self) -> None:
        await tell(self.guests, mode="off")
        async with asyncio.TaskGroup() as group:
            for member in self.members.values():
                group.create_task(stats_when(member.guest, is_private))
        async with asyncio.TaskGroup() as group:
            for member in self.members.values():
                group.create_task(member.more_rounds(1))
        await until(
            self._group,
            lambda group: group["grants"] == group["store_bytes"] == 0,
            DEADLINE_SECONDS,
        )

    async def _group(self) -> dict[str, int]:
        """Ask the broker about the group."""
        (group,) = (await broker_client.ask(self._fleet.control_socket, "status"))["groups"]
        return dict(group)

    async def _look(self) -> None:
        """See that all are well, and say how far they are."""
        started = time.monotonic()
        while True:
            for member in self.members.values():
                await member.look()
            rounds = ", ".join(f"{m.name} {m.rounds}" for m in self.members.values())
            merged = sum(m.counters.merged_pages for m in self.members.values())
            self._progress.update(
                f"{'ending' if self._is_over.is_set() else 'sharing'}: "
                f"{time.monotonic() - started:.0f} s; rounds: {rounds}; {merged} pages merged,"
                f" {self.migrations} migrations, {len(self.drain_seconds)} drains,"
                f" {self.verdicts} verdicts"
            )
            await asyncio.sleep(LOOK_SECONDS)

    # What is done to them

    async def _migrate(self) -> None:
        """To another QEMU each time, as soon as it shares well in the one where it is."""
        member = self.members[MIGRATING]
        disk = self._fleet.folder / f"{member.name}.qcow2"
        while await self._shares_well(member.guest):
            source = member.guest
            destination = await self._start_guest(
                f"{member.name}-{self.migrations + 1}",
                f"mode=content,scan-rate={SCAN_RATE_PAGES}",
                arguments=["-incoming", "defer"],
                disk=disk,
            )
            async with member.moving:
                await self._migrate_to(source, destination)
                await member.move(destination)
                await stats_when(destination, lambda stats: stats.merged_pages > 0)
            self._fleet.guests.remove(source)
            self.migrations += 1

    async def _shares_well(self, guest: Guest) -> bool:
        """Wait until it does, or all is over, which is false."""
        await stats_when(
            guest,
            lambda stats: stats.shared_pages >= SHARED_PAGES_BAR or self._is_over.is_set(),
        )
        return not self._is_over.is_set()

    async def _migrate_to(self, source: Guest, destination: Guest) -> None:
        here, there = Machine(source), Machine(destination)
        uri = f"unix:{self._fleet.folder}/migration"
        for machine in (here, there):
            # By turns; what is the source now may have been a destination with it.
            multifd = {"capability": "multifd", "state": bool(self.migrations % 2)}
            await machine.execute("migrate-set-capabilities", capabilities=[multifd])
        await destination.connect()
        await set_bandwidth(here, CRAWL)
        await there.execute("migrate-incoming", uri=uri)
        await here.execute("migrate", uri=uri)
        # Shared pages travel like any others, and the guest goes on sharing.
        before = await read(source)
        await stats_when(source, lambda stats: stats.merged_pages > before.merged_pages)
        await set_bandwidth(here, UNLIMITED)
        try:
            for machine in (here, there):
                await migration_is(machine, "completed", deadline_seconds=DEADLINE_SECONDS)
        except AssertionError as error:
            raise MemshareError(
                f"migration {self.migrations + 1} failed; source: {here.messages}; destination:"
                f" {there.messages}"
            ) from error

    async def _drain(self) -> None:
        """Make one guest's memory private once a minute, by the kernel's word too, and let it share again."""
        guest = self.members[DRAINED].guest
        while await self._shares_well(guest):
            begun = time.monotonic()
            await tell([guest], mode="off")
            await stats_when(guest, is_private)
            self.drain_seconds.append(time.monotonic() - begun)
            if left := store_mappings(guest, self._drained_memory):
                raise MemshareError(f"guest {guest.name} is drained, but maps {left[0]}")
            await tell([guest], mode="content")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0, begun + DRAIN_EACH_SECONDS - time.monotonic())):
                    await self._is_over.wait()

    async def _judge(self) -> None:
        """Boot a guest whose program judges its memory, hear the verdict, and boot the next."""
        plugin = plugin_arguments(
            socket=str(self._fleet.group_socket), group=GROUP, scan_rate=SCAN_RATE_PAGES
        )
        for judge in itertools.cycle(self._judges):
            if self._is_over.is_set():
                return
            verdict = await judge_sharing_guests(judge, plugin, DEADLINE_SECONDS, guests=1)
            if verdict.errors:
                raise MemshareError(f"{judge.name}: {verdict.errors} errors: {verdict.says}")
            self.verdicts += 1
            self.judged = self.judged.plus(
                Counters(
                    merged_pages=verdict.merged_pages,
                    breaks=verdict.breaks,
                    rebuilt_pages=verdict.rebuilt_pages,
                )
            )


def is_private(stats: PageStats) -> bool:
    """Whether all memory is plain and stays so."""
    return stats.state == "off" and has_no_slots(stats)


@asynccontextmanager
async def open_soak(
    image: Path, judges: Sequence[Command], progress: Progress
) -> AsyncIterator[Soak]:
    """Make one; on leaving nothing of it is left."""
    async with open_fleet(build_directory(), image) as fleet:
        yield Soak(fleet, judges, progress)
