# SPDX-License-Identifier: GPL-2.0-or-later
"""Which guests there are: read anew whenever a source says so, one watcher a guest.

A source that is away keeps its guests: they run on without their libvirtd, and what was announced of them
stays announced.
"""

import asyncio
from collections.abc import Sequence
from typing import NoReturn

import structlog

from memshare.clients.admission import Announcement
from memshare.clients.sources import Found, Source, union
from memshare.daemon.watcher import Watcher
from memshare.errors import MemshareError
from memshare.model import Domain

log = structlog.get_logger()

#: Read at least as often, whatever the sources say: an event can be lost.
REFRESH_SECONDS = 60.0
RETRY_SECONDS = 5.0


class Inventory:
    """All guests of all sources, by name. `ready` is set once there is something to decide on."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Nothing is asked yet."""
        self._sources = sources
        self._found: dict[str, list[Found]] = {source.name: [] for source in sources}
        self._dirty = {source.name: asyncio.Event() for source in sources}
        self._read: set[str] = set()
        self._tasks: dict[str, asyncio.Task[NoReturn]] = {}
        self.lost: dict[str, str] = {}
        self.watchers: dict[str, Watcher] = {}
        self._listeners: list[asyncio.Event] = []
        self.ready = asyncio.Event()
        if not sources:
            self.ready.set()

    def listener(self) -> asyncio.Event:
        """Return an event that is set whenever a guest came, went, or has another option."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    @property
    def sources(self) -> dict[str, bool]:
        """Whether each source answered when it was last asked."""
        return {source.name: source.name not in self.lost for source in self._sources}

    def _tell(self) -> None:
        for event in self._listeners:
            event.set()

    @property
    def announcements(self) -> list[Announcement]:
        """What the broker is to be told."""
        found = [watcher.found.announcement for watcher in self.watchers.values()]
        return [announcement for announcement in found if announcement is not None]

    @property
    def unread(self) -> set[str]:
        """Sources that have never been read: of their guests it is not known which have ended."""
        return self._found.keys() - self._read

    @property
    def may_forget(self) -> bool:
        """Whether all that there is to announce is known; before that the broker is not to shut others out."""
        return not any(source.announces for source in self._sources if source.name in self.unread)

    async def run(self) -> None:
        """Keep up with all sources, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for source in self._sources:
                group.create_task(self._watch(source))
                group.create_task(self._keep(source, group))

    async def _watch(self, source: Source) -> None:
        def on_change(lost: str) -> None:
            if lost:
                log.warning("source_lost", source=source.name, reason=lost)
                self.lost[source.name] = lost
                self._is_known(source)
            self._dirty[source.name].set()

        await source.watch(on_change)

    async def _keep(self, source: Source, group: asyncio.TaskGroup) -> None:
        dirty, wait_seconds = self._dirty[source.name], REFRESH_SECONDS
        while True:
            try:
                async with asyncio.timeout(wait_seconds):
                    await dirty.wait()
            except TimeoutError:
                pass
            dirty.clear()
            try:
                self._found[source.name] = await source.guests()
            except MemshareError as error:
                if source.name not in self.lost:
                    log.warning("source_lost", source=source.name, reason=str(error))
                self.lost[source.name] = str(error)
                wait_seconds = RETRY_SECONDS
            else:
                if self.lost.pop(source.name, None) is not None:
                    log.info("source_found_again", source=source.name)
                wait_seconds = REFRESH_SECONDS
                self._read.add(source.name)
                self._take_over(group)
            self._is_known(source)

    def _is_known(self, source: Source) -> None:
        """Begin to decide once each source has answered or is known to be away."""
        if all(name in self._read or name in self.lost for name in self._found):
            self.ready.set()

    def _take_over(self, group: asyncio.TaskGroup) -> None:
        """Have one watcher for each guest there is."""
        now = {guest.domain.name: guest for guest in union(self._found.values())}
        for name, watcher in list(self.watchers.items()):
            if name not in now or now[name].process != watcher.found.process:
                self._tasks.pop(name).cancel()
                del self.watchers[name]
                self._tell()
                log.info("guest_gone", domain=name)
        for name, guest in now.items():
            if (known := self.watchers.get(name)) is None:
                watcher = self.watchers[name] = Watcher(guest, self._dirty[guest.domain.source].set)
                self._tasks[name] = group.create_task(watcher.run())
                self._tell()
                log.info(
                    "guest_found",
                    domain=name,
                    source=guest.domain.source,
                    group=guest.domain.group,
                    problem=guest.domain.problem or None,
                )
            elif _said(known.found) != _said(guest):
                log.info("guest_changed", domain=name, option=str(guest.domain.option))
                known.found = guest
                self._tell()


def _said(found: Found) -> tuple[Domain, Announcement | None]:
    return found.domain, found.announcement
