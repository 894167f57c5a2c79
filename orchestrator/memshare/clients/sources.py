# SPDX-License-Identifier: GPL-2.0-or-later
"""Where guests are found: a libvirt, or a folder of QMP sockets. One model of a guest for both."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import msgspec

from memshare import paths
from memshare.clients.admission import LIBVIRT_RUN, Announcement, find_cgroup, find_pid
from memshare.clients.fleet import default_uris, is_same
from memshare.clients.monitor import Monitor
from memshare.clients.qmp import identify, name_of, open_monitor, reason, server_of
from memshare.config import Config
from memshare.errors import MemshareError, UnreachableError, UsageError
from memshare.model import Domain

LOOK_SECONDS = 1.0
NAME_SECONDS = 1.0  # a guest that does not tell its name by then has that of its socket for now


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that runs, without figures, and how to reach its monitor.

    process tells one start of it from the next. pid is that of its QEMU; None where that is unknown, or on another
    host. announcement is what the broker is to be told; None for a guest that belongs to no group, or whose host is
    another one.
    """

    domain: Domain
    process: str
    pid: int | None = None
    monitor: Callable[[], AbstractAsyncContextManager[Monitor]]
    announcement: Announcement | None = None


class Source(ABC):
    """Guests of one place. `name` is how messages call it; `announces` says whether the broker is told of any."""

    announces = False

    def __init__(self, name: str) -> None:
        """Nothing is asked yet."""
        self.name = name

    @abstractmethod
    async def guests(self) -> list[Found]:
        """Return the guests that run now; UnreachableError when that cannot be known."""

    @abstractmethod
    async def watch(self, on_change: Callable[[str], None]) -> NoReturn:
        """Tell whenever `guests` may have changed, until cancelled; with the reason when the place was lost."""

    async def close(self) -> None:  # noqa: B027  most have nothing open
        """Let go of what is open."""


class SocketFolder(Source):
    """Guests with a QMP socket of ours each. A guest belongs to nobody's group here: sockets' modes decide."""

    def __init__(self, folder: Path) -> None:
        """Nothing is asked yet."""
        super().__init__(str(folder))
        self._folder = folder
        self._known: dict[tuple[str, int], Domain] = {}

    def _sockets(self) -> dict[tuple[str, int], Path]:
        try:
            return {
                (path.name, path.stat().st_ino): path
                for path in sorted(self._folder.iterdir())
                if path.is_socket()
            }
        except OSError as error:
            raise UnreachableError(
                f"{self._folder}: {reason(error)}", "name a folder that holds guests' QMP sockets"
            ) from error

    async def guests(self) -> list[Found]:
        """Return a guest a socket that is served; one that does not tell its name has that of the socket."""
        found = self._sockets()
        servers = {key: server_of(path) for key, path in found.items()}
        sockets = {key: path for key, path in found.items() if servers[key] is not None}
        self._known = {key: known for key, known in self._known.items() if key in sockets}
        async with asyncio.TaskGroup() as group:
            for key, socket in sockets.items():
                if key not in self._known:
                    group.create_task(self._learn(key, socket))
        told = {key: self._known.get(key, self._unknown(path)) for key, path in sockets.items()}
        names = _distinct({key: domain.name for key, domain in told.items()})
        return [
            Found(
                domain=msgspec.structs.replace(told[key], name=name),
                process=f"{sockets[key]}:{key[1]}",
                pid=servers[key] or None,
                monitor=_opener(sockets[key]),
            )
            for key, name in names.items()
        ]

    async def _learn(self, key: tuple[str, int], socket: Path) -> None:
        try:
            async with open_monitor(socket, NAME_SECONDS) as monitor:
                who = await identify(monitor, unknown := self._unknown(socket))
        except MemshareError:
            return  # asked again next time
        if who is not unknown:
            self._known[key] = who

    def _unknown(self, socket: Path) -> Domain:
        """Return the guest at a socket that has not told who it is."""
        return Domain(name=name_of(socket), source=self.name)

    async def watch(self, on_change: Callable[[str], None]) -> NoReturn:
        """Look at the folder again and again: nothing in it says who comes and goes."""
        before: object = None
        while True:
            try:
                now: object = self._sockets().keys()
                lost = ""
            except UnreachableError as error:
                now = lost = str(error)
            if now != before:
                on_change(lost)
            before = now
            await asyncio.sleep(LOOK_SECONDS)


