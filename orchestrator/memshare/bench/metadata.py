# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench metadata`: the memory that sharing itself takes, against what it saves. Needs root.

A few processes hold a region each, filled with the standard mix with common pages in runs of 1, 4, 8 or
16, and share until nothing moves any more. Each run is a mapping of its own, and so is what lies
between two: the shorter the runs, the more mappings for the same savings.

kernel      growth of the kernel's memory for mappings: slab caches and page tables (`cost`)
everything  that, the engines' tables and two threads each, and all of the broker but the store

Both in percent of what was freed by distinct page frames, zero pages and equal contents together; and in
percent of equal contents alone, which is what mappings are spent on. A common page of N processes saves
N - 1 pages and takes N mappings: more processes make the figure better.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.bench import cost, oracle, passes
from memshare.bench.frames import FrameCounter
from memshare.bench.oracle import PAGE_BYTES
from memshare.bench.rig import (
    Group,
    Rig,
    finish,
    machine_facts,
    many_mappings,
    number,
    parse_size,
    session,
    total_pages,
)
from memshare.cli import run
from memshare.clients import procfs
from memshare.errors import MeasurementError
from memshare.render import Column, Record, Unit, render_table

CASES = ("scattered", "runs4", "runs8", "runs16")
BAR_RATIO = {"runs4": 0.04, "runs8": 0.02}
BAR_SIZE_BYTES = 1 << 30
CONVERGED_RATIO = 0.99
REST_SECONDS = 1.0  # until the kernel has freed what waits for a grace period


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One case. Bytes of all processes together."""

    case: str
    saved_bytes: int
    saved_content_bytes: int
    kernel_bytes: int
    slab_bytes: int
    tables_bytes: int
    unreclaimable_bytes: int  # growth of all SUnreclaim of the host, to compare slab_bytes with
    overhead_bytes: int
    kernel_bytes_per_saved_gib: float
    kernel_ratio: float
    overhead_ratio: float
    kernel_ratio_of_content: float
    overhead_ratio_of_content: float
    mappings: int
    oracle_fraction: float
    processes: int
    size_bytes: int
    kernel: str
    cpu_model: str
    load_before: float


def read_cost(group: Group, guests: Sequence[oracle.GuestMemory]) -> cost.Cost:
    """What everything costs now."""
    time.sleep(REST_SECONDS)
    store = oracle.read_store(guests, oracle.look(guests), group.broker_pid)
    return cost.read_cost(guests, group.broker_pid, store)


def measure(rig: Rig, case: str, processes: int, facts: dict[str, object]) -> Result:
    """Share, and compare the kernel's accounts before and after."""
    with rig.group(case, case, count=processes) as group:
        guests = [oracle.GuestMemory(worker.region.pid, rig.size_bytes) for worker in group.workers]
        before = read_cost(group, guests)
        unreclaimable = procfs.meminfo()["SUnreclaim"]
        group.start("content", by_hand=True)
        fraction = passes.settle(rig, group, case)
        rig.progress.update(f"{case}: reading what everything costs")
        pages = total_pages(group.workers)
        with FrameCounter([worker.region for worker in group.workers], group.broker_pid) as frames:
            freed = pages - frames.count()
        now = read_cost(group, guests)
        return reckon(
            case,
            before,
            now,
            freed_bytes=freed * PAGE_BYTES,
            zero_bytes=pages // 4 * PAGE_BYTES,
            facts={
                "unreclaimable_bytes": procfs.meminfo()["SUnreclaim"] - unreclaimable,
                "mappings": sum(len(procfs.mappings(guest.pid)) for guest in guests),
                "oracle_fraction": fraction,
                "processes": processes,
                **facts,
            },
        )


