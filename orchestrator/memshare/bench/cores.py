# SPDX-License-Identifier: GPL-2.0-or-later
"""Which core what is measured runs on."""

import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress


@contextmanager
def alone_on_one(pids: Sequence[int]) -> Iterator[None]:
    """Keep the processes on the last core of this one's, and this one on its others; ends with all as it was.

    Takes their main threads, and with them those that they start from then on. With one core only,
    nothing changes. Raises OSError where a process is gone at the start.
    """
    ours = os.sched_getaffinity(0)
    core = max(ours)
    with _placed(pids, core, ours - {core} or ours):
        yield


@contextmanager
def together_on_one(pids: Sequence[int]) -> Iterator[None]:
    """Keep the processes and this one on the last core of this one's; otherwise as `alone_on_one`."""
    core = max(os.sched_getaffinity(0))
    with _placed(pids, core, {core}):
        yield


@contextmanager
def _placed(pids: Sequence[int], core: int, own: Set[int]) -> Iterator[None]:
    ours = os.sched_getaffinity(0)
    before = {pid: os.sched_getaffinity(pid) for pid in pids}
    try:
        for pid in pids:
            os.sched_setaffinity(pid, {core})
        os.sched_setaffinity(0, own)
        yield
    finally:
        os.sched_setaffinity(0, ours)
        for pid, cores in before.items():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(pid, cores)
