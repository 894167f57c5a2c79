# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench first-pass`: how fast an engine reads memory that it has not seen yet. Needs root.

One process holds a region of resident memory, each page unlike all others, too large for any cache.
For each repeat, with a fresh process and a fresh broker:

read   the process sums its region by 8-byte adds, on one thread: what reading alone costs
ours   passes of an engine until it has hashed every page

With change tracking the first pass hashes nothing: it only arms the tracking. The second reads and
hashes each page once. All passes up to the one that hashed the last page are charged, so the first too; the
JSON has each. (Memory that cannot be tracked is hashed by the first pass already.)
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.bench import passes
from memshare.bench.rig import (
    Rig,
    finish,
    machine_facts,
    number,
    parse_size,
    session,
    total_pages,
)
from memshare.cli import run
from memshare.errors import MeasurementError
from memshare.render import Column, Unit, render_table

BAR_RATIO = 0.8
BAR_SIZE_BYTES = 1 << 30
PASSES_MAX = 5


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """A plain read and the passes after it."""

    read_cpu_seconds: float
    passes: list[passes.Round]

    @property
    def engine_cpu_seconds(self) -> float:
        """The process's CPU time in all its passes."""
        return sum(each.engine_cpu_seconds for each in self.passes)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the repeats, and each repeat."""

    read_bytes_per_cpu_second: float
    engine_bytes_per_cpu_second: float
    read_ratio: float
    broker_cpu_seconds: float
    repeats: list[Repeat]
    size_bytes: int
    kernel: str
    cpu_model: str
    load_before: float


def measure(rig: Rig, label: str) -> Repeat:
    """One read, then passes until every page is hashed."""
    with rig.group(label, "unlike", count=1) as group:
        worker = group.workers[0]
        rig.progress.update(f"{label}: reading and hashing")
        read_ns = int(worker.ask("sum").split()[0])
        group.start("content", by_hand=True)
        pages = total_pages(group.workers)
        rounds: list[passes.Round] = []
        while sum(each.hashed_pages for each in rounds) < pages:
            if len(rounds) == PASSES_MAX:
                raise MeasurementError(
                    f"{PASSES_MAX} passes hashed {sum(each.hashed_pages for each in rounds)}"
                    f" of {pages} pages"
                )
            rounds.append(passes.one_round(group))
        worker.ask("read")
    return Repeat(read_cpu_seconds=read_ns / 1e9, passes=rounds)


def summarise(repeats: Sequence[Repeat], size_bytes: int, facts: dict[str, object]) -> Result:
    """Take medians. Pure."""
    read = statistics.median(each.read_cpu_seconds for each in repeats)
    engine = statistics.median(each.engine_cpu_seconds for each in repeats)
    broker = statistics.median(
        sum(one.broker_cpu_seconds for one in each.passes) for each in repeats
    )
    return msgspec.convert(
        {
            "read_bytes_per_cpu_second": size_bytes / read,
            "engine_bytes_per_cpu_second": size_bytes / engine,
            "read_ratio": read / engine,
            "broker_cpu_seconds": broker,
            "repeats": repeats,
            "size_bytes": size_bytes,
            **facts,
        },
        Result,
        from_attributes=True,
    )


def misses(result: Result) -> list[str]:
    """What is not as it must be. Pure."""
    if result.size_bytes >= BAR_SIZE_BYTES and result.read_ratio < BAR_RATIO:
        return [f"read_ratio {result.read_ratio:.3f} is below its bar, {BAR_RATIO}"]
    return []


def show(result: Result) -> None:
    """Print the table."""
    columns = [
        Column("who", "who"),
        Column("speed", "GiB per CPU s", Unit.COUNT),
        Column("ratio", "of a read", Unit.COUNT),
        Column("bar", "bar", Unit.COUNT),
        Column("broker", "broker CPU s", Unit.COUNT),
    ]
    records = [
        {"who": "read", "speed": number(result.read_bytes_per_cpu_second / (1 << 30), 2)},
        {
            "who": "ours",
            "speed": number(result.engine_bytes_per_cpu_second / (1 << 30), 2),
            "ratio": number(result.read_ratio, 3),
            "bar": number(BAR_RATIO, 1),
            "broker": number(result.broker_cpu_seconds, 3),
        },
    ]
    render_table(columns, records, sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--size",
    default="1G",
    show_default=True,
    callback=parse_size,
    help="Of the region; the bar holds from 1G on, less may fit a cache.",
)
def main(*, json_file: Path | None, repeats: int, size: int) -> None:
    """Measure how fast an engine reads memory that it has not seen yet, against a plain read.

    Needs root. Exit 1 when the bar is missed.

    A quick look: ./dev bench first-pass --size 64M --repeats 1
    """
    with session(json_file) as progress:
        facts = machine_facts()
        rig = Rig(size, progress)
        found = [measure(rig, f"repeat {turn + 1}/{repeats}") for turn in range(repeats)]
    result = summarise(found, size, facts)
    show(result)
    finish([result], json_file, misses(result))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench first-pass")
