# SPDX-License-Identifier: GPL-2.0-or-later
"""Racing writers against an engine that scans as fast as it can; runs in a process of its own.

Calls between engine and kernel wait a little, so that writers get into the windows, and between a
page's hash and its window, also where there are few cores. Prints one JSON object.

Three kinds of race: ``rebuild``, where what was written to becomes plain again and again; ``pinned``, where
the kernel pins pages while it writes to them, so that nothing may be rebuilt; ``swapped``, where pages
are swapped out all the while.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator

from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import Faults, Torture
from tests.lib.swap import MADV_PAGEOUT, swap_file

from memshare.engine import Engine

PAGES = 512
LINGER_NS = 20_000
SWAP_BYTES = 64 << 20
PAGE_OUT_SECONDS = 0.01


@contextlib.contextmanager
def swapped_out(memory: Memory) -> Iterator[None]:
    """Swap out all of it, again and again."""
    stop = threading.Event()

    def page_out() -> None:
        while not stop.wait(PAGE_OUT_SECONDS):
            memory.buffer.madvise(MADV_PAGEOUT)

    thread = threading.Thread(target=page_out)
    with swap_file(SWAP_BYTES):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def race(
    kind: str, sabotage: list[str], slept: int, failures: int, deadline_seconds: float
) -> dict[str, int]:
    """Scan until both numbers are reached, a write is lost, or the time is up; then compare all."""
    memory = Memory(PAGES)
    with swapped_out(memory) if kind == "swapped" else contextlib.nullcontext():
        return race_for(memory, kind, sabotage, slept, failures, deadline_seconds)


def race_for(
    memory: Memory,
    kind: str,
    sabotage: list[str],
    slept: int,
    failures: int,
    deadline_seconds: float,
) -> dict[str, int]:
    """Race for the pages of that memory."""
    faults = Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    for point in ("MOVE_OUT", "MOVE_IN", "COPY_OUT", "MAP_OVER"):
        faults.linger(point, LINGER_NS)
    faults.sabotage(*sabotage)
    pins = kind == "pinned"
    # Eager: what is written again at once is to merge all the same.
    engine = Engine(nothing_pinned=not pins, eager=True)
    engine.register(memory.buffer)
    torture = Torture(memory.address, PAGES, writers=8, burst=20, pins=pins)
    give_up = time.monotonic() + deadline_seconds
    stats = engine.stats()
    while (
        (stats["slept_faults"] < slept or stats["compare_failures"] < failures)
        and not torture.lost
        and time.monotonic() < give_up
    ):
        for _ in range(10):
            engine.scan_once()
        # What was shared and written to becomes plain again, or there would soon be nothing to merge.
        engine.set(mode="zero")
        engine.scan_once()
        engine.set(mode="content")
        stats = engine.stats()
    torture.stop()
    wrong_bytes = torture.wrong_bytes
    engine.close()
    wrong_bytes += torture.wrong_bytes
    return {
        "writes": torture.writes,
        "lost": torture.lost,
        "wrong_bytes": wrong_bytes,
        **{key: value for key, value in stats.items() if isinstance(value, int)},
    }


if __name__ == "__main__":
    kind, slept, failures, deadline_seconds, *sabotage = sys.argv[1:]
    print(json.dumps(race(kind, sabotage, int(slept), int(failures), float(deadline_seconds))))
