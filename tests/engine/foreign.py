# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that somebody else has registered with a userfaultfd is neither opened nor unregistered.

Linux before 6.18 lets any userfaultfd unregister what is another's, which would see no more writes.
"""

import errno

from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import Faults

from memshare.engine import Engine

PAGES = 64


def main() -> None:
    """Pages that could be merged, while they are another's and when they are not any more."""
    memory = Memory(PAGES).fill(lambda page: page % 16)
    faults = Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    faults.fail("OPEN_WINDOW", errno.EBUSY, times=1 << 30)
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory.buffer)
        for _ in range(4):
            engine.scan_once()
        assert faults.calls("OPEN_WINDOW") > PAGES // 16, "it has tried"
        assert faults.calls("CLOSE_WINDOW") == faults.calls("MOVE_OUT") == 0
        faults.reset()
        for _ in range(8):
            engine.scan_once()
        assert engine.stats()["merged_pages"]
    memory.check()


if __name__ == "__main__":
    main()
