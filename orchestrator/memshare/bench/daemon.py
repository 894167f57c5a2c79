# SPDX-License-Identifier: GPL-2.0-or-later
"""A real daemon, for measurements: with guests on sockets of a folder, a broker, and no metrics."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from memshare.bench.machine import end_process, spawn
from memshare.clients.daemon import ask
from memshare.errors import MemshareError, UnreachableError

START_SECONDS = 60.0
CONFIG, SOCKET = "memshare.toml", "daemon.sock"


def configuration(
    folder: Path, broker: Path, group: str, *, cgroup: Path | str = "", more: str = ""
) -> str:
    """Return the text of a configuration for guests on sockets in folder/qmp; more: further tables. Pure."""
    return (
        f'connect = []\nqmp-dirs = ["{folder}/qmp"]\nbroker = "{broker}"\ngroup = "{group}"\n'
        f'socket = "{folder}/{SOCKET}"\nstate-dir = "{folder}/state"\ncgroup = "{cgroup}"\n'
        f"[metrics]\nport = 0\n{more}"
    )


@asynccontextmanager
async def open_daemon(
    folder: Path, config: str, enter: Callable[[], None] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the daemon with that configuration until the block is left; it has looked at its guests once.

    enter is called in the new process, before the program.
    """
    path, log = folder / CONFIG, folder / "daemon.log"
    path.write_text(config)
    process = await spawn(
        log,
        *("setpriv", "--pdeathsig=TERM", sys.executable, "-c"),
        *("from memshare.cli import main; main()", "daemon", "--config", str(path)),
        enter=enter,
    )
    try:
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not await _answers(folder / SOCKET):
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                words = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise MemshareError(f"the daemon did not start: {' '.join(words) or 'no word'}")
            await asyncio.sleep(0.1)
        yield process
    finally:
        await end_process(process)


async def _answers(socket: Path) -> bool:
    try:
        await ask(socket, "view")
    except UnreachableError:
        return False
    return True
