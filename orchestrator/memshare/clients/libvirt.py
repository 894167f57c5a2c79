# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of libvirt, one `Hypervisor` a URI.

Threads: libvirt's calls block, so each runs in a thread of its own and has a connection for itself. One that
hangs (a stopped QEMU, a host that went away) costs its caller a timeout and nobody else anything. Calls of
several threads on one connection would do in principle, but libvirt 9.0 loses wake-ups then: while one
waits, another's answer lies unread for seconds.

Events are delivered by libvirt's own loop in one more thread and handed to asyncio. `libvirtaio`, which runs
that loop in asyncio, changes asyncio's timers from whichever thread makes a call, and asyncio misses them.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

import msgspec

from memshare.clients.monitor import (
    NO_SUCH_OBJECT,
    TIMEOUT_SECONDS,
    Monitor,
    NoSuchObjectError,
    look,
)
from memshare.domain import attachment, option
from memshare.errors import HostError, MemshareError, NoSuchDomainError, UnreachableError
from memshare.model import Domain, Option

try:
    import libvirt
    import libvirt_qemu
except ImportError as missing:
    raise HostError(
        f"the Python binding of libvirt is missing ({missing})",
        "install python3-libvirt, or memshare[libvirt] with pip",
    ) from missing

#: Longest wait for libvirt; a guest's own answer is waited for as long as at a socket of ours.
CALL_SECONDS = 30.0
#: A libvirtd that says nothing for so long is given up: interval, and how many may be missed.
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 5, 3
#: How many guests are asked at the same time.
COMMANDS_AT_ONCE = 8
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.25, 15.0

T = TypeVar("T")

_loop_started = threading.Lock()


class Kind(StrEnum):
    """What happened."""

    CONNECTED = "connected"  # everything may have changed since it was lost
    LOST = "lost"
    STARTED = "started"
    STOPPED = "stopped"
    METADATA = "metadata"
    DEFINED = "defined"
    UNDEFINED = "undefined"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One event. uuid and name are empty where it is the hypervisor's own; `reason` tells of a loss."""

    uri: str
    kind: Kind
    uuid: str = ""
    name: str = ""
    reason: str = ""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A guest as libvirt has it now: the XML it runs with."""

    uuid: str
    name: str
    id: int
    persistent: bool
    xml: str


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: Kind.STARTED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: Kind.STOPPED,
    libvirt.VIR_DOMAIN_EVENT_DEFINED: Kind.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: Kind.UNDEFINED,
}


class _ConnectError(Exception):
    """libvirt cannot be reached; the message is its own."""


def _start_event_loop() -> None:
    """Run libvirt's event loop for the rest of this process, before any connection is made."""
    if not _loop_started.acquire(blocking=False):
        return

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    # Its errors come as exceptions too.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


def _hand_over(
    loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object
) -> None:
    """Have something called by asyncio, from another thread."""
    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
        loop.call_soon_threadsafe(call, *arguments)


async def _in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a call that may block, from a thread that no exit waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(setter: Callable[[Any], None], value: object) -> None:
        if not future.done():
            setter(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], object] = (future.set_result, call(*arguments))
        except Exception as error:
            outcome = (future.set_exception, error)
        _hand_over(loop, deliver, *outcome)

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    return await future


