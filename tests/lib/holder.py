# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that holds given pages of memory, as a guest's RAM is held, and is looked at from outside."""

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec

PAGE_BYTES = 4096

# Pages are lists: ["hole"], ["seen"] for the zero page, ["zero"] for a frame of zeros, ["byte", AT, VALUE] for a
# page of zeros but for that byte. They are written within one huge page's range where it starts at one.
PROGRAM = """
import json, mmap, sys
sys.path.insert(0, sys.argv[3])
pages, advice = int(sys.argv[1]), int(sys.argv[2])
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(advice)
engine = None
print("ok", flush=True)
for line in sys.stdin:
    command, *rest = json.loads(line)
    if command == "hold":
        memory.madvise(mmap.MADV_DONTNEED)
        for page, (kind, *where) in enumerate(rest):
            if kind == "seen":
                memory[page * 4096]
            elif kind == "zero":
                memory[page * 4096] = 0
            elif kind == "byte":
                memory[page * 4096 + where[0]] = where[1]
    elif command == "advise":
        advice, first, count = rest
        memory.madvise(advice, first * 4096, count * 4096)
    elif command == "share":
        from memshare.engine import Engine
        engine = Engine(nothing_pinned=True)
        engine.register(memory)
        for _ in range(rest[0]):
            engine.scan_once()
    print("ok", flush=True)
"""


class Holder:
    """The process; ends with the block."""

    def __init__(self, pages: int, advice: int) -> None:
        """Map so many pages, with that advice of madvise about them."""
        self.pages = pages
        source = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(pages), str(advice), source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._answer()

    def hold(self, pages: Sequence[Sequence[str | int]]) -> None:
        """Let go of everything, then hold these from the first page on."""
        self._tell("hold", *pages)

    def advise(self, advice: int, first: int, count: int) -> None:
        """Give advice about some pages."""
        self._tell("advise", advice, first, count)

    def share(self, passes: int) -> None:
        """Share what is equal, with an engine of its own."""
        self._tell("share", passes)

    def page_table(self, start: int) -> list[int]:
        """Read its pagemap, whose entries show each change."""
        with open(f"/proc/{self.pid}/pagemap", "rb", buffering=0) as file:
            raw = os.pread(file.fileno(), self.pages * 8, start // PAGE_BYTES * 8)
        return [entry for (entry,) in struct.iter_unpack("<Q", raw)]

    def _tell(self, *command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(command).decode() + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ok\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
