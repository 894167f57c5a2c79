# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest of the run that churns its files, whatever QEMU runs it now, and what it has come to."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from tests.lib.fleet import execute

from memshare.bench.fleet import AgentError, Guest
from memshare.errors import MemshareError, UnreachableError
from memshare.model import PageStats

#: A round takes seconds on an idle host, and all guests, QEMUs that start and the judges share two cores.
SILENT_SECONDS = 600.0


class Counters(NamedTuple):
    """What engines have counted."""

    merged_pages: int = 0
    zeroed_pages: int = 0
    breaks: int = 0
    rebuilt_pages: int = 0
    windows: int = 0
    window_buckets: tuple[int, ...] = ()

    @classmethod
    def of(cls, stats: PageStats) -> Self:
        """Take them from one engine's figures."""
        return cls(
            stats.merged_pages,
            stats.zeroed_pages,
            stats.breaks,
            stats.rebuilt_pages,
            stats.windows,
            tuple(stats.window_time_ns),
        )

    def plus(self, other: Self) -> Self:
        """Add up two engines'. Pure."""
        length = max(len(self.window_buckets), len(other.window_buckets))
        ours, theirs = (
            counters.window_buckets + (0,) * (length - len(counters.window_buckets))
            for counters in (self, other)
        )
        buckets = tuple(one + another for one, another in zip(ours, theirs, strict=True))
        return type(self)(
            *(one + another for one, another in zip(self[:5], other[:5], strict=True)), buckets
        )

    @property
    def longest_window_us(self) -> int:
        """No window took as long: the engine keeps powers of two."""
        return max((1 << at for at, count in enumerate(self.window_buckets) if count), default=0)


async def read(guest: Guest) -> PageStats:
    """Read one guest's figures; where its monitor does not answer, the error tells what its threads do."""
    try:
        async with guest.monitor() as monitor:
            return await monitor.stats()
    except UnreachableError as error:
        raise MemshareError(f"{error}; its threads: {threads(guest.pid)}") from error


def threads(pid: int) -> str:
    """Tell where each thread of a process is in the kernel."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            words = [(task / name).read_text().strip() for name in ("comm", "wchan", "syscall")]
            found.append(f"{words[0]} {words[1]} ({words[2].split()[0]})")
    return ", ".join(sorted(found))


async def stats_when(
    guest: Guest, accept: Callable[[PageStats], bool], deadline_seconds: float = SILENT_SECONDS
) -> None:
    """Wait for figures that are accepted, without asking so often that it were a load."""
    end = time.monotonic() + deadline_seconds
    while not accept(stats := await read(guest)):
        if time.monotonic() > end:
            raise MemshareError(
                f"guest {guest.name}: not within {deadline_seconds:.0f} s; last seen: {stats}"
            )
        await asyncio.sleep(0.5)


class Speaker(Protocol):
    """Who says what a guest's agent says: its QEMU."""

    async def hear(self) -> bytes: ...


class Member:
    """``expected``: what the guest must say of its files, by turns.

    A round ends each time: something was written, and all files compared.
    """

    def __init__(self, name: str, guest: Guest, expected: Sequence[str]) -> None:
        self.name = name
        self.guest = guest
        self.rounds = 0
        self.latest: PageStats | None = None
        #: Held while the guest is between two QEMUs.
        self.moving = asyncio.Lock()
        self._expected = expected
        self._left = Counters()
        self._heard_at = time.monotonic()
        self._next_speakers: asyncio.Queue[Speaker] = asyncio.Queue()

    async def listen(self) -> None:
        """Hear of each round; raises at the first that is not as it must be.

        What a guest has begun to say in one QEMU it ends in the next.
        """
        speaker: Speaker = self.guest
        line = b""
        while True:
            line += await speaker.hear()
            if line.endswith(b"\n"):
                self._judge(line.decode(errors="replace").strip())
                line = b""
            else:
                speaker = await self._next_speakers.get()

    def _judge(self, line: str) -> None:
        wanted = f"ok {self._expected[self.rounds % len(self._expected)]}"
        if line != wanted:
            raise AgentError(f"guest {self.name}: round {self.rounds + 1}: {line}, not {wanted}")
        self.rounds += 1
        self._heard_at = time.monotonic()

    async def more_rounds(self, wanted: int) -> None:
        """Wait for so many more, the one under way not counted; somebody must listen and look."""
        enough = self.rounds + wanted + 1
        while self.rounds < enough:
            await asyncio.sleep(0.2)

    async def look(self) -> None:
        """Read its figures; raises where it does not share, has died, or has said nothing for long."""
        silent = time.monotonic() - self._heard_at
        if silent > SILENT_SECONDS:
            raise MemshareError(f"guest {self.name} has ended no round for {silent:.0f} s")
        if self.moving.locked():
            return
        async with self.moving:
            self.latest = await read(self.guest)
        if self.latest.refusal:
            raise MemshareError(f"guest {self.name} does not share: {self.latest.refusal}")

    async def move(self, destination: Guest) -> None:
        """It has migrated there: end the QEMU that it has left. Call with ``moving`` held."""
        self._left = self._left.plus(Counters.of(await read(self.guest)))
        self.latest = None
        source, self.guest = self.guest, destination
        self._next_speakers.put_nowait(destination)
        # Its end of the agent's socket must stay open until all was heard.
        with contextlib.suppress(UnreachableError):
            await execute(source, "quit")

    @property
    def counters(self) -> Counters:
        """Of all its engines, as they were at the last look."""
        return self._left.plus(Counters.of(self.latest)) if self.latest else self._left
