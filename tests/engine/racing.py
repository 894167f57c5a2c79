# SPDX-License-Identifier: GPL-2.0-or-later
"""Racing writers against an engine that scans as fast as it can; runs in a process of its own.

Calls between engine and kernel wait a little, so that writers get into the windows, and between a
page's hash and its window, also where there are few cores. Prints one JSON object.
"""

import json
import sys
import time

from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import Faults, Torture

from memshare.engine import Engine

PAGES = 512
LINGER_NS = 20_000


def race(sabotage: list[str], slept: int, failures: int, deadline_seconds: float) -> dict[str, int]:
    """Scan until both numbers are reached, a write is lost, or the time is up; then compare all."""
    memory, faults = Memory(PAGES), Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    for point in ("MOVE_OUT", "MOVE_IN", "MAP_OVER"):
        faults.linger(point, LINGER_NS)
    faults.sabotage(*sabotage)
    engine = Engine(nothing_pinned=True)
    engine.register(memory.buffer)
    torture = Torture(memory.address, PAGES, writers=8, burst=20)
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
    slept, failures, deadline_seconds, *sabotage = sys.argv[1:]
    print(json.dumps(race(sabotage, int(slept), int(failures), float(deadline_seconds))))