class Hypervisor:
    """One libvirt. Needs no connecting: each call takes a connection that is free, or makes one."""

    def __init__(self, uri: str) -> None:
        """Nothing is asked yet."""
        self.uri = uri
        self._free: list[Any] = []
        self._opening: set[object] = set()
        self._hanging: set[object] = set()
        self._busy: set[str] = set()
        self._commands = asyncio.Semaphore(COMMANDS_AT_ONCE)

    async def close(self) -> None:
        """End all connections that are free. Those of calls that hang end with them."""
        free, self._free = self._free, []
        for connection in free:
            await _in_thread(_close, connection)

    # Events

    async def watch(self, on_change: Callable[[Change], None]) -> NoReturn:
        """Stay connected and tell each change, until cancelled.

        After CONNECTED whatever was known is to be read again. A libvirtd that is away is asked
        for again, less and less often; LOST tells why, once.
        """
        told, pause_seconds = False, RETRY_SECONDS_MIN
        while True:
            try:
                connection = await self._call("", self._open)
            except MemshareError as error:
                if not told:
                    on_change(Change(uri=self.uri, kind=Kind.LOST, reason=str(error)))
                told = True
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, RETRY_SECONDS_MAX)
                continue
            told, pause_seconds = True, RETRY_SECONDS_MIN
            try:
                reason = await self._serve_events(connection, on_change)
            except MemshareError as error:
                reason = str(error)
            on_change(Change(uri=self.uri, kind=Kind.LOST, reason=reason))
            await asyncio.sleep(pause_seconds)

    async def _serve_events(self, connection: Any, on_change: Callable[[Change], None]) -> str:
        """Tell changes until the connection ends; return why it did."""
        loop = asyncio.get_running_loop()
        closed: asyncio.Future[str] = loop.create_future()

        def end() -> None:
            if not closed.done():
                closed.set_result(f"{self.uri}: the connection has ended")

        def tell(domain: Any, kind: Kind) -> None:
            change = Change(uri=self.uri, kind=kind, uuid=domain.UUIDString(), name=domain.name())
            _hand_over(loop, on_change, change)

        def on_lifecycle(_: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
            if event in _LIFECYCLE:
                tell(domain, _LIFECYCLE[event])

        def on_metadata(_: Any, domain: Any, _type: int, uri: str | None, _opaque: Any) -> None:
            if uri == option.NAMESPACE:
                tell(domain, Kind.METADATA)

        def on_close(_: Any, _reason: int, _opaque: Any) -> None:
            _hand_over(loop, end)

        registered: list[int] = []

        def register() -> None:
            with contextlib.suppress(libvirt.libvirtError):  # a driver inside this process
                connection.registerCloseCallback(on_close, None)
            for event, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, on_metadata),
            ):
                registered.append(connection.domainEventRegisterAny(None, event, callback, None))

        def leave() -> None:
            for identifier in registered:
                with contextlib.suppress(libvirt.libvirtError):
                    connection.domainEventDeregisterAny(identifier)
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
            _close(connection)

        try:
            await self._call("", register)
            on_change(Change(uri=self.uri, kind=Kind.CONNECTED))
            return await closed
        finally:
            # A callback that is registered keeps the connection open. Not waited for: libvirtd may hang.
            threading.Thread(target=leave, name="libvirt-leave", daemon=True).start()

    # Guests

    async def names(self) -> list[str]:
        """All guests, also those that do not run; in order."""
        return await self._ask(
            "", lambda to: sorted(domain.name() for domain in to.listAllDomains(0))
        )

    async def running(self) -> list[Running]:
        """Guests that run now, in order of names. One that ends meanwhile is left out."""

        def read(connection: Any) -> list[Running]:
            found = []
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                try:
                    found.append(_running(domain))
                except libvirt.libvirtError as error:
                    # Where the connection was lost nobody has ended.
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
            return sorted(found, key=lambda guest: guest.name)

        return await self._ask("", read)

    async def find(self, name: str) -> Running | None:
        """One guest (by name or UUID) as it runs, None when it does not; NoSuchDomainError."""

        def read(connection: Any) -> Running | None:
            domain = _look_up(connection, name)
            return _running(domain) if domain.isActive() else None

        return await self._ask(name, read)

    async def domains(self, host_group: str) -> list[Domain]:
        """Return all guests that run, with their figures or the reason why there are none."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(look(self.monitor(guest), self.describe(guest, host_group)))
                for guest in await self.running()
            ]
        return [task.result() for task in tasks]

    def describe(self, guest: Running, host_group: str) -> Domain:
        """Return the guest without figures: who it is and what its owner wants."""
        told = attachment.read(guest.xml, host_group)
        return Domain(
            name=guest.name,
            source=self.uri,
            uuid=guest.uuid,
            option=told.option,
            group=told.group,
            owner_group=told.owner_group,
            problem=told.problem,
        )

    def monitor(self, guest: Running) -> "LibvirtMonitor":
        """Return the guest's monitor."""
        return LibvirtMonitor(self, guest)

    # Changes

    async def persistent_xml(self, name: str, *, secure: bool) -> str:
        """Return what the guest starts with next. secure: with passwords, as `define` needs it."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0)

        def read(connection: Any) -> str:
            domain = _look_up(connection, name)
            if not domain.isPersistent():
                raise MemshareError(f"{name}: is transient: there is no next start", "use --live")
            return str(domain.XMLDesc(flags))

        return await self._ask(name, read)

    async def define(self, name: str, xml: str) -> None:
        """Have the guest start with this from the next time on."""
        flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE
        await self._ask(name, lambda connection: connection.defineXMLFlags(xml, flags))

    async def set_live_option(self, name: str, wanted: Option | None) -> None:
        """Write the option of a guest that runs; None takes it away."""
        text = None if wanted is None else option.to_text(wanted)

        def write(connection: Any) -> None:
            _look_up(connection, name).setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                text,
                option.PREFIX,
                option.NAMESPACE,
                libvirt.VIR_DOMAIN_AFFECT_LIVE,
            )

        await self._ask(name, write)

    async def set_memory(self, guest: Running, target_bytes: int) -> None:
        """Have a guest's balloon leave it so much RAM; libvirt keeps the figure, so it is told and not QEMU."""

        def write(connection: Any) -> None:
            domain = connection.lookupByUUIDString(guest.uuid)
            domain.setMemoryFlags(target_bytes >> 10, libvirt.VIR_DOMAIN_AFFECT_LIVE)

        await self._ask(guest.name, write)

    async def monitor_command(self, guest: Running, text: str) -> str:
        """Bring one QMP command to QEMU and return its answer.

        One at a time to each guest: one that does not answer has at most one thread waiting for it.
        """
        if guest.uuid in self._busy:
            raise UnreachableError(f"{guest.name}: has not answered an earlier command yet")

        def send(connection: Any) -> str:
            domain = connection.lookupByUUIDString(guest.uuid)
            return str(libvirt_qemu.qemuMonitorCommand(domain, text, 0))

        def send_and_be_free() -> str:
            try:
                return self._over_own_connection(send)
            finally:
                self._busy.discard(guest.uuid)

        async with self._commands:
            self._busy.add(guest.uuid)
            return await self._call(guest.name, send_and_be_free, TIMEOUT_SECONDS)

    # Calls

    async def _ask(self, name: str, question: Callable[[Any], T]) -> T:
        return await self._call(name, lambda: self._over_own_connection(question))

    def _over_own_connection(self, question: Callable[[Any], T]) -> T:
        """Ask something over a connection that nobody else uses meanwhile."""
        connection = self._take()
        try:
            return question(connection)
        finally:
            if _lives(connection):
                self._free.append(connection)

    def _take(self) -> Any:
        """Return a connection that is free and works, or a new one."""
        while self._free:
            with contextlib.suppress(IndexError):  # another thread took the last one
                if _lives(connection := self._free.pop()):
                    return connection
        return self._open()

    def _open(self) -> Any:
        """Return a new connection; raises _ConnectError, at once while an earlier one hangs.

        A libvirtd that takes connections and says nothing would cost a thread and its descriptors each time.
        """
        if self._opening & self._hanging:
            raise _ConnectError("does not answer")
        self._opening.add(this := object())
        try:
            return _open(self.uri)
        finally:
            self._opening.remove(this)

    async def _call(
        self, name: str, call: Callable[[], T], timeout_seconds: float = CALL_SECONDS
    ) -> T:
        """Call libvirt; its errors become ours, naming the guest or else the URI."""
        where = name or self.uri
        try:
            async with asyncio.timeout(timeout_seconds):
                return await _in_thread(call)
        except TimeoutError as error:
            self._hanging = set(self._opening)
            raise UnreachableError(f"{where}: libvirt does not answer") from error
        except _ConnectError as error:
            raise UnreachableError(f"{self.uri}: {error}", "does libvirtd run?") from error
        except libvirt.libvirtError as error:
            text = f"{where}: {str(error).removeprefix('internal error: ')}"
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise NoSuchDomainError(text, f"virsh -c {self.uri} list --all") from error
            if error.get_error_domain() == libvirt.VIR_FROM_RPC:
                raise UnreachableError(text, "does libvirtd run?") from error
            raise MemshareError(text) from error


