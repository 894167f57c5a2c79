# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that measurements share memory of: region-worker (tests/bench/region-worker.c) and the broker.

Each is fresh for each run, in a session of its own, so that Ctrl-C reaches only the benchmark, and
ends with the benchmark even when that is killed.
"""

import asyncio
import json
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memshare.bench.frames import GROUP, Region
from memshare.clients import broker as broker_client
from memshare.clients import procfs
from memshare.errors import HostError, MemshareError, UnreachableError

ANSWER_SECONDS = 120.0
START_SECONDS = 10.0
END_SECONDS = 10.0


class Worker:
    """A process with one filled region."""

    def __init__(self, program: Path, case: str, side: int, length_bytes: int, *, busy: bool):
        """Start it; `ready` waits until the region is filled."""
        if not program.exists():
            raise MemshareError(f"{program}: not there", "run ./dev build")
        self._process = subprocess.Popen(
            [program, case, str(side), str(length_bytes), *(["busy"] if busy else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._length_bytes = length_bytes
        self._busy_thread = 0
        self.region = Region(self._process.pid, 0, length_bytes)

    def ready(self) -> None:
        """Wait for the region and learn where it is."""
        address, busy_thread = self._answer("start").split()
        self._busy_thread = int(busy_thread)
        self.region = Region(self._process.pid, int(address), self._length_bytes)

    def ask(self, command: str) -> str:
        """Send a command and return what follows `ok`; raises on `error:`."""
        self.send(command)
        return self.take(command)

    def send(self, command: str) -> None:
        """Send a command whose answer `take` will fetch."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def take(self, command: str) -> str:
        """Fetch the answer to what was sent."""
        return self._answer(command)

    def stats(self) -> dict[str, Any]:
        """Return what the engine says of itself."""
        found: dict[str, Any] = json.loads(self.ask("stats"))
        return found

    def cpu_ns(self) -> int:
        """User and system time of the whole process, without the thread that is only busy."""
        busy = procfs.thread_cpu_ns(self.region.pid, self._busy_thread) if self._busy_thread else 0
        return procfs.cpu_ns(self.region.pid) - busy

    def _answer(self, command: str) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(ANSWER_SECONDS):
                raise MemshareError(
                    f"region-worker: {command}: no answer in {ANSWER_SECONDS:.0f} s"
                )
        line = self._process.stdout.readline()
        if not line:
            raise MemshareError(f"region-worker: {command}: it ended, code {self._process.wait()}")
        verdict, _, rest = line.strip().partition(" ")
        if verdict != "ok":
            raise MemshareError(f"region-worker: {command}: {rest}")
        return rest

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and wait until its memory is free again."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def open_broker(program: Path, folder: Path) -> Iterator[int]:
    """Run memshared with its sockets in folder; gives its process id."""
    if not program.exists():
        raise MemshareError(f"{program}: not there", "run ./dev build")
    log = folder / "broker.log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=TERM", program, f"--runtime-dir={folder}",
                 f"--group={GROUP}", "--allow-by-mode"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise HostError(f"setpriv: {(error.strerror or '').lower()}") from error
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(folder / "control.sock"):
            if process.poll() is not None or time.monotonic() > deadline:
                words = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise MemshareError(f"the broker did not start: {' '.join(words) or 'no word'}")
            time.sleep(0.01)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(control_socket: Path) -> bool:
    try:
        asyncio.run(broker_client.ask(control_socket, "status"))
    except UnreachableError:
        return False
    return True
