# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts the distinct page frames behind a few regions, fast enough to watch merging. Needs root.

As in `oracle`, the kernel's page tables are asked and nobody's counters: a frame that several pages
map counts once; the store's files count by what they hold, mapped or not. The kernel's zero page counts
as one frame.
"""

import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from memshare.bench.oracle import PAGE_BYTES, PAGEMAP_FILE, PAGEMAP_FRAME, PAGEMAP_PRESENT
from memshare.clients import procfs
from memshare.errors import MeasurementError

GROUP = "default"  # whose store it is
SEGMENT_LINK = f"/memfd:memshare-{GROUP}-"


class Region(NamedTuple):
    """Private memory of a process."""

    pid: int
    start: int
    length_bytes: int


def store_pages(broker_pid: int) -> int:
    """Pages that the broker's segments hold."""
    folder = procfs.PROC / str(broker_pid) / "fd"
    files = {}
    for entry in os.listdir(folder):
        path = Path(folder / entry)
        try:
            if os.readlink(path).startswith(SEGMENT_LINK):
                status = path.stat()
                files[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:
            continue  # closed meanwhile
    return sum(files.values()) // PAGE_BYTES


class FrameCounter:
    """Looks at the page tables of the same regions again and again."""

    def __init__(self, regions: Sequence[Region], broker_pid: int | None) -> None:
        """Make room for all page table entries and for a mark per frame of the host."""
        self._regions = regions
        self._broker_pid = broker_pid
        self._stack = ExitStack()
        self._files = []
        for region in regions:
            file = os.open(f"/proc/{region.pid}/pagemap", os.O_RDONLY)
            self._stack.callback(os.close, file)
            self._files.append(file)
        longest = max(region.length_bytes for region in regions) // PAGE_BYTES
        self._words = np.zeros(longest, dtype=np.uint64)
        self._marks = np.zeros(1, dtype=np.uint8)

    def count(self) -> int:
        """Distinct frames now."""
        self._marks[:] = 0
        for region, file in zip(self._regions, self._files, strict=True):
            words = self._words[: region.length_bytes // PAGE_BYTES]
            got = os.preadv(file, [words.data], region.start // mmap.PAGESIZE * 8)
            if got != words.nbytes:
                raise MeasurementError(f"pagemap of process {region.pid} ends early")
            own = (words & (PAGEMAP_PRESENT | PAGEMAP_FILE)) == PAGEMAP_PRESENT
            frames = words[own] & PAGEMAP_FRAME
            highest = int(frames.max(initial=0))
            if frames.size and not highest:
                raise MeasurementError("page frame numbers are hidden: this needs root")
            if highest >= self._marks.size:
                self._marks = np.pad(self._marks, (0, highest + 1 - self._marks.size))
            self._marks[frames] = 1
        store = store_pages(self._broker_pid) if self._broker_pid else 0
        return int(np.count_nonzero(self._marks)) + store

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the page tables."""
        self._stack.close()
