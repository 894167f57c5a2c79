# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench reckoning`: how long guests stand still while the oracle is reckoned. Needs root.

Eight processes hold 512 MiB each, filled with the standard mix: so the oracle is known, and must come out. What is
timed is `oracle.reckon_now`, all of it, a few times in each case:

off      each page has a frame of its own
shared   merged until nothing moves any more; the mix is the scattered one, so each process has as many mappings
         as the host allows it
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.bench import oracle, passes
from memshare.bench.rig import (
    Group,
    Rig,
    finish,
    machine_facts,
    number,
    oracle_pages,
    parse_size,
    session,
    total_pages,
)
from memshare.cli import run
from memshare.clients import procfs
from memshare.errors import MeasurementError
from memshare.render import Column, Unit, render_table

MIX = "scattered"
BAR_SECONDS = 3.0
BAR_BYTES = 8 * (512 << 20)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One case. size_bytes is that of each process."""

    case: str
    seconds: list[float]
    freed_fraction: float
    mappings: int
    processes: int
    size_bytes: int
    kernel: str
    cpu_model: str
    load_before: float


def measure(
    group: Group,
    guests: Sequence[oracle.GuestMemory],
    case: str,
    repeats: int,
    facts: dict[str, object],
) -> Result:
    """Reckon so many times."""
    seconds = []
    for _ in range(repeats):
        start = time.monotonic()
        found, _store = oracle.reckon_now(guests, group.broker_pid)
        seconds.append(round(time.monotonic() - start, 3))
    pages = total_pages(group.workers)
    expected = oracle_pages(pages, len(guests))
    if (found.held, found.oracle) != (pages, expected):
        raise MeasurementError(
            f"{case}: {found.held} pages and an oracle of {found.oracle} were reckoned, not {pages} and {expected}"
        )
    return msgspec.convert(
        {
            "case": case,
            "seconds": seconds,
            "freed_fraction": found.freed / found.oracle,
            "mappings": sum(len(procfs.mappings(guest.pid)) for guest in guests),
            "processes": len(guests),
            **facts,
        },
        Result,
    )


def misses(results: Sequence[Result]) -> list[str]:
    """What is not as it must be. Pure."""
    return [
        f"{result.case}: {max(result.seconds):.2f} s is above its bar, {BAR_SECONDS} s"
        for result in results
        if max(result.seconds) > BAR_SECONDS and result.processes * result.size_bytes <= BAR_BYTES
    ]


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    columns = [
        Column("case", "case"),
        Column("fastest", "fastest s", Unit.COUNT),
        Column("slowest", "slowest s", Unit.COUNT),
        Column("bar", "bar", Unit.COUNT),
        Column("freed", "freed of oracle", Unit.COUNT),
        Column("mappings", "mappings", Unit.COUNT),
    ]
    records: list[dict[str, str | int]] = [
        {
            "case": result.case,
            "fastest": number(min(result.seconds), 2),
            "slowest": number(max(result.seconds), 2),
            "bar": number(BAR_SECONDS, 0),
            "freed": f"{result.freed_fraction:.1%}",
            "mappings": result.mappings,
        }
        for result in results
    ]
    render_table(columns, records, sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--processes", type=click.IntRange(2, 64), default=8, show_default=True)
@click.option(
    "--size",
    default="512M",
    show_default=True,
    callback=parse_size,
    help="Of each process; the bar holds up to 4G in all.",
)
def main(json_file: Path | None, repeats: int, processes: int, size: int) -> None:
    """Time the oracle."""
    with session(json_file) as progress:
        facts = {"size_bytes": size, **machine_facts()}
        with Rig(size, progress).group("memory", MIX, count=processes) as group:
            guests = [oracle.GuestMemory(worker.region.pid, size) for worker in group.workers]
            progress.update("off: reckoning")
            results = [measure(group, guests, "off", repeats, facts)]
            group.start("content", by_hand=True)
            passes.settle(Rig(size, progress), group, "shared")
            for worker in group.workers:
                worker.ask("hold")
            progress.update("shared: reckoning")
            results.append(measure(group, guests, "shared", repeats, facts))
    show(results)
    finish(results, json_file, misses(results))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench reckoning")
