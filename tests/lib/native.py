# SPDX-License-Identifier: GPL-2.0-or-later
"""The C helpers of the engine's tests, and processes that run with some of them preloaded.

Declarations are read from the helpers' own headers.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cffi
from tests.lib.broker import build_directory, wait_until

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60


def library(name: str) -> Path:
    """One of the helpers, built."""
    return build_directory() / "tests" / "engine" / f"libengine-{name}.so"


def _load(name: str) -> tuple[cffi.FFI, Any]:
    header = (ROOT / "tests" / "engine" / f"{name}.h").read_text()
    ffi = cffi.FFI()
    ffi.cdef(re.sub(r"^#.*$", "", header, flags=re.MULTILINE))
    return ffi, ffi.dlopen(str(library(name)))


class Torture:
    """Writers that race with the engine for the pages of a region."""

    def __init__(self, address: int, pages: int, *, writers: int, burst: int, pins: bool) -> None:
        self._ffi, self._lib = _load("torture")
        base = self._ffi.cast("void *", address)
        self._torture = self._lib.torture_start(base, pages, writers, burst, pins)

    @property
    def lost(self) -> int:
        """Writes that were gone when their writer looked again."""
        return int(self._lib.torture_lost(self._torture))

    @property
    def writes(self) -> int:
        """Writes so far."""
        return int(self._lib.torture_writes(self._torture))

    def stop(self) -> None:
        """Stop the writers."""
        self._lib.torture_stop(self._torture)

    @property
    def wrong_bytes(self) -> int:
        """How many bytes of the region, all of it, are not what was written last; once stopped."""
        return int(self._lib.torture_wrong_bytes(self._torture))


class Touch:
    """A thread that reads one byte, having written it first where ``value`` is given."""

    def __init__(self, address: int, value: int | None = None) -> None:
        self._ffi, self._lib = _load("torture")
        pointer = self._ffi.cast("void *", address)
        self._touch = self._lib.touch_start(pointer, -1 if value is None else value)

    def wait_asleep(self) -> None:
        """Return once the thread sleeps in the kernel: in a page fault, for it does nothing else."""
        wait_until(lambda: self._lib.touch_tid(self._touch), "the toucher runs")
        state = Path(f"/proc/self/task/{self._lib.touch_tid(self._touch)}/stat")

        def sleeps() -> bool:
            return state.read_text().rpartition(")")[2].split()[0] in {"S", "D"}

        wait_until(sleeps, "the toucher sleeps")

    def result(self, timeout_seconds: int = DEADLINE_SECONDS) -> int | None:
        """Return the byte it read; None when it has not woken up in time."""
        seen = int(self._lib.touch_join(self._touch, timeout_seconds))
        return None if seen < 0 else seen


class Pin:
    """Memory pinned as a buffer of an io_uring."""

    def __init__(self, address: int, length_bytes: int) -> None:
        self._ffi, self._lib = _load("pin")
        self._pin = self._lib.pin_new(self._ffi.cast("void *", address), length_bytes)
        assert self._pin != self._ffi.NULL, "io_uring does not work here"

    def read(self, fd: int, offset_bytes: int, length_bytes: int) -> None:
        """Let the kernel read from a file into the pinned pages."""
        got = self._lib.pin_read(self._pin, fd, offset_bytes, length_bytes)
        assert got == length_bytes, got

    def close(self) -> None:
        """Let go of the pages."""
        self._lib.pin_free(self._pin)


class Faults:
    """The calls between the engine and the kernel; only in a process made by ``run_scenario``."""

    def __init__(self) -> None:
        self._ffi, self.lib = _load("faults")

    def watch(self, address: int, length_bytes: int) -> None:
        """Tell calls on that memory from others."""
        self.lib.faults_watch(self._ffi.cast("void *", address), length_bytes)

    def fail(
        self, point: str, error: int, *, after: int = 0, times: int = 1, half: bool = False
    ) -> None:
        """Let calls fail, the first one after ``after`` more."""
        self.lib.faults_fail(self._number(point), after, times, error, half)

    def poke(self, point: str, address: int, value: int, *, after: int = 0) -> None:
        """Write a byte just before a call is made, as a guest might."""
        pointer = self._ffi.cast("void *", address)
        self.lib.faults_poke(self._number(point), after, pointer, value)

    def calls(self, point: str) -> int:
        """How many there have been."""
        return int(self.lib.faults_calls(self._number(point)))

    def gate(self, point: str, *, after: int = 0) -> None:
        """Hold the call after ``after`` more back."""
        self.lib.faults_gate(self._number(point), after)

    def wait_for_gate(self) -> None:
        """Return when a call waits at the gate."""
        assert self.lib.faults_wait_for_gate(20), "no call came to the gate"

    def open_gate(self) -> None:
        """Let it pass."""
        self.lib.faults_open_gate()

    def linger(self, point: str, ns: int) -> None:
        """Let each such call wait a little, so that others get to race with it."""
        self.lib.faults_linger(self._number(point), ns)

    def sabotage(self, *what: str) -> None:
        """Break the engine's method."""
        self.lib.faults_sabotage(sum(self._number(name) for name in what))

    def reset(self) -> None:
        """Let all calls pass, and count from 0."""
        self.lib.faults_reset()

    def _number(self, name: str) -> int:
        return int(getattr(self.lib, name))


class Hung(Exception):
    """A scenario did not end in time and was killed."""


def run_scenario(
    module: str, *arguments: str, timeout_seconds: float = DEADLINE_SECONDS, faults: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a test module's ``main`` in a process of its own, with the faults library preloaded.

    Raises Hung when it does not end.
    """
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    if faults:
        environment["LD_PRELOAD"] = str(library("faults"))
    started = time.monotonic()
    try:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        taken = time.monotonic() - started
        tail = (error.stderr or b"").decode(errors="replace")[-2000:]
        raise Hung(f"killed after {taken:.0f} s; it said last:\n{tail}") from None
