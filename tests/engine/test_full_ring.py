# SPDX-License-Identifier: GPL-2.0-or-later
"""Releases have no answers: more of them than the ring holds must not cost the connection."""

import mmap
import os
import signal
import threading

from tests.lib import wire
from tests.lib.broker import Broker, wait_until

from memshare.engine import Engine

PAGE_BYTES = 4096
RING_PAGES = wire.RING_ENTRIES


def region(pages: int) -> mmap.mmap:
    memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def test_sightings_wait_for_room_behind_releases(broker: Broker) -> None:
    shared, alone = region(RING_PAGES), region(RING_PAGES)
    page = os.urandom(PAGE_BYTES)
    shared[:] = page * RING_PAGES
    alone[:] = os.urandom(len(alone))
    with Engine(broker.socket_path()) as engine:
        engine.register(shared)
        for _ in range(3):
            engine.scan_once()
        assert engine.stats()["shared_pages"] == RING_PAGES
        engine.register(alone)
        engine.scan_once()
        for at in range(0, len(shared), PAGE_BYTES):
            shared[at] = page[0]  # breaks it

        seen = engine.stats()["scanned_pages"]
        broker.process.send_signal(signal.SIGSTOP)
        try:
            scan = threading.Thread(target=engine.scan_once)
            scan.start()
            # All are released now, into a ring that nobody empties; those of `alone` are next.
            wait_until(
                lambda: engine.stats()["scanned_pages"] > seen + RING_PAGES, "alone is visited"
            )
        finally:
            broker.process.send_signal(signal.SIGCONT)
        scan.join(20)
        assert not scan.is_alive()
        assert engine.stats()["state"] == "running"
        assert broker.log().count("client_joined") == 1
