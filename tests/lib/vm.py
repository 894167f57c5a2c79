# SPDX-License-Identifier: GPL-2.0-or-later
"""A stock QEMU with the plugin, driven over QMP.

Without further arguments the guest is a PC under TCG that runs its firmware and finds nothing to boot.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError
from tests.lib.broker import build_directory

from memshare.bench.machine import QEMU

OBJECT = "/objects/memshare0"
#: Longest wait for anything that takes milliseconds on an idle host.
DEADLINE_SECONDS = 60.0

Stats = dict[str, Any]
T = TypeVar("T")


def plugin_path() -> Path:
    """Return the plugin that was built."""
    return build_directory() / "qemu-plugin" / "plugin" / "libmemshare-qemu.so"


class VmError(Exception):
    """QEMU ended when it should not have, or something did not happen in time."""


def plugin_arguments(**options: str | int) -> list[str]:
    """Return -plugin with these options; an underscore stands for a dash."""
    pairs = [f"{name.replace('_', '-')}={value}" for name, value in options.items()]
    return ["-plugin", ",".join([str(plugin_path()), *pairs])]


async def until(
    look: Callable[[], Awaitable[T]],
    accept: Callable[[T], bool],
    deadline_seconds: float = DEADLINE_SECONDS,
) -> T:
    """Look again and again until what is seen is accepted; the error tells the last sight."""
    end = time.monotonic() + deadline_seconds
    while not accept(seen := await look()):
        if time.monotonic() > end:
            raise VmError(f"not within {deadline_seconds} s; last seen: {seen}")
        await asyncio.sleep(0.05)
    return seen


class Process(Protocol):
    """What is asked of the process of a QEMU: as of one of asyncio's."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def send_signal(self, signal: int, /) -> None: ...
    async def wait(self) -> int: ...


class Vm:
    """One running QEMU. Made by `running`."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.qmp = QMPClient("test")
        self._log = log

    @property
    def pid(self) -> int:
        """The process id of QEMU."""
        return self.process.pid

    @property
    def messages(self) -> str:
        """What QEMU has written to stderr so far."""
        return self._log.read_text(errors="replace")

    async def connect(self, socket: Path) -> None:
        """Open QMP as soon as QEMU listens."""
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                await self.qmp.connect(str(socket))
            except ConnectError:
                if self.process.returncode is not None:
                    raise VmError(f"QEMU ended: {self.messages}") from None
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.02)
            else:
                return

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run one QMP command; an underscore in an argument's name stands for a dash.

        Raises ExecuteError where QEMU refuses it, VmError where QEMU has ended.
        """
        try:
            return await self.qmp.execute(
                command, {name.replace("_", "-"): value for name, value in arguments.items()}
            )
        except ExecuteError:
            raise
        except QMPError as error:
            raise VmError(
                f"{command}: {error} QEMU ended with {await self.ended()}: {self.messages}"
            ) from error

    async def get(self, name: str) -> Any:
        """Read a property of the plugin's object."""
        return await self.execute("qom-get", path=OBJECT, property=name)

    async def set(self, name: str, value: object) -> None:
        """Write a property of the plugin's object."""
        await self.execute("qom-set", path=OBJECT, property=name, value=value)

    async def stats(self) -> Stats:
        """Read the plugin's stats."""
        stats: Stats = await self.get("stats")
        return stats

    async def stats_when(self, accept: Callable[[Stats], bool]) -> Stats:
        """Wait for stats that are accepted."""
        return await until(self.stats, accept)

    async def quit(self) -> int:
        """End QEMU by QMP; return its exit status."""
        # QEMU may close the connection before its answer is read.
        with contextlib.suppress(Exception):
            await self.execute("quit")
        return await self.ended()

    async def terminate(self) -> int:
        """End QEMU by SIGTERM; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait until QEMU has ended; return its exit status."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running(
    *arguments: str,
    memory_mib: int = 64,
    accel: str = "tcg",
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Vm]:
    """Run QEMU with these arguments; kill what is left of it at the end."""
    # A directory of our own: the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="memshare-vm-") as directory:
        socket, log = Path(directory, "qmp"), Path(directory, "stderr")
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(QEMU, "-accel", accel, "-m", str(memory_mib), "-nodefaults", "-display", "none"),
                *("-qmp", f"unix:{socket},server=on,wait=off"),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
            )
        vm = Vm(process, log)
        try:
            await vm.connect(socket)
            yield vm
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            # The other end has gone: what disconnect() has to say is not news.
            with contextlib.suppress(Exception):
                await vm.qmp.disconnect()


async def run_refused(*arguments: str) -> tuple[int, str]:
    """Start QEMU with arguments it should not accept; return exit status and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(QEMU, "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            _, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise VmError("QEMU started although it should not") from None
    assert process.returncode is not None
    return process.returncode, stderr.decode(errors="replace")