class LibvirtMonitor(Monitor):
    """A guest's monitor, which libvirt holds. libvirt marks the guest tainted by `custom-monitor`."""

    def __init__(self, hypervisor: Hypervisor, guest: Running) -> None:
        """Made by `Hypervisor.monitor`."""
        super().__init__(guest.name)
        self._hypervisor = hypervisor
        self._guest = guest

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run one command and return its result."""
        text = await self._hypervisor.monitor_command(
            self._guest, json.dumps({"execute": command, "arguments": arguments})
        )
        try:
            answer = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise MemshareError(f"{self.where}: {command}: no JSON object came back") from error
        if "error" in answer:
            told = answer["error"] if isinstance(answer["error"], dict) else {}
            kind = NoSuchObjectError if told.get("class") == NO_SUCH_OBJECT else MemshareError
            raise kind(f"{self.where}: {command}: {told.get('desc', 'refused')}")
        return answer.get("return")

    async def set_balloon(self, target_bytes: int) -> None:
        """Ask the guest's balloon to leave it so much RAM."""
        await self._hypervisor.set_memory(self._guest, target_bytes)


def _open(uri: str) -> Any:
    """Return a new connection; raises _ConnectError."""
    _start_event_loop()
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise _ConnectError(str(error)) from error
    # A driver inside this process has nothing to keep alive.
    with contextlib.suppress(libvirt.libvirtError):
        connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
    return connection


def _close(connection: Any) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


def _lives(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _look_up(connection: Any, name: str) -> Any:
    """Return a guest by its name, or else its UUID."""
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError:
        with contextlib.suppress(libvirt.libvirtError):
            return connection.lookupByUUIDString(name)
        raise


def _running(domain: Any) -> Running:
    return Running(
        uuid=domain.UUIDString(),
        name=domain.name(),
        id=domain.ID(),
        persistent=bool(domain.isPersistent()),
        xml=domain.XMLDesc(0),
    )


@asynccontextmanager
async def open_hypervisor(uri: str) -> AsyncIterator[Hypervisor]:
    """Talk to one libvirt for a while."""
    hypervisor = Hypervisor(uri)
    try:
        yield hypervisor
    finally:
        await hypervisor.close()
