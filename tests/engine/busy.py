# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine that does not get on, and who calls it meanwhile; runs in a process of its own.

Argument: stuck, a window is held open as by a kernel call that does not return; or leaving, there is more to
do than a call may take.
"""

import errno
import sys
import threading

import pytest
from tests.lib.memory import PAGE_BYTES, Memory, mappings_of
from tests.lib.native import Faults

from memshare.engine import Engine, EngineError

PAGES, LARGE_PAGES = 64, 2048
PATIENCE_NS = 10_000_000


def stuck() -> None:
    """Each call that waits gives up and can be made again later; all others just return."""
    memory, other = Memory(PAGES).fill(lambda page: page % 4), Memory(PAGES)
    faults = Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    with Engine(nothing_pinned=True, patience_ns=PATIENCE_NS) as engine:
        engine.register(memory.buffer)
        engine.scan_once()
        faults.gate("MOVE_OUT")
        thread = threading.Thread(target=engine.scan_once)
        thread.start()
        faults.wait_for_gate()
        calls = [
            lambda: engine.register(other.buffer),
            lambda: engine.unregister(memory.buffer),
            lambda: engine.hold(hold=True),
        ]
        for call in calls:
            with pytest.raises(EngineError) as raised:
                call()
            assert raised.value.errno == errno.ETIMEDOUT
        engine.hold(hold=False)
        engine.set(mode="zero", scan_rate=1, cpu_limit=1)
        engine.set_ceiling("zero", "a reason")
        assert engine.release(budget_ns=1_000_000_000)
        assert engine.stats()["ram_bytes"] == PAGES * PAGE_BYTES
        faults.open_gate()
        thread.join()
        for call in calls:
            call()
        assert engine.stats()["ram_bytes"] == PAGES * PAGE_BYTES
    memory.check()
    other.check()


def leaving() -> None:
    """Memory is un-shared a little with each call, and none of it is shared anew in between."""
    memory = Memory(LARGE_PAGES).fill(lambda page: page % 4 + 1)
    with Engine(nothing_pinned=True, patience_ns=1) as engine:
        engine.register(memory.buffer)
        for _ in range(8):
            engine.scan_once()
        shared = [engine.stats()["shared_pages"]]
        while True:
            try:
                engine.unregister(memory.buffer)
                break
            except EngineError as error:
                assert error.errno == errno.ETIMEDOUT
            engine.scan_once()
            shared.append(engine.stats()["shared_pages"])
            assert shared[-1] < shared[-2]
        assert len(shared) > 2
        assert engine.stats()["shared_pages"] == engine.stats()["tracked_pages"] == 0
        assert not any({"um", "uw"} & mapping.flags for mapping in mappings_of(memory))
    memory.check()


if __name__ == "__main__":
    {"stuck": stuck, "leaving": leaving}[sys.argv[1]]()
