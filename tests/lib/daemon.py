# SPDX-License-Identifier: GPL-2.0-or-later
"""A `memshare daemon` under test, and `memshare` beside it, with a configuration of their own."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from tests.lib.vm import DEADLINE_SECONDS, VmError, until

from memshare.clients.daemon import ask
from memshare.errors import UnreachableError

MEMSHARE = (sys.executable, "-c", "from memshare.cli import main; main()")


def to_toml(table: Mapping[str, Any]) -> str:
    """Return a flat table, and tables in it, as TOML. JSON's strings, numbers and lists are TOML's too."""
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [f"[{key}]", to_toml(value)]
    return "\n".join(lines)


class Daemon:
    """The command and the daemon of one configuration, whether the daemon runs or not."""

    def __init__(self, directory: Path, **config: Any) -> None:
        """Write the configuration; an underscore in a key stands for a dash."""
        self.directory = directory
        self.config = directory / "memshare.toml"
        self.socket = directory / "daemon.sock"
        self.log_file = directory / "daemon.log"
        self.process: asyncio.subprocess.Process | None = None
        self._table = {"socket": str(self.socket), "state-dir": str(directory / "state")}
        self._table |= {"metrics": {"port": 0}}
        self.configure(**config)

    def configure(self, **changes: Any) -> None:
        """Change keys of the configuration; read at the next start or reload."""
        self._table |= {name.replace("_", "-"): value for name, value in changes.items()}
        self.config.write_text(to_toml(self._table))

    @property
    def log(self) -> str:
        """What the daemon has logged so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    async def memshare(self, *arguments: str) -> tuple[int | None, str, str]:
        """Run the command in a process of its own; exit code, output, messages."""
        process = await asyncio.create_subprocess_exec(
            *MEMSHARE,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "MEMSHARE_CONFIG": str(self.config)},
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    async def do(self, *arguments: str) -> str:
        """As memshare, which must succeed; what it prints."""
        code, out, err = await self.memshare(*arguments)
        assert code == 0, err
        return out

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask the daemon's socket."""
        return await ask(self.socket, command, **arguments)

    async def view(self) -> dict[str, Any]:
        """Return figures of its last look; empty before the first."""
        with contextlib.suppress(UnreachableError):
            view: dict[str, Any] = (await self.ask("view"))["view"]
            return view
        return {}

    async def view_when(self, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a look that is accepted."""

        async def look() -> dict[str, Any]:
            if self.process is not None and self.process.returncode is not None:
                raise VmError(f"the daemon ended: {self.log}")
            return await self.view()

        return await until(look, lambda view: bool(view) and accept(view))

    async def logged(self, *words: str) -> str:
        """Wait for a line of the log that has all these words."""

        async def look() -> list[str]:
            return [line for line in self.log.splitlines() if all(word in line for word in words)]

        return (await until(look, bool))[-1]

    async def start(self) -> None:
        """Start it."""
        with self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *MEMSHARE,
                *("daemon", "--config", str(self.config)),
                stdout=log,
                stderr=log,
            )

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.process.wait()

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it meanwhile."""
        await self.start()
        try:
            yield
        finally:
            assert self.process is not None
            if self.process.returncode is None:
                await self.stop()