def _distinct(told: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], str]:
    """Return names that are one guest's each, by socket, and that can be written down.

    Guests tell their names themselves. Of several with one name that whose socket is called so keeps it, or else the
    first; the others are called NAME@SOCKET: each is to be steered, and none may take another's place.
    """
    names: dict[tuple[str, int], str] = {}
    for key in sorted(told, key=lambda key: (name_of(Path(key[0])) != told[key], key)):
        name = printable(told[key])
        names[key] = name if name not in names.values() else printable(f"{name}@{key[0]}")
    return names


def printable(text: str) -> str:
    """Return a text in which all that is not to be seen or not to be encoded is written as an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _opener(socket: Path) -> Callable[[], AbstractAsyncContextManager[Monitor]]:
    return lambda: open_monitor(socket)


class Libvirt(Source):
    """Guests of one libvirt. Those of this host's are announced to the broker."""

    def __init__(self, uri: str, host_group: str, run: Path = LIBVIRT_RUN) -> None:
        """Nothing is asked yet. run: where its libvirtd keeps the process ids of its guests."""
        from memshare.clients.libvirt import Hypervisor

        super().__init__(uri)
        self._hypervisor = Hypervisor(uri)
        self._host_group = host_group
        self._run = run
        # Another host's guests are that host's broker's; a session's share one cgroup.
        self.announces = uri.partition("?")[0] in (paths.LIBVIRT_URI, "qemu+unix:///system")

    async def close(self) -> None:
        """End its connections."""
        await self._hypervisor.close()

    async def guests(self) -> list[Found]:
        """Return the guests that run; what is wrong with one is its problem."""
        found = []
        for guest in await self._hypervisor.running():
            domain = self._hypervisor.describe(guest, self._host_group)
            announcement = None
            pid = find_pid(guest.name, self._run) if self.announces else None
            if domain.group is not None and self.announces:
                try:
                    cgroup = find_cgroup(guest.name, guest.id, self._run)
                    announcement = Announcement(uuid=guest.uuid, group=domain.group, cgroup=cgroup)
                except MemshareError as error:
                    problem = domain.problem or str(error)
                    domain = msgspec.structs.replace(domain, problem=problem)
            found.append(
                Found(
                    domain=domain,
                    process=f"{guest.uuid}:{guest.id}:{pid}",  # ids begin anew with libvirtd
                    pid=pid,
                    monitor=_lender(self._hypervisor.monitor(guest)),
                    announcement=announcement,
                )
            )
        return found

    async def watch(self, on_change: Callable[[str], None]) -> NoReturn:
        """Tell of starts, stops and changed options."""
        await self._hypervisor.watch(lambda change: on_change(change.reason))


def _lender(monitor: Monitor) -> Callable[[], AbstractAsyncContextManager[Monitor]]:
    """Return what lends a monitor that needs no opening."""

    @asynccontextmanager
    async def lend() -> AsyncIterator[Monitor]:
        yield monitor

    return lend


def sources_of(config: Config) -> list[Source]:
    """Return where the configuration says that guests are; raises UsageError when that is nowhere."""
    uris = config.connect
    if uris is None:
        # Where there is nothing else it is waited for.
        uris = (
            default_uris() if config.qmp_dirs or not find_spec("libvirt") else (paths.LIBVIRT_URI,)
        )
    run = Path(config.libvirt_run_dir)
    sources: list[Source] = [Libvirt(uri, config.group, run) for uri in dict.fromkeys(uris)]
    sources += [SocketFolder(folder) for folder in dict.fromkeys(map(Path, config.qmp_dirs))]
    if not sources:
        raise UsageError(
            "no libvirt and no folder of QMP sockets is named",
            "set connect or qmp-dirs in the configuration; for libvirt its Python binding is needed",
        )
    return sources


def union(lists: Iterable[Iterable[Found]]) -> list[Found]:
    """Return guests of several places as one list, each once and by a name of its own.

    A guest of libvirt that also has a socket of ours is one guest: the first place that has it counts. Other guests of
    two places may have one name; all but the first are called NAME@SOURCE then.
    """
    result: dict[str, Found] = {}
    for found in lists:
        elsewhere = [guest.domain for guest in result.values()]
        for guest in found:
            if any(is_same(other, guest.domain) for other in elsewhere):
                continue
            name = guest.domain.name
            if name in result:
                name = f"{name}@{guest.domain.source}"
                domain = msgspec.structs.replace(guest.domain, name=name)
                guest = msgspec.structs.replace(guest, domain=domain)
            result.setdefault(name, guest)
    return [result[name] for name in sorted(result)]
