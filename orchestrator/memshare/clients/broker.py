# SPDX-License-Identifier: GPL-2.0-or-later
"""The broker's control socket: one JSON object a line in each direction."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from memshare.errors import MemshareError, UnreachableError
from memshare.model import Broker

TIMEOUT_SECONDS = 5.0
LINE_BYTES_MAX = 16 << 20


async def ask(socket: Path, command: str, **arguments: object) -> dict[str, Any]:
    """Send one command and return the broker's answer; raises when it says no or nothing."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=LINE_BYTES_MAX)
            try:
                writer.write(msgspec.json.encode({"command": command, **arguments}) + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError as error:
        raise UnreachableError(f"{socket}: the broker does not answer") from error
    except OSError as error:
        raise UnreachableError(
            f"{socket}: {(error.strerror or str(error)).lower()}", "is memshared running?"
        ) from error
    try:
        answer: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise MemshareError(f"{socket}: {command}: no JSON object came back") from error
    if answer.get("ok") is False:
        raise MemshareError(f"{socket}: {command}: {answer.get('error', 'refused')}")
    return answer


async def read_broker(socket: Path) -> Broker:
    """Return the broker's figures; UnreachableError when it does not answer."""
    answer = await ask(socket, "status")
    try:
        return msgspec.convert(answer, Broker)
    except msgspec.ValidationError as error:
        raise MemshareError(f"{socket}: status: {error}") from error
