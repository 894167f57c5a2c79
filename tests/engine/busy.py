# SPDX-License-Identifier: GPL-2.0-or-later
"""An engine that does not get on, and who calls it meanwhile; runs in a process of its own.

A window is held open, as by a kernel call that does not return.
"""

import errno
import threading

import pytest
from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import Faults

from memshare.engine import Engine, EngineError

PAGES = 64
PATIENCE_NS = 10_000_000


def main() -> None:
    """Each call that waits gives up and can be made again later; all others just return."""
    memory, other = Memory(PAGES).fill(lambda page: page % 4), Memory(PAGES)
    faults = Faults()
    faults.watch(memory.address, PAGES * PAGE_BYTES)
    with Engine(nothing_pinned=True, patience_ns=PATIENCE_NS) as engine:
        engine.register(memory.buffer)
        engine.scan_once()
        faults.gate("MOVE_OUT")
        stuck = threading.Thread(target=engine.scan_once)
        stuck.start()
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
        assert engine.stats()["ram_bytes"] == PAGES * PAGE_BYTES
        faults.open_gate()
        stuck.join()
        for call in calls:
            call()
        assert engine.stats()["ram_bytes"] == PAGES * PAGE_BYTES
    memory.check()
    other.check()


if __name__ == "__main__":
    main()
