# SPDX-License-Identifier: GPL-2.0-or-later
"""Passes of engines that have no threads: one at a time, each with what it cost.

The engine does in such a pass all that its threads do, on one thread and without pacing. What the broker
does for it goes on a moment longer, so each round of passes ends with a short rest.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from memshare.bench.frames import FrameCounter
from memshare.bench.rig import Group, Rig, oracle_pages, total_pages
from memshare.clients import procfs

REST_SECONDS = 0.05
ROUNDS_MIN = 6  # the first arms, the second hashes, the third merges what the broker found
ROUNDS_MAX = 200
STILL_ROUNDS = 3  # in a row that freed and hashed nothing


class Round(NamedTuple):
    """A pass of each engine, one after the other."""

    engine_cpu_seconds: float  # CPU time of all processes within their passes
    broker_cpu_seconds: float
    hashed_pages: int

    @property
    def cpu_seconds(self) -> float:
        """What it cost in all."""
        return self.engine_cpu_seconds + self.broker_cpu_seconds


def one_round(group: Group) -> Round:
    """Let each engine make a pass."""
    hashed, broker_ns = _hashed(group), procfs.cpu_ns(group.broker_pid)
    engine_ns = sum(int(worker.ask("pass")) for worker in group.workers)
    time.sleep(REST_SECONDS)
    return Round(
        engine_cpu_seconds=engine_ns / 1e9,
        broker_cpu_seconds=(procfs.cpu_ns(group.broker_pid) - broker_ns) / 1e9,
        hashed_pages=_hashed(group) - hashed,
    )


def _hashed(group: Group) -> int:
    return sum(int(worker.stats()["hashed_pages"]) for worker in group.workers)


def is_still(freed: Sequence[int], hashed: Sequence[int], pages: int) -> bool:
    """Whether the last rounds freed nothing and hashed next to nothing. Pure."""
    if len(freed) < max(ROUNDS_MIN, STILL_ROUNDS + 1):
        return False
    last = freed[-STILL_ROUNDS - 1 :]
    spread = max(last) - min(last)
    return spread <= pages // 10_000 and max(hashed[-STILL_ROUNDS:]) <= pages // 1000


def settle(rig: Rig, group: Group, label: str) -> float:
    """Make passes until nothing moves any more; the fraction of the oracle that was reached."""
    pages = total_pages(group.workers)
    oracle = oracle_pages(pages, len(group.workers))
    freed: list[int] = []
    hashed: list[int] = []
    with FrameCounter([worker.region for worker in group.workers], group.broker_pid) as frames:
        while not is_still(freed, hashed, pages) and len(freed) < ROUNDS_MAX:
            hashed.append(one_round(group).hashed_pages)
            freed.append(pages - frames.count())
            rig.progress.update(
                f"{label}: {freed[-1] / oracle:.1%} of the oracle, {len(freed)} passes"
            )
    return freed[-1] / oracle