def reckon(
    case: str,
    before: cost.Cost,
    now: cost.Cost,
    *,
    freed_bytes: int,
    zero_bytes: int,
    facts: dict[str, object],
) -> Result:
    """Make sums and quotients. Pure."""
    slab = max(0, now.slab_bytes - before.slab_bytes)
    tables = max(0, now.guest_tables_bytes - before.guest_tables_bytes)
    processes = facts["processes"]
    assert isinstance(processes, int)
    # The engines came after "before", so their tables are in the growth of the heap.
    overhead = cost.overhead_bytes(before, now, 0, processes)
    content = freed_bytes - zero_bytes
    if content <= 0:
        raise MeasurementError(f"{case}: no equal contents were shared")
    return msgspec.convert(
        {
            "case": case,
            "saved_bytes": freed_bytes,
            "saved_content_bytes": content,
            "kernel_bytes": slab + tables,
            "slab_bytes": slab,
            "tables_bytes": tables,
            "overhead_bytes": overhead,
            "kernel_bytes_per_saved_gib": (slab + tables) / freed_bytes * (1 << 30),
            "kernel_ratio": (slab + tables) / freed_bytes,
            "overhead_ratio": overhead / freed_bytes,
            "kernel_ratio_of_content": (slab + tables) / content,
            "overhead_ratio_of_content": overhead / content,
            **facts,
        },
        Result,
    )


def misses(results: Sequence[Result]) -> list[str]:
    """What is not as it must be: the bars are on everything. Pure."""
    found = []
    for result in results:
        bar = BAR_RATIO.get(result.case)
        if result.oracle_fraction < CONVERGED_RATIO:
            found.append(f"{result.case}: stopped at {result.oracle_fraction:.1%} of the oracle")
        if bar and result.size_bytes >= BAR_SIZE_BYTES and result.overhead_ratio > bar:
            found.append(
                f"{result.case}: everything takes {result.overhead_ratio:.2%} of what is saved,"
                f" more than {bar:.0%}"
            )
    return found


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    columns = [
        Column("case", "case"),
        Column("saved", "saved", Unit.BYTES),
        Column("mappings", "mappings", Unit.COUNT),
        Column("kernel", "kernel", Unit.BYTES),
        Column("kernel_ratio", "kernel %", Unit.COUNT),
        Column("overhead_ratio", "everything %", Unit.COUNT),
        Column("bar", "bar %", Unit.COUNT),
        Column("content_ratio", "everything % of content", Unit.COUNT),
        Column("fraction", "of oracle", Unit.COUNT),
    ]

    def percent(value: float | None) -> str:
        return number(None if value is None else 100 * value, 2)

    records: list[Record] = [
        {
            "case": result.case,
            "saved": result.saved_bytes,
            "mappings": result.mappings,
            "kernel": result.kernel_bytes,
            "kernel_ratio": percent(result.kernel_ratio),
            "overhead_ratio": percent(result.overhead_ratio),
            "bar": percent(BAR_RATIO.get(result.case)),
            "content_ratio": percent(result.overhead_ratio_of_content),
            "fraction": f"{result.oracle_fraction:.1%}",
        }
        for result in results
    ]
    render_table(columns, records, sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--case", "cases", type=click.Choice(CASES), multiple=True, help="Default: all.")
@click.option("--processes", type=click.IntRange(2, 16), default=4, show_default=True)
@click.option(
    "--size",
    default="1G",
    show_default=True,
    callback=parse_size,
    help="Of a region; the bars hold from 1G on.",
)
def main(*, json_file: Path | None, cases: Sequence[str], processes: int, size: int) -> None:
    """Measure the memory that sharing takes, in percent of what it saves.

    Needs root, and a host where nobody else makes or frees mappings: slab caches are the host's. Exit 1
    when a bar is missed or a case did not converge.

    A quick look: ./dev bench metadata --size 64M --case runs4
    """
    results: list[Result] = []
    with session(json_file) as progress, many_mappings():
        facts = {**machine_facts(), "size_bytes": size}
        rig = Rig(size, progress)
        for case in cases or CASES:
            results.append(measure(rig, case, processes, facts))
    show(results)
    finish(results, json_file, misses(results))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench metadata")
