# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench churn`: whether sharing holds while memory is rewritten for a long time. Needs root.

Two processes hold a region each, filled with the standard mix, and share until nothing moves any more:
the start. Then, round after round, each rewrites 5% of its pages and each engine makes a pass. What is
rewritten becomes equal again: zeros are written over zeros; common pages, in whole runs of 16, get new
contents, the same on both sides; unique pages get new contents unlike all others. At last, when
nothing is written any more, passes are made until nothing moves: the end.

Each round leaves dead slots behind, whose contents nobody holds any more, and mappings that a write broke.
Judged are the savings at the end against those at the start, the number of mappings, and the part of
the store that is dead slots, by the broker's word. What the memory still saves in the middle of it is
the floor.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.bench import passes
from memshare.bench.frames import FrameCounter
from memshare.bench.oracle import PAGE_BYTES
from memshare.bench.rig import (
    Group,
    Rig,
    finish,
    machine_facts,
    many_mappings,
    parse_size,
    session,
    total_pages,
)
from memshare.cli import run
from memshare.clients import broker as broker_client
from memshare.clients import procfs
from memshare.render import Column, Record, Unit, render_table

RENEWED_PERMILLE = 50
KEPT_RATIO_BAR = 0.95
DEAD_RATIO_BAR = 0.10
GROWTH_RATIO_BAR = 1.25  # of mappings, last quarter of the rounds against the second
ROUND_SECONDS_MIN = 0.5
ROUNDS_MAX = 2047  # that region-worker can number


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """After one round; mappings of the process that has most."""

    seconds: float
    saved_bytes: int
    mappings: int
    slots_live: int
    slots_dead: int

    @property
    def dead_ratio(self) -> float:
        """Part of the store that nobody maps."""
        return self.slots_dead / max(1, self.slots_live + self.slots_dead)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Start, end and the time line between; dead_ratio is the mean of the last quarter."""

    saved_start_bytes: int
    saved_end_bytes: int
    saved_floor_bytes: int
    kept_ratio: float
    mappings_start: int
    mappings_most: int
    mappings_growth_ratio: float
    mappings_limit: int
    dead_ratio: float
    dead_ratio_end: float
    cpu_seconds: float
    start: Moment
    time_line: list[Moment]
    end: Moment
    size_bytes: int
    seconds: int
    kernel: str
    cpu_model: str
    load_before: float


class Watch:
    """Looks at a group again and again."""

    def __init__(self, group: Group, frames: FrameCounter) -> None:
        """Start the clock."""
        self._group, self._frames = group, frames
        self._pages = total_pages(group.workers)
        self._started = time.monotonic()

    def look(self) -> Moment:
        """How things are now."""
        status = asyncio.run(broker_client.ask(self._group.control_socket, "status"))
        facts = status["groups"][0]
        return Moment(
            seconds=round(time.monotonic() - self._started, 3),
            saved_bytes=(self._pages - self._frames.count()) * PAGE_BYTES,
            mappings=max(len(procfs.mappings(worker.region.pid)) for worker in self._group.workers),
            slots_live=facts["slots_live"],
            slots_dead=facts["slots_dead"],
        )


def measure(rig: Rig, seconds: int, facts: dict[str, object]) -> Result:
    """Converge, churn, converge."""
    with rig.group("churn", "runs16") as group:
        group.start("content", by_hand=True)
        passes.settle(rig, group, "churn: before")
        regions = [worker.region for worker in group.workers]
        limit = int(group.workers[0].stats()["mappings_limit"])
        with FrameCounter(regions, group.broker_pid) as frames:
            watch = Watch(group, frames)
            start = watch.look()
            line: list[Moment] = []
            cpu_seconds = 0.0
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and len(line) < ROUNDS_MAX:
                round_end = time.monotonic() + ROUND_SECONDS_MIN
                for worker in group.workers:
                    worker.ask(f"renew {RENEWED_PERMILLE}")
                cpu_seconds += passes.one_round(group).cpu_seconds
                line.append(watch.look())
                rig.progress.update(
                    f"churn: {line[-1].saved_bytes >> 20} MiB saved, {line[-1].mappings} mappings,"
                    f" {line[-1].dead_ratio:.1%} of the store is dead"
                )
                time.sleep(max(0.0, round_end - time.monotonic()))
            passes.settle(rig, group, "churn: after")
            end = watch.look()
        for worker in group.workers:
            worker.ask("read")
    return summarise(start, line, end, limit, {"cpu_seconds": cpu_seconds, **facts})


def summarise(
    start: Moment, line: Sequence[Moment], end: Moment, limit: int, facts: dict[str, object]
) -> Result:
    """Make figures of a time line. Pure."""
    quarter = max(1, len(line) // 4)
    second, last = line[quarter : 2 * quarter] or line, line[-quarter:]
    return msgspec.convert(
        {
            "saved_start_bytes": start.saved_bytes,
            "saved_end_bytes": end.saved_bytes,
            "saved_floor_bytes": min(moment.saved_bytes for moment in line),
            "kept_ratio": end.saved_bytes / max(1, start.saved_bytes),
            "mappings_start": start.mappings,
            "mappings_most": max(moment.mappings for moment in [start, *line, end]),
            "mappings_growth_ratio": max(moment.mappings for moment in last)
            / max(moment.mappings for moment in second),
            "mappings_limit": limit,
            "dead_ratio": sum(moment.dead_ratio for moment in last) / len(last),
            "dead_ratio_end": end.dead_ratio,
            "start": start,
            "time_line": list(line),
            "end": end,
            **facts,
        },
        Result,
        from_attributes=True,
    )


def misses(result: Result) -> list[str]:
    """What is not as it must be. Pure."""
    found = []
    if result.kept_ratio < KEPT_RATIO_BAR:
        found.append(f"{result.kept_ratio:.1%} of the savings were left, not {KEPT_RATIO_BAR:.0%}")
    if result.mappings_most > result.mappings_limit:
        found.append(f"{result.mappings_most} mappings, more than {result.mappings_limit}")
    if result.mappings_growth_ratio > GROWTH_RATIO_BAR:
        found.append(f"mappings go on growing, by {result.mappings_growth_ratio:.2f}")
    if result.dead_ratio > DEAD_RATIO_BAR:
        found.append(f"{result.dead_ratio:.1%} of the store is dead, not {DEAD_RATIO_BAR:.0%}")
    return found


def show(result: Result) -> None:
    """Print the table."""
    columns = [
        Column("when", "when"),
        Column("saved", "saved", Unit.BYTES),
        Column("mappings", "mappings", Unit.COUNT),
        Column("dead", "dead slots", Unit.COUNT),
    ]
    last = result.time_line[-1]
    records: list[Record] = [
        {
            "when": when,
            "saved": moment.saved_bytes,
            "mappings": moment.mappings,
            "dead": f"{moment.dead_ratio:.1%}",
        }
        for when, moment in (
            ("start", result.start),
            ("last round", last),
            ("end", result.end),
        )
    ]
    records.append({"when": "floor", "saved": result.saved_floor_bytes})
    records.append({"when": "most", "mappings": result.mappings_most})
    render_table(columns, records, sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seconds", type=click.IntRange(1), default=600, show_default=True)
@click.option("--size", default="1G", show_default=True, callback=parse_size, help="Of a region.")
def main(*, json_file: Path | None, seconds: int, size: int) -> None:
    """Rewrite shared memory for a long time and see whether it stays shared.

    Needs root. Exit 1 when savings were lost for good, mappings grow without bound, or more than 10% of the
    store is dead slots.

    A quick look: ./dev bench churn --size 64M --seconds 20
    """
    with session(json_file) as progress, many_mappings():
        facts = {**machine_facts(), "size_bytes": size, "seconds": seconds}
        result = measure(Rig(size, progress), seconds, facts)
    show(result)
    finish([result], json_file, misses(result))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench churn")
