# SPDX-License-Identifier: GPL-2.0-or-later
"""A fake memshared: answers each command on its control socket with what a test gives it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any


def broker_status(*groups: dict[str, Any]) -> dict[str, Any]:
    """What `status` answers."""
    return {"version": "9", "protocol": 1, "pid": 7, "groups": list(groups), "allowed": []}


@contextlib.asynccontextmanager
async def fake_broker(socket: Path, answers: dict[str, dict[str, Any]]) -> AsyncIterator[Path]:
    """Serve at socket until the block is left."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                answer = answers.get(json.loads(line)["command"])
                told = {"ok": True, **answer} if answer else {"ok": False, "error": "unknown"}
                writer.write(json.dumps(told).encode() + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(socket))
    try:
        yield socket
    finally:
        server.close()
