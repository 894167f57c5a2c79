# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench limited`: what is reached with as few mappings as the kernel allows by default. Needs root.

Two processes hold a region each, filled with the standard mix in its worst order, every common page
alone: each then needs a mapping of its own and leaves one behind it. vm.max_map_count is as the
kernel sets it up, and an engine takes at most 80% of it (I11). Passes are made until nothing moves any more.
"""

import sys
from pathlib import Path

import click
import msgspec

from memshare.bench import passes
from memshare.bench.rig import Rig, finish, machine_facts, many_mappings, parse_size, session
from memshare.cli import run
from memshare.clients import procfs
from memshare.render import Column, Record, Unit, render_table

MAPPINGS = 65530
BUDGET_RATIO = 0.8


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was reached; lists have an entry for each process."""

    oracle_fraction: float
    shared_pages: list[int]
    zero_pages: list[int]
    mappings: list[int]
    max_map_count: int
    size_bytes: int
    kernel: str
    cpu_model: str
    load_before: float


def measure(rig: Rig, limit: int, facts: dict[str, object]) -> Result:
    """Share until nothing moves any more."""
    with rig.group("limited", "scattered") as group:
        group.start("content", by_hand=True)
        fraction = passes.settle(rig, group, "limited")
        stats = [worker.stats() for worker in group.workers]
        found = Result(
            oracle_fraction=fraction,
            shared_pages=[int(each["shared_pages"]) for each in stats],
            zero_pages=[int(each["zero_pages"]) for each in stats],
            mappings=[len(procfs.mappings(worker.region.pid)) for worker in group.workers],
            max_map_count=limit,
            size_bytes=rig.size_bytes,
            **facts,  # type: ignore[arg-type]
        )
        for worker in group.workers:
            worker.ask("read")
        return found


def misses(result: Result) -> list[str]:
    """What is not as it must be. Pure."""
    most = max(result.mappings)
    if most > BUDGET_RATIO * result.max_map_count:
        return [f"{most} mappings of {result.max_map_count} are more than {BUDGET_RATIO:.0%}"]
    return []


def show(result: Result) -> None:
    """Print the table."""
    columns = [
        Column("limit", "max_map_count", Unit.COUNT),
        Column("mappings", "mappings", Unit.COUNT),
        Column("shared", "shared", Unit.PAGES),
        Column("fraction", "of oracle", Unit.COUNT),
    ]
    record: Record = {
        "limit": result.max_map_count,
        "mappings": max(result.mappings),
        "shared": sum(result.shared_pages),
        "fraction": f"{result.oracle_fraction:.1%}",
    }
    render_table(columns, [record], sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--size", default="1G", show_default=True, callback=parse_size, help="Of a region.")
@click.option("--limit", type=click.IntRange(1000), default=MAPPINGS, show_default=True)
def main(*, json_file: Path | None, size: int, limit: int) -> None:
    """Measure how much is shared when mappings are scarce: vm.max_map_count as kernels have it.

    Needs root; puts the limit back at the end. There is no bar on how much; exit 1 when an engine took
    more than 80% of the mappings.

    A quick look: ./dev bench limited --size 64M --limit 4000
    """
    with session(json_file) as progress, many_mappings(limit):
        result = measure(Rig(size, progress), limit, machine_facts())
    show(result)
    finish([result], json_file, misses(result))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench limited")
