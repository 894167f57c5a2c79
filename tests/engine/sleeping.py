# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread touches a page that a window holds, sleeps, and wakes; runs in a process of its own.

Arguments: what becomes of the page (a key of KINDS), the value to write or "read", and sabotage. Exits
with 3 when the sleeper has not woken up.
"""

import errno
import os
import sys
import threading

from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import Faults, Touch

from memshare.engine import Engine

PAGES = 32
#: Kind of page -> the page, and the call at which its window is held open: it is away there.
KINDS = {
    "twin": (0, "MAP_OVER", 0),  # it makes the region's, and is the first that is mapped over
    "zero": (2, "MAP_OVER", 1),  # moved with the shared ones behind it
    "shared": (8, "MAP_OVER", 1),
    "moved_back": (8, "MOVE_IN", 0),
    "failed": (8, "MAP_OVER", 1),
    "failed_half_done": (8, "MAP_OVER", 1),
    "copied": (8, "COPY_OUT", 0),
    "rebuilt": (8, "MAP_OVER", 0),
}
#: Who reads one of these does not sleep.
KINDS_OF_REBUILD = {"copied", "rebuilt"}
ASLEEP_SECONDS = 10


def number_of(page: int) -> int:
    """Zeros, and common contents."""
    return 0 if page < 8 else 1


def prepare(kind: str, engine: Engine, memory: Memory, faults: Faults) -> None:
    """Bring the page to just before its window."""
    page, point, after = KINDS[kind]
    passes = 4 if kind in KINDS_OF_REBUILD else 1
    for _ in range(passes):
        engine.scan_once()
    if passes > 1:
        assert engine.stats()["shared_pages"] > 0
        engine.set(mode="zero")
    if kind == "moved_back":
        faults.poke("OPEN_WINDOW", memory.address_of(page) + 100, 77)
        memory.expected[page * PAGE_BYTES + 100] = 77
    if kind.startswith("failed"):
        faults.fail("MAP_OVER", errno.ENOMEM, after=1, times=100, half=kind == "failed_half_done")
    faults.gate(point, after=after)


def run(kind: str, value: int | None, sabotage: list[str]) -> int:
    """Return what the process exits with."""
    page, *_ = KINDS[kind]
    memory, faults = Memory(PAGES).fill(number_of), Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    faults.sabotage(*sabotage)
    engine = Engine(nothing_pinned=True)
    engine.register(memory.buffer)
    prepare(kind, engine, memory, faults)
    windows = threading.Thread(target=engine.scan_once, daemon=True)
    windows.start()
    faults.wait_for_gate()
    touch = Touch(memory.address_of(page), value)
    touch.wait_asleep()
    expected = memory.expected[page * PAGE_BYTES] if value is None else value
    memory.expected[page * PAGE_BYTES] = expected
    faults.open_gate()
    windows.join(ASLEEP_SECONDS)
    assert not windows.is_alive(), "the window never closed"
    seen = touch.result(ASLEEP_SECONDS)
    if seen is None:
        return 3
    assert seen == expected, (seen, expected)
    if not sabotage:
        memory.check()
        if kind not in {"twin", *KINDS_OF_REBUILD}:
            assert engine.stats()["slept_faults"] >= 1, engine.stats()
    return 0


if __name__ == "__main__":
    kind, value, *sabotage = sys.argv[1:]
    code = run(kind, None if value == "read" else int(value), sabotage)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread may sleep for ever: nothing is closed.
    os._exit(code)
