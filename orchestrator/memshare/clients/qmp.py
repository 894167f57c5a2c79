# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with a QMP socket of ours each, all in one folder.

QEMU serves one client a socket at a time, so a monitor is opened, asked and closed again.
"""

import asyncio
import errno
import logging
import socket as stdlib_socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from memshare.clients.monitor import (
    NO_SUCH_OBJECT,
    TIMEOUT_SECONDS,
    Monitor,
    NoSuchObjectError,
    look,
)
from memshare.errors import MemshareError, UnreachableError
from memshare.model import Domain

# The library logs what we report ourselves.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class QuietClient(QMPClient):
    """A client that does not write down its messages, and waits for its greeting.

    The library's own does so for a log of its own, each one printed for people even when nobody
    listens: with 50 guests that took longer than all else that Python does to ask them.
    """

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    async def _do_recv(self) -> Message:
        """Return the next message; QEMU may tell an event to a client before it has greeted it."""
        message = await super()._do_recv()
        while self.runstate is Runstate.CONNECTING and "event" in message:
            message = await super()._do_recv()
        return message


class SocketMonitor(Monitor):
    """An open monitor. Made by `open_monitor`."""

    def __init__(self, client: QMPClient, socket: Path, timeout_seconds: float) -> None:
        """Wrap a connected client."""
        super().__init__(str(socket))
        self._client = client
        self._socket = socket
        self._timeout_seconds = timeout_seconds

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run one command and return its result."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._client.execute(command, arguments or None)
        except TimeoutError as error:
            raise UnreachableError(f"{self._socket}: no answer to {command}") from error
        except ExecuteError as error:
            kind = NoSuchObjectError if error.error_class == NO_SUCH_OBJECT else MemshareError
            raise kind(f"{self._socket}: {command}: {error}") from error
        except QMPError as error:
            raise UnreachableError(f"{self._socket}: the guest went away") from error

    async def name(self) -> str:
        """The guest's name, as given to QEMU, or else that of its socket."""
        return await super().name() or name_of(self._socket)


@asynccontextmanager
async def open_monitor(
    socket: Path, timeout_seconds: float = TIMEOUT_SECONDS
) -> AsyncIterator[SocketMonitor]:
    """Connect to a monitor; raises UnreachableError when nobody answers in time."""
    client = QuietClient(socket.name)
    try:
        async with asyncio.timeout(timeout_seconds):
            await client.connect(str(socket))
    except TimeoutError as error:
        raise UnreachableError(
            f"{socket}: no answer", "another program may hold this monitor"
        ) from error
    except (QMPError, OSError) as error:
        cause = getattr(error, "exc", None) or error
        raise UnreachableError(f"{socket}: {reason(cause)}") from error
    try:
        yield SocketMonitor(client, socket, timeout_seconds)
    finally:
        try:
            async with asyncio.timeout(timeout_seconds):
                await client.disconnect()
        except Exception:
            pass  # it is gone; what mattered was answered or reported already


def server_of(socket: Path) -> int | None:
    """Return the process that listens at a socket, 0 where it cannot be told, None when nobody does.

    A QEMU that was killed leaves its socket behind.
    """
    with stdlib_socket.socket(stdlib_socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(socket))
        except OSError as error:  # would it block, others wait there already
            return None if error.errno in (errno.ECONNREFUSED, errno.ENOENT) else 0
        size = struct.calcsize("3i")
        credentials = client.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_PEERCRED, size)
        pid: int = struct.unpack("3i", credentials)[0]
        return pid


def name_of(socket: Path) -> str:
    """Return the guest's name as its socket has it."""
    return socket.name.removesuffix(".qmp").removesuffix(".sock")


async def read_domain(socket: Path) -> Domain:
    """One guest's figures, or why there are none."""
    guest = Domain(name=name_of(socket), source=str(socket.parent))
    try:
        async with open_monitor(socket) as monitor, asyncio.TaskGroup() as group:
            # Both at once: each answer that is waited for is a turn of every guest's main loop.
            named = group.create_task(identify(monitor, guest))
            looked = group.create_task(look(monitor, guest))
    except UnreachableError as error:
        return msgspec.structs.replace(guest, problem=str(error), answered=False)
    who = named.result()
    return msgspec.structs.replace(looked.result(), name=who.name, uuid=who.uuid)


async def identify(monitor: Monitor, guest: Domain) -> Domain:
    """Return the guest with the name and UUID that its QEMU says, if it does. Raises nothing."""
    try:
        guest = msgspec.structs.replace(guest, name=await monitor.name())
        return msgspec.structs.replace(guest, uuid=await monitor.uuid())
    except MemshareError:
        return guest


async def read_domains(folder: Path) -> list[Domain]:
    """Ask all monitors of a folder at once; in order of names."""
    try:
        sockets = sorted(path for path in folder.iterdir() if path.is_socket())
    except OSError as error:
        raise UnreachableError(
            f"{folder}: {reason(error)}",
            "name the folder that holds your guests' QMP sockets with --qmp-dir",
        ) from error
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read_domain(socket)) for socket in sockets]
    return sorted((task.result() for task in tasks), key=lambda domain: domain.name)


def reason(error: BaseException) -> str:
    """Return the system's words for an error, without numbers and names of Python."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
