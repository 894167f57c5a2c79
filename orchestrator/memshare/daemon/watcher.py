# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest's monitor at work: told what to do and asked for figures, one thing after the other.

A guest that does not answer keeps its own watcher waiting and nobody else: whoever asked goes on with the
figures of last time. What a guest is to be told is kept until it was told, the newest word only.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec
import structlog

from memshare.clients.monitor import Monitor, NotSharingError
from memshare.clients.sources import Found
from memshare.errors import MemshareError, UnreachableError
from memshare.model import WITHOUT_PLUGIN, Domain, PageStats

log = structlog.get_logger()

#: A guest without the plugin, and one that failed, is asked no more often than this.
SELDOM_SECONDS = 30.0
FAILED_SECONDS = 5.0

NONSENSE_MAX = 200  # characters
BALLOON = "balloon"  # among the wishes; all others are properties of the plugin


class Watcher:
    """What is known of one guest, and what it is still to be told. `run` does the work."""

    def __init__(self, found: Found, on_lost: Callable[[], None]) -> None:
        """Nothing is asked yet. on_lost is called when the guest does not answer: it may have gone."""
        self._on_lost = on_lost
        self.found = found
        self.stats: PageStats | None = None
        self.taken_ns = 0
        self.balloon_bytes: int | None = None
        self.wants_balloon = False
        self._problem = ""
        self._answered = True
        self._wishes: dict[str, str | int] = {}
        self._due = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._not_before = 0.0

    @property
    def domain(self) -> Domain:
        """The guest with its figures, or the reason why there are none."""
        domain = self.found.domain
        return msgspec.structs.replace(
            domain,
            stats=self.stats,
            problem=self._problem or domain.problem,
            answered=self._answered,
        )

    def ask(self) -> None:
        """Have the guest asked for its figures, unless it is one that need not be asked so soon again."""
        if time.monotonic() >= self._not_before:
            self._wake()

    def tell(self, name: str, value: str | int) -> None:
        """Have a property of the plugin's set."""
        self._wishes[name] = value
        self._wake()

    def inflate(self, target_bytes: int) -> None:
        """Have the guest's balloon leave it so much RAM."""
        self.tell(BALLOON, target_bytes)

    def _wake(self) -> None:
        self._idle.clear()
        self._due.set()

    async def answered(self) -> None:
        """Wait until everything that is due was done, or has failed."""
        await self._idle.wait()

    async def run(self) -> NoReturn:
        """Do what is due, until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                async with self.found.monitor() as monitor:
                    await self._do(monitor)
                self._failed("", answered=True)
            except NotSharingError:
                self.stats = None
                self._wishes.clear()
                self._failed(WITHOUT_PLUGIN, answered=True)
                self._not_before = time.monotonic() + SELDOM_SECONDS
            except UnreachableError as error:
                self._failed(str(error), answered=False)
                self._on_lost()
                self._not_before = time.monotonic() + FAILED_SECONDS
            except MemshareError as error:
                self._failed(str(error), answered=True)
                self._not_before = time.monotonic() + FAILED_SECONDS
            except Exception as error:
                # What nobody has thought of. Whatever a guest says, it is not to end the daemon.
                what = f"{type(error).__name__}: {error}"[:NONSENSE_MAX]
                self._failed(f"{self.found.domain.name}: talks nonsense: {what}", answered=True)
                self._not_before = time.monotonic() + FAILED_SECONDS
            if not self._due.is_set():
                self._idle.set()

    async def _do(self, monitor: Monitor) -> None:
        refused: MemshareError | None = None
        while self._wishes:
            name = next(iter(self._wishes))
            value = self._wishes[name]
            try:
                if name == BALLOON:
                    await monitor.set_balloon(int(value))
                else:
                    await monitor.set(name, value)
            except UnreachableError:
                raise
            except MemshareError as error:
                refused = error  # a no is an answer: what is asked next must not wait for a yes
            if self._wishes.get(name) == value:
                del self._wishes[name]
        if self.wants_balloon:
            self.balloon_bytes = await monitor.balloon_bytes()
        self.stats = await monitor.stats()
        self.taken_ns = time.monotonic_ns()
        if refused is not None:
            raise refused

    def _failed(self, problem: str, *, answered: bool) -> None:
        """Remember how it went; a change is logged once, and not at each look."""
        if problem and problem != self._problem:
            log.warning("guest_not_read", domain=self.found.domain.name, reason=problem)
        elif self._problem and not problem:
            log.info("guest_read_again", domain=self.found.domain.name)
        self._problem, self._answered = problem, answered
