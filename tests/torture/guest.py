# SPDX-License-Identifier: GPL-2.0-or-later
"""One process of the torture: an engine at work, and everything a process may do to its memory.

Three regions. In one C threads write without rest (tests/engine/torture.c). In the second this thread
fills, writes, forks, protects, swaps out, and lets the kernel read files into it. In the third nothing
is ever equal to anything but zeros, so that no store mapping is in it and discards are legal. What each
byte must be is kept beside, and looked at all the time.

Says how it stands in a line of JSON on stdout, again and again: it may be killed at any time. Ends
when its stdin does, after a last look at every byte, with the engine and without.
"""

import contextlib
import json
import mmap
import os
import random
import select
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import cffi
import msgspec
from tests.lib.memory import PAGE_BYTES, Memory, contents
from tests.lib.native import Faults, Pin, Torture
from tests.lib.swap import MADV_PAGEOUT

from memshare.engine import Engine, EngineError

WRITTEN_PAGES, CHORE_PAGES, DISCARD_PAGES, FILE_PAGES = 512, 256, 64, 64
#: Pages that can hold what others hold: a quarter of the written ones is only ever zero or unlike all.
MERGEABLE_PAGES = WRITTEN_PAGES * 3 // 4 + CHORE_PAGES
WRITERS = 2
LINGER_NS = 20_000
AGING_PASSES = 8
REPORT_SECONDS = 0.2


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How one process stands; all but ``last`` count from its start."""

    writes: int
    slept: int
    merged: int
    #: At least so many merges were of pages merged before: there are no more pages that can be.
    remerged: int
    rebuilt: int
    lost: int
    #: All regions were compared at the end, after the engine was closed.
    last: bool


class Guest:
    """``has_io``: files are read into its memory, so it cannot promise that nothing is pinned."""

    def __init__(self, socket: str, directory: Path, seed: int, *, has_io: bool) -> None:
        self._random = random.Random(seed)
        self._libc = cffi.FFI()
        self._libc.cdef("int mprotect(void *address, size_t length, int protection);")
        self._c = self._libc.dlopen(None)
        self._chore = Memory(CHORE_PAGES).fill(lambda page: page % 32)
        self._discard = Memory(DISCARD_PAGES)
        self._written = Memory(WRITTEN_PAGES)
        self._wrong = 0
        self._chores_done = 0
        self._lately: deque[str] = deque(maxlen=8)
        self._unique = seed << 32
        self._chores = [
            self._fill,
            self._fill,
            self._write,
            self._unlike,
            self._drop,
            self._protect,
            self._fork_and_look,
            self._fork_and_write,
            self._page_out,
            self._age,
        ]
        self._file, self._data = -1, b""
        self._pin: Pin | None = None
        self._pin_first = self._pin_count = 0
        if has_io:
            self._data = self._random.randbytes(FILE_PAGES // 2 * PAGE_BYTES)
            self._data += b"".join(contents(page % 32) for page in range(FILE_PAGES // 2))
            path = directory / f"read-{os.getpid()}"
            path.write_bytes(self._data)
            self._file = os.open(path, os.O_RDONLY | os.O_DIRECT)
            path.unlink()
            self._chores += [self._read_direct, self._read_pinned, self._let_go]
        else:
            self._chores += [self._rebuild]
        # Without it, writers on few cores would hardly ever meet a window.
        faults = Faults()
        faults.watch(self._written.address, WRITTEN_PAGES * PAGE_BYTES)
        for point in ("MOVE_OUT", "MOVE_IN", "COPY_OUT", "MAP_OVER"):
            faults.linger(point, LINGER_NS)
        self._engine = Engine(socket, nothing_pinned=not has_io)
        for memory in (self._written, self._chore, self._discard):
            self._engine.register(memory.buffer)
        self._torture = Torture(
            self._written.address, WRITTEN_PAGES, writers=WRITERS, burst=20, pins=False
        )
        self._engine.start()

    def run(self) -> None:
        """Until stdin ends."""
        report_at = 0.0
        while not select.select([sys.stdin], [], [], 0.002)[0]:
            chore = self._random.choice(self._chores)
            self._lately.append(chore.__name__)
            chore()
            self._chores_done += 1
            self._look()
            if time.monotonic() > report_at:
                self._report(last=False)
                report_at = time.monotonic() + REPORT_SECONDS
        self._torture.stop()
        self._look_at_all()
        self._let_go()
        self._engine.detach()
        self._look_at_all()
        stats = self._engine.stats()
        self._engine.close()
        self._look_at_all()
        self._report(last=True, stats=stats)

    def _report(self, *, last: bool, stats: dict[str, Any] | None = None) -> None:
        stats = stats or self._engine.stats()
        report = Report(
            writes=self._torture.writes + self._chores_done,
            slept=stats["slept_faults"],
            merged=stats["merged_pages"],
            remerged=max(0, stats["merged_pages"] - MERGEABLE_PAGES),
            rebuilt=stats["rebuilt_pages"],
            lost=self._torture.lost + self._wrong,
            last=last,
        )
        print(json.dumps(msgspec.to_builtins(report)), flush=True)

    def _look(self) -> None:
        for memory in (self._chore, self._discard):
            if memory.buffer[:] != memory.expected:
                self._wrong += 1
                self._tell(memory)
                memory.expected[:] = memory.buffer[:]

    def _tell(self, memory: Memory) -> None:
        """Say on stderr what is wrong, as far as it can be seen from here."""
        name = "discarded" if memory is self._discard else "chores"
        for page in range(memory.pages):
            at = page * PAGE_BYTES
            expected = bytes(memory.expected[at : at + PAGE_BYTES])
            seen = memory.buffer[at : at + PAGE_BYTES]
            if seen != expected:
                print(
                    f"lost: {name} page {page}: expected {expected[:16].hex()}, seen"
                    f" {seen[:16].hex()}, after {self._chores_done} chores, lately"
                    f" {' '.join(self._lately)}",
                    file=sys.stderr,
                )

    def _look_at_all(self) -> None:
        self._look()
        self._wrong += self._torture.wrong_bytes

    def _run(self, most: int = 32) -> tuple[int, int]:
        count = self._random.randint(1, most)
        return self._random.randrange(CHORE_PAGES - count), count

    def _expect(self, page: int, data: bytes) -> None:
        at = page * PAGE_BYTES
        self._chore.expected[at : at + len(data)] = data

    # Chores

    def _fill(self) -> None:
        first, count = self._run()
        number = self._random.randrange(32)
        for page in range(first, first + count):
            self._chore.write(page, contents((number + page) % 32))

    def _write(self) -> None:
        page, _ = self._run()
        self._chore.write(page, self._random.randbytes(9), self._random.randrange(PAGE_BYTES - 9))

    def _age(self) -> None:
        """Let time go by for the engine, that of broken pages until they merge again: by hand, each pass is a tick."""
        with contextlib.suppress(EngineError):  # no broker
            for _ in range(AGING_PASSES):
                self._engine.scan_once()

    def _unlike(self) -> None:
        """Zeros and contents that come only once."""
        for page in range(DISCARD_PAGES):
            self._unique += 1
            if self._random.random() < 0.3:
                self._discard.write(page, contents(self._unique))

    def _drop(self) -> None:
        """As a balloon would: while no window is open, or what was dropped could be moved back."""
        first = self._random.randrange(DISCARD_PAGES)
        count = self._random.randint(1, DISCARD_PAGES - first)
        start, length = first * PAGE_BYTES, count * PAGE_BYTES
        self._engine.hold(hold=True)
        self._discard.buffer.madvise(mmap.MADV_DONTNEED, start, length)
        self._engine.hold(hold=False)
        self._discard.expected[start : start + length] = bytes(length)

    def _protect(self) -> None:
        """Nobody writes meanwhile; what is merged while it is read-only is writable too soon only."""
        first, count = self._run()
        address = self._libc.cast("void *", self._chore.address_of(first))
        assert self._c.mprotect(address, count * PAGE_BYTES, mmap.PROT_READ) == 0
        self._look()
        assert self._c.mprotect(address, count * PAGE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE) == 0

    def _fork_and_look(self) -> None:
        """Forked while no window is open, so that the child has every page."""
        self._engine.hold(hold=True)
        child = os.fork()
        if child == 0:
            same = all(m.buffer[:] == m.expected for m in (self._chore, self._discard))
            os._exit(0 if same else 1)
        self._engine.hold(hold=False)
        if os.waitpid(child, 0)[1] != 0:
            self._wrong += 1
            print(f"{os.getpid()}: a forked child saw something else", file=sys.stderr)

    def _fork_and_write(self) -> None:
        """At any time; what the child does to its memory is its own affair."""
        child = os.fork()
        if child == 0:
            for at in range(0, CHORE_PAGES * PAGE_BYTES, PAGE_BYTES):
                self._chore.buffer[at] = 0xEE
            os._exit(0)
        os.waitpid(child, 0)

    def _page_out(self) -> None:
        memory = self._random.choice([self._written, self._chore, self._discard])
        memory.buffer.madvise(MADV_PAGEOUT)

    def _rebuild(self) -> None:
        """What is shared becomes plain, and is merged anew."""
        self._engine.set(mode=self._random.choice(["zero", "off"]))
        time.sleep(0.02)  # for the engine's threads to have a go at it; nothing depends on it
        self._engine.set(mode="content")

    def _read_direct(self) -> None:
        first, count = self._run(FILE_PAGES // 2)
        offset = self._random.randrange(FILE_PAGES - count) * PAGE_BYTES
        start, length = first * PAGE_BYTES, count * PAGE_BYTES
        with memoryview(self._chore.buffer) as view, view[start : start + length] as part:
            assert os.preadv(self._file, [part], offset) == length
        self._expect(first, self._data[offset : offset + length])

    def _read_pinned(self) -> None:
        """Pinned before, often for many chores; read into long after.

        Written to before it is pinned: I/O into registered buffers does not mark their pages dirty, and
        the kernel drops a page that is clean since it was swapped in, whether there is an engine or not.
        """
        if self._pin is None:
            self._pin_first, self._pin_count = self._run(16)
            for page in range(self._pin_first, self._pin_first + self._pin_count):
                self._chore.write(page, b"dirty")
            self._pin = Pin(self._chore.address_of(self._pin_first), self._pin_count * PAGE_BYTES)
        length = self._pin_count * PAGE_BYTES
        self._pin.read(self._file, 0, length)
        self._expect(self._pin_first, self._data[:length])

    def _let_go(self) -> None:
        if self._pin is not None:
            self._pin.close()
            self._pin = None


def main(socket: str, directory: str, seed: str, kind: str) -> None:
    """One process' life; waits for a broker that is not there."""
    try:
        Guest(socket, Path(directory), int(seed), has_io=kind == "io").run()
    except EngineError as error:
        sys.exit(f"the engine gave up: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
