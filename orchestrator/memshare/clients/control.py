# SPDX-License-Identifier: GPL-2.0-or-later
"""Asking a control socket of ours, the broker's or the daemon's: one JSON object a line in each direction."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from memshare.errors import (
    HostError,
    MemshareError,
    NoSuchDomainError,
    UnreachableError,
    UsageError,
)

TIMEOUT_SECONDS = 5.0
LINE_BYTES_MAX = 16 << 20

#: By the exit code that the daemon names in its refusals.
KINDS = {
    str(kind.exit_code): kind
    for kind in (UsageError, UnreachableError, NoSuchDomainError, HostError)
}


async def ask(
    socket: Path, command: str, *, peer: str, hint: str, **arguments: object
) -> dict[str, Any]:
    """Send one command and return the answer. peer and hint are for the error when there is none.

    UnreachableError; MemshareError (or the class that the peer named by its exit code) when it says no.
    """
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=LINE_BYTES_MAX)
            try:
                writer.write(msgspec.json.encode({"command": command, **arguments}) + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError as error:
        raise UnreachableError(f"{socket}: {peer} does not answer") from error
    except OSError as error:
        raise UnreachableError(
            f"{socket}: {(error.strerror or str(error)).lower()}", hint
        ) from error
    except ValueError as error:
        raise MemshareError(f"{socket}: {command}: an answer without end came back") from error
    try:
        answer: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MemshareError(f"{socket}: {command}: no JSON object came back") from error
    if answer.get("ok") is False:
        kind = KINDS.get(str(answer.get("exit_code")), MemshareError)
        raise kind(f"{socket}: {command}: {answer.get('error', 'refused')}", answer.get("hint"))
    return answer
