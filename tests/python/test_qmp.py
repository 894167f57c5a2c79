# SPDX-License-Identifier: GPL-2.0-or-later
"""Monitors as QEMU has them at odd moments."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from memshare.bench import machine
from memshare.clients.qmp import open_monitor, server_of
from memshare.errors import UnreachableError

EVENT = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}


async def serve(path: Path | socket.socket, *first: object) -> asyncio.Server:
    """Say something to whoever comes, then take each command for good; at a path, or a socket that is bound."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for message in first:
            writer.write(json.dumps(message).encode() + b"\r\n")
        while data := await reader.read(4096):
            asked = json.loads(data)
            answer = {"return": {"name": "web1"}, **({"id": asked["id"]} if "id" in asked else {})}
            writer.write(json.dumps(answer).encode() + b"\r\n")
        writer.close()

    if isinstance(path, socket.socket):
        return await asyncio.start_unix_server(talk, sock=path)
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


async def test_a_guest_whose_monitor_does_not_listen_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU binds its socket, loses the processor, and listens later."""
    (tmp_path / "qmp").mkdir()
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "qmp" / "web1.qmp"))
    was_refused = asyncio.Event()

    def look(path: Path) -> int | None:
        found = server_of(path)
        if found is None:
            was_refused.set()
        return found

    monkeypatch.setattr(machine, "server_of", look)
    process = await asyncio.create_subprocess_exec("sleep", "60")

    async def listen() -> asyncio.Server:
        await was_refused.wait()
        return await serve(bound, GREETING)

    listening = asyncio.create_task(listen())
    try:
        async with machine.Machine("web1", tmp_path, process).monitor() as monitor:
            assert await monitor.name() == "web1"
    finally:
        (await listening).close()
        process.kill()
        await process.wait()
