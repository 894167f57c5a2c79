# SPDX-License-Identifier: GPL-2.0-or-later
"""A cgroup with a memory limit, of version 2 or 1, whichever has the memory controller here. Root."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memshare.errors import HostError

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


class MemoryCgroup:
    """Made by `limited`."""

    def __init__(self, path: Path, *, is_v1: bool) -> None:
        """Know its files."""
        self.path = path
        self._is_v1 = is_v1
        self._limit_file = path / ("memory.limit_in_bytes" if is_v1 else "memory.max")
        self._events_file = path / ("memory.oom_control" if is_v1 else "memory.events")

    def limit(self, limit_bytes: int) -> None:
        """Set the limit."""
        self._limit_file.write_text(str(limit_bytes))

    def forbid_swap(self) -> None:
        """Have nothing of it swapped out from now on, on hosts that have swap at all."""
        file = self.path / ("memory.swappiness" if self._is_v1 else "memory.swap.max")
        if file.exists():
            file.write_text("0")

    def enter(self) -> None:
        """Take the calling process in, and what it starts."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        lines = dict(line.split() for line in self._events_file.read_text().splitlines())
        return int(lines["oom_kill"])


@contextmanager
def limited(limit_bytes: int | None) -> Iterator[MemoryCgroup]:
    """Have such a cgroup, with None one that only counts; its processes must have ended at the end."""
    is_v1 = (V1 / "memory.limit_in_bytes").exists() or (V1 / "cgroup.procs").exists()
    path = (V1 if is_v1 else V2) / f"memshare-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir()
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", "this needs root") from error
    try:
        cgroup = MemoryCgroup(path, is_v1=is_v1)
        if limit_bytes is not None:
            cgroup.limit(limit_bytes)
        yield cgroup
    finally:
        deadline = time.monotonic() + 20
        while True:  # the kernel is not through with a process at once when it has been waited for
            try:
                path.rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
