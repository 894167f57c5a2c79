# SPDX-License-Identifier: GPL-2.0-or-later
"""Monitors as QEMU has them at odd moments."""

import asyncio
import json
from pathlib import Path

import pytest

from memshare.clients.qmp import open_monitor, server_of
from memshare.errors import UnreachableError

EVENT = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}


async def serve(path: Path, *first: object) -> asyncio.Server:
    """Say something to whoever comes, then take each command for good."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for message in first:
            writer.write(json.dumps(message).encode() + b"\r\n")
        while data := await reader.read(4096):
            asked = json.loads(data)
            answer = {"return": {"name": "web1"}, **({"id": asked["id"]} if "id" in asked else {})}
            writer.write(json.dumps(answer).encode() + b"\r\n")
        writer.close()

    return await asyncio.start_unix_server(talk, str(path))


async def test_an_event_may_come_before_the_greeting(tmp_path: Path) -> None:
    path = tmp_path / "web1.sock"
    async with await serve(path, EVENT, EVENT, GREETING, EVENT), open_monitor(path) as monitor:
        assert await monitor.name() == "web1"


async def test_without_a_greeting_there_is_no_monitor(tmp_path: Path) -> None:
    path = tmp_path / "web1.sock"
    async with await serve(path, {"hello": "world"}):
        with pytest.raises(UnreachableError, match="Greeting"):
            async with open_monitor(path):
                pass


async def test_a_socket_that_nobody_serves_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "web1.sock"
    assert server_of(path) is None
    async with await serve(path, GREETING):
        assert server_of(path)
    path.touch()
    assert server_of(path) is None
