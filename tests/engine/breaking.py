# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest writes to the very byte that the engine breaks a page with; in a process of its own.

A userfaultfd of ours makes both sleep before their writes, the engine after it has read the byte, and
lets them go on together.
"""

import fcntl
import os
import select
import struct
import threading

from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import Touch

from memshare.engine import Engine

PAGES = 64
NEW, API, REGISTER, PROTECT = 0xAA00, 0xC018AA3F, 0xC020AA00, 0xC018AA06
FLAG_WP, WP_SHMEM = 1 << 0, 1 << 12
MODE_WP = 2


class Protection:
    """Who writes to the memory sleeps, until it is lifted from that page."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        self._fd = fcntl.ioctl(device, NEW, os.O_CLOEXEC | os.O_NONBLOCK)
        os.close(device)
        fcntl.ioctl(self._fd, API, struct.pack("=QQQ", 0xAA, FLAG_WP | WP_SHMEM, 0))
        whole = struct.pack("=QQ", memory.address, memory.pages * PAGE_BYTES)
        fcntl.ioctl(self._fd, REGISTER, whole + struct.pack("=QQ", MODE_WP, 0))
        fcntl.ioctl(self._fd, PROTECT, whole + struct.pack("=Q", 1))

    def wait_for_sleeper(self) -> None:
        """Return when somebody sleeps who did not before."""
        assert select.select([self._fd], [], [], 20)[0], "nobody wrote"
        os.read(self._fd, 32)

    def lift(self, page: int) -> None:
        """Wake all who sleep on it."""
        where = struct.pack("=QQQ", self._memory.address_of(page), PAGE_BYTES, 0)
        fcntl.ioctl(self._fd, PROTECT, where)

    def close(self) -> None:
        """Wake everybody."""
        os.close(self._fd)


def main() -> None:
    """Break each page while a guest writes to it."""
    memory = Memory(PAGES).fill(lambda _: 1)
    engine = Engine(nothing_pinned=False)
    engine.register(memory.buffer)
    for _ in range(3):
        engine.scan_once()
    assert engine.stats()["shared_pages"] == PAGES, engine.stats()
    engine.hold(hold=True)  # it lets go of the memory, which has one userfaultfd at a time
    protection = Protection(memory)
    detach = threading.Thread(target=engine.detach)
    detach.start()
    for page in range(PAGES):
        protection.wait_for_sleeper()
        touch = Touch(memory.address_of(page), 99)
        protection.wait_for_sleeper()
        protection.lift(page)
        assert touch.result() is not None
        memory.expected[page * PAGE_BYTES] = 99
    detach.join()
    protection.close()
    memory.check()
    engine.close()
    memory.check()


if __name__ == "__main__":
    main()
