# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine whose windows are all late, as on a machine that is short of CPU; in a process of its own.

Prints how many windows there were, and the nanoseconds it had for them.
"""

import sys
import time

from tests.lib.broker import wait_until
from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import Faults

from memshare.engine import Engine

PAGES = 16384
LATE_NS = 400_000
SECONDS = 1.5


def main() -> int:
    """Let every move out of the memory take long."""
    memory, faults = Memory(PAGES).fill(lambda page: page % 2 * (page + 1)), Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    faults.linger("MOVE_OUT", LATE_NS)
    with Engine(mode="zero") as engine:
        engine.register(memory.buffer)
        engine.start()
        wait_until(lambda: engine.stats()["windows"] > 0, "a window")
        before, start = engine.stats()["windows"], time.monotonic_ns()
        wait_until(lambda: time.monotonic_ns() - start > SECONDS * 1e9, "time passes")
        windows = engine.stats()["windows"] - before
        print(windows, time.monotonic_ns() - start, engine.stats()["zero_pages"])
    memory.check()
    return 0


if __name__ == "__main__":
    sys.exit(main())
