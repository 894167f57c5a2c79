# SPDX-License-Identifier: GPL-2.0-or-later
"""qemu-guest-agent, by the Unix socket of its virtio-serial port: one JSON object a line in each direction.

One request at a time. Sources: QEMU's docs/interop/qemu-ga.rst and qga/qapi-schema.json.
"""

import asyncio
import base64
import itertools
import random
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from memshare.errors import MemshareError, UnreachableError

#: The agent drops what it has read so far of a line, and begins the answer to guest-sync-delimited with it.
SENTINEL = b"\xff"
ANSWER_SECONDS = 120.0  # a guest among many, on few cores
#: What is sent before the guest has opened the port may be lost on the way: asked anew after so long.
SYNC_SECONDS = 3.0
POLL_SECONDS, POLL_SECONDS_MAX, POLL_FACTOR = 0.02, 0.5, 1.5
LINE_BYTES_MAX = 16 << 20  # what a program printed comes as one line


class AgentError(MemshareError):
    """The agent, or a program that it ran, says that it could not."""


class Done(NamedTuple):
    """How a program ended."""

    code: int
    output: str
    errors: str


class Agent:
    """The agent of one guest. Made by `connect`."""

    def __init__(
        self, where: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Wrap a connection; where is how messages name the guest."""
        self._where = where
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._numbers = itertools.count(random.getrandbits(30))  # not another connection's
        self._is_in_step = False  # whether the next line will be the answer to the next request

    async def ready(self) -> None:
        """Wait until the agent answers, however long that takes."""
        while True:
            try:
                async with asyncio.timeout(SYNC_SECONDS):
                    await self.execute("guest-ping")
                return
            except TimeoutError:
                continue

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run one command of the agent's; an underscore in an argument's name stands for a dash.

        AgentError with the agent's words, UnreachableError when it went away. Takes as long as it takes: bound it
        with asyncio.timeout.
        """
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = {
                name.replace("_", "-"): value for name, value in arguments.items()
            }
        async with self._lock:
            if not self._is_in_step:
                await self._synchronise()
            self._is_in_step = False  # until the answer is there: a caller may lose patience
            self._send(request)
            answer = self._decoded(await self._line())
            self._is_in_step = True
        if "error" in answer:
            words = answer["error"].get("desc", "no reason given")
            raise AgentError(f"{self._where}: {command}: {words}")
        return answer.get("return")

    async def run(self, *program: str, seconds: float = ANSWER_SECONDS) -> Done:
        """Run a program in the guest to its end; its path is absolute."""
        path, *arguments = program
        try:
            async with asyncio.timeout(seconds):
                started = await self.execute(
                    "guest-exec", path=path, arg=arguments, capture_output=True
                )
                pause = POLL_SECONDS
                while True:
                    status = await self.execute("guest-exec-status", pid=started["pid"])
                    if status["exited"]:
                        break
                    await asyncio.sleep(pause)
                    pause = min(POLL_SECONDS_MAX, pause * POLL_FACTOR)
        except TimeoutError:
            raise AgentError(f"{self._where}: {path}: not done in {seconds:.0f} s") from None
        code = status.get("exitcode", -status.get("signal", 1))
        return Done(code, _text(status, "out-data"), _text(status, "err-data"))

    async def output_of(self, *program: str, seconds: float = ANSWER_SECONDS) -> str:
        """Run a program in the guest that must succeed; what it prints."""
        done = await self.run(*program, seconds=seconds)
        if done.code:
            words = (done.errors or done.output).strip().splitlines()[-1:] or ["it said nothing"]
            raise AgentError(f"{self._where}: {' '.join(program)}: code {done.code}: {words[0]}")
        return done.output

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _synchronise(self) -> None:
        """Ask for a number and skip everything up to it: answers that nobody waited for."""
        number = next(self._numbers)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._writer.write(SENTINEL)
        self._send(request)
        while True:
            _, _, line = (await self._line()).rpartition(SENTINEL)
            try:
                answer = msgspec.json.decode(line)
            except msgspec.DecodeError:
                continue  # the rest of a line that was cut
            if isinstance(answer, dict) and answer.get("return") == number:
                self._is_in_step = True
                return

    def _send(self, request: object) -> None:
        self._writer.write(msgspec.json.encode(request) + b"\n")

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readline()
        except (OSError, ValueError) as error:  # ValueError: a line without end
            raise UnreachableError(f"{self._where}: its agent: {error}") from error
        if not line.endswith(b"\n"):
            raise UnreachableError(f"{self._where}: its agent went away")
        return line

    def _decoded(self, line: bytes) -> dict[str, Any]:
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise AgentError(f"{self._where}: its agent said no JSON: {error}") from error


async def connect(socket: Path, where: str) -> Agent:
    """Connect to the port, which a QEMU that has just started may not have made yet."""
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=LINE_BYTES_MAX)
            return Agent(where, reader, writer)
        except OSError:
            await asyncio.sleep(0.05)


def _text(status: dict[str, Any], key: str) -> str:
    return base64.b64decode(status.get(key, "")).decode(errors="replace")
