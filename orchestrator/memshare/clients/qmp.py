# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest's monitor: the plugin's QOM object, and stopping and continuing the guest.

QEMU serves one client a socket at a time, so a monitor is opened, asked and closed again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from qemu.qmp import ExecuteError, QMPClient, QMPError

from memshare.errors import MemshareError, UnreachableError
from memshare.model import PageStats

OBJECT = "/objects/memshare0"
TIMEOUT_SECONDS = 5.0

# The library logs what we report ourselves.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class NotSharingError(MemshareError):
    """The guest runs without the plugin."""


class Monitor:
    """An open monitor. Made by `open_monitor`."""

    def __init__(self, client: QMPClient, socket: Path, timeout_seconds: float) -> None:
        """Wrap a connected client."""
        self._client = client
        self._socket = socket
        self._timeout_seconds = timeout_seconds

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run one command and return its result; raises MemshareError with QEMU's own words."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._client.execute(command, arguments or None)
        except TimeoutError as error:
            raise UnreachableError(f"{self._socket}: no answer to {command}") from error
        except ExecuteError as error:
            raise MemshareError(f"{self._socket}: {command}: {error}") from error
        except QMPError as error:
            raise UnreachableError(f"{self._socket}: the guest went away") from error

    async def name(self) -> str:
        """The guest's name, as given to QEMU, or else that of its socket."""
        answer = await self.execute("query-name")
        return str(answer.get("name") or self._socket.name.removesuffix(".qmp"))

    async def stats(self) -> PageStats:
        """Return the plugin's figures; raises NotSharingError for a guest without it."""
        listed = await self.execute("qom-list", path="/objects")
        if not any(entry["name"] == OBJECT.rpartition("/")[2] for entry in listed):
            raise NotSharingError(f"{self._socket}: runs without memshare")
        answer = await self.execute("qom-get", path=OBJECT, property="stats")
        try:
            return msgspec.convert(answer, PageStats)
        except msgspec.ValidationError as error:
            raise MemshareError(f"{self._socket}: stats: {error}") from error

    async def set(self, name: str, value: str | int) -> None:
        """Set `mode`, `scan-rate` or `cpu-limit`."""
        await self.execute("qom-set", path=OBJECT, property=name, value=value)


@asynccontextmanager
async def open_monitor(
    socket: Path, timeout_seconds: float = TIMEOUT_SECONDS
) -> AsyncIterator[Monitor]:
    """Connect to a monitor; raises UnreachableError when nobody answers in time."""
    client = QMPClient(socket.name)
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
        yield Monitor(client, socket, timeout_seconds)
    finally:
        try:
            async with asyncio.timeout(timeout_seconds):
                await client.disconnect()
        except (TimeoutError, QMPError, OSError, EOFError):
            pass  # it is gone; what mattered was answered or reported already


def reason(error: BaseException) -> str:
    """Return the system's words for an error, without numbers and names of Python."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
