# SPDX-License-Identifier: GPL-2.0-or-later
"""A fake guest: a process with the real engine, whose monitor and balloon are imitated.

    python -m tests.lib.fakeguest NAME MONITOR BROKER SHARED_MIB FREE_MIB

Its RAM is SHARED_MIB of contents that all of these guests have, and FREE_MIB that it does not need and that its
balloon may take. Each line on stdin is a number of bytes a second: from then on it writes to what it shares,
at that pace, what nobody else has. It stands for a QEMU where the guest itself would have to be a whole system with a
balloon driver.
"""

import asyncio
import contextlib
import ctypes
import json
import mmap
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from memshare.engine import Engine

MIB = 1 << 20
PAGE_BYTES = 4096
MADV_DONTNEED = 4
STEP_SECONDS = 0.05


class FakeGuest:
    """RAM, the engine that shares it, and what a monitor would say."""

    def __init__(self, name: str, broker: Path, shared_bytes: int, free_bytes: int) -> None:
        self.name = name
        self.shared_bytes, self.free_bytes = shared_bytes, free_bytes
        self.ram = mmap.mmap(-1, shared_bytes + free_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        common, own = random.Random("all of them"), random.Random(name)
        for offset in range(0, shared_bytes, MIB):
            self.ram[offset : offset + MIB] = common.randbytes(MIB)
        for offset in range(shared_bytes, len(self.ram), MIB):
            self.ram[offset : offset + MIB] = own.randbytes(MIB)
        self.balloon_bytes = len(self.ram)
        self.engine = Engine(broker, name=name, scan_rate=10_000)
        self.engine.register(self.ram)
        self.engine.start()
        self.written_bytes = 0
        self._own = own

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """Answer as QEMU would; KeyError for what it is not asked here."""
        match command, arguments.get("property"):
            case ("qmp_capabilities", _):
                return {}
            case ("query-name", _):
                return {"name": self.name}
            case ("qom-list", _):
                return [{"name": "memshare0", "type": "memshare"}]
            case ("qom-get", "stats"):
                return self.engine.stats()
            case ("qom-set", "scan-rate"):
                self.engine.set(scan_rate=arguments["value"])
                return {}
            case ("qom-set", "cpu-limit"):
                self.engine.set(cpu_limit=arguments["value"])
                return {}
            case ("qom-set", "mode"):
                self.engine.set(mode=arguments["value"])
                return {}
            case ("query-balloon", _):
                return {"actual": self.balloon_bytes}
            case ("balloon", _):
                self._inflate(arguments["value"])
                return {}
        raise KeyError(command)

    def _inflate(self, target_bytes: int) -> None:
        """Let go of RAM that is not needed, as far as there is any."""
        target = max(target_bytes, self.shared_bytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        if target < self.balloon_bytes:
            libc = ctypes.CDLL(None, use_errno=True)
            first = -(-target // PAGE_BYTES) * PAGE_BYTES
            length = ctypes.c_size_t(self.balloon_bytes - first)
            if libc.madvise(ctypes.c_void_p(address + first), length, MADV_DONTNEED):
                raise OSError(ctypes.get_errno(), "madvise")
        self.balloon_bytes = target

    async def write_from(self, pace_bytes: int) -> None:
        """Write to all that is shared, once, so many bytes a second."""
        began = time.monotonic()
        while self.written_bytes < self.shared_bytes:
            due = min(self.shared_bytes, int((time.monotonic() - began) * pace_bytes))
            for offset in range(self.written_bytes, due // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES):
                self.ram[offset : offset + PAGE_BYTES] = self._own.randbytes(PAGE_BYTES)
                self.written_bytes = offset + PAGE_BYTES
            await asyncio.sleep(STEP_SECONDS)
        print("written", flush=True)


async def _objects(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yield JSON objects as they come: clients of QMP need not end them with a line."""
    text = ""
    while data := await reader.read(64 << 10):
        text += data.decode()
        with contextlib.suppress(json.JSONDecodeError):
            while text := text.lstrip():
                found, end = json.JSONDecoder().raw_decode(text)
                text = text[end:]
                yield found


async def serve(guest: FakeGuest, monitor: Path) -> None:
    """Be its monitor, and write when told to, until stdin ends."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(message: dict[str, Any]) -> None:
            writer.write(json.dumps(message).encode() + b"\r\n")

        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "fake"}
        say({"QMP": {"version": version, "capabilities": []}})
        async for asked in _objects(reader):
            answer = {"id": asked["id"]} if "id" in asked else {}
            try:
                say(
                    {"return": guest.execute(asked["execute"], asked.get("arguments", {}))} | answer
                )
            except KeyError as error:
                say({"error": {"class": "CommandNotFound", "desc": str(error)}} | answer)
        writer.close()

    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    server = await asyncio.start_unix_server(talk, str(monitor))
    async with server, asyncio.TaskGroup() as group:
        print("ready", flush=True)
        while line := await commands.readline():
            group.create_task(guest.write_from(int(line)))
        os._exit(0)


def main() -> None:
    """Run one fake guest."""
    name, monitor, broker, shared_mib, free_mib = sys.argv[1:]
    guest = FakeGuest(name, Path(broker), int(shared_mib) * MIB, int(free_mib) * MIB)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(guest, Path(monitor)))


if __name__ == "__main__":
    main()
